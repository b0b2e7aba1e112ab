"""Preloaded disposables: how many, which are still good, and which changes matter to them (reference/admin-api.md 16)."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cloison.model.creation import preloaded
from cloison.model.domains import Qube, System
from cloison.model.journal import Event
from cloison.plan.lifecycle import child_netvm
from cloison.values import PowerState

MAX, LIST, DELAY, THRESHOLD = "preload-dispvm-max", "preload-dispvm", "preload-dispvm-delay", "preload-dispvm-threshold"
IN_PROGRESS, COMPLETED = "preload-dispvm-in-progress", "preload-dispvm-completed"
MOST = 100                      # of one template, whatever the feature says
DEFAULT_DELAY = 3.0             # seconds before a used one is replaced
AFTER_CHANGE = 30               # seconds that a template's settings may keep changing
AFTER_SHUTDOWN = 4              # seconds for what went with a template's old content to be cleared away
GAP_DELAY = 5                   # seconds at least before a gap is filled that somebody met who wanted a disposable
# Properties in which a disposable may differ from its template and still be good: who it is, its addresses, times.
OWN = frozenset((
    "audiovm", "auto_cleanup", "autostart", "backup_timestamp", "default_dispvm", "dispid", "dns", "gateway",
    "gateway6", "icon", "include_in_backups", "installed_by_rpm", "ip", "ip6", "is_preload", "klass", "mac", "name",
    "qid", "start_time", "stubdom_uuid", "stubdom_xid", "template", "template_for_dispvms", "updateable", "uuid",
    "visible_gateway", "visible_gateway6", "visible_ip", "visible_ip6", "visible_netmask", "xid",
))


@dataclass(frozen=True)
class Wake:
    """Look after the disposables of a template, after so many seconds.

    `told`: with an event. `stale`: only if one has become no good, which goes at once.
    """

    template: str
    reason: str
    delay: float = 0.0
    told: bool = True
    stale: bool = False


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def maximum(template: Qube) -> int:
    """How many are to wait. dom0's feature stands for the system's default template."""
    if not template.get_or_none("template_for_dispvms"):
        return 0
    system = template.system
    if system.get_or_none("default_dispvm") == template.name and MAX in system.dom0.features:
        return min(MOST, _number(system.dom0.features[MAX]))
    return min(MOST, _number(template.features.get(MAX)))


def delay(template: Qube) -> float:
    """Seconds; negative: refill only when none is left."""
    text = template.feature_or_none(DELAY, adminvm=True)
    try:
        return DEFAULT_DELAY if text is None else float(text or 0)
    except ValueError:
        return DEFAULT_DELAY


def wanted(template: Qube, free_memory: int) -> int:
    """How many to add now. `free_memory` of the host in MiB."""
    gap = maximum(template) - len(preloaded(template))
    room = free_memory - _number(template.system.dom0.features.get(THRESHOLD))
    return max(0, min(gap, room // max(1, int(template.get("memory")))))


def services(qube: Qube) -> list[str]:
    """What it must have answered before it is put aside."""
    late = ("gui", "supported-feature.late-gui-daemon")
    session = qube.get("guivm") is not None and all(qube.feature_or_none(name, template=True) for name in late)
    return ["qubes.WaitForRunningSystem", *(["qubes.WaitForSession"] if session else [])]


def is_good(qube: Qube, *, outdated: bool) -> bool:
    """Whether it is ready, and still what its template would make now. `outdated`: a volume has a newer source."""
    template = qube.template
    if template is None or outdated or qube.power is not PowerState.PAUSED or COMPLETED not in qube.features:
        return False
    if qube.volumes["private"].size != template.volumes["private"].size:
        return False
    common = [name for name in qube.properties if name in template.properties and name not in OWN]
    return all(qube.get_or_none(name) == template.get_or_none(name) for name in common)


def is_for(qube: Qube, source: Qube, template: Qube) -> bool:
    """Whether this source may have it: never with more network than the source has itself (lesson 28)."""
    bound, netvm = child_netvm(source, template)
    return not bound or qube.get_or_none("netvm") == netvm


def gap(template: Qube) -> Wake | None:
    """For whoever is about to take one: fill up what is missing, but not while they start what they took."""
    pause = delay(template)
    missing = len(preloaded(template)) < maximum(template)
    return Wake(template.name, "there is a gap", max(GAP_DELAY, pause)) if missing and _may_refill(template, pause) else None


def _may_refill(template: Qube, pause: float) -> bool:
    return pause >= 0 or not preloaded(template)


def wakes(system: System, events: Iterable[Event]) -> Iterator[Wake]:
    """Which templates need looking after, because of what has just happened."""
    for event in events:
        kind, _, name = event.name.partition(":")
        qube, pairs = system.qubes.get(event.subject), dict(event.pairs)
        if not event.subject and name == "default_dispvm" and kind in ("property-set", "property-del"):
            yield from _of_default(system, pairs)
        elif qube is not None and name == MAX and kind in ("domain-feature-set", "domain-feature-delete"):
            if kind == "domain-feature-delete" or pairs["value"] != pairs.get("oldvalue"):
                yield from _of_maximum(qube, deleted=kind == "domain-feature-delete")
        elif qube is not None:
            yield from _of_qube(qube, kind, name, pairs)


def _of_default(system: System, pairs: Mapping[str, str]) -> Iterator[Wake]:
    """dom0's feature has gone over from one template to another: to whom that makes a difference."""
    if MAX in system.dom0.features and pairs.get("newvalue") != pairs.get("oldvalue"):
        for name in dict.fromkeys(value for key, value in pairs.items() if key in ("newvalue", "oldvalue")):
            template = system.qubes.get(name)
            if template is not None and _number(template.features.get(MAX)) != _number(system.dom0.features[MAX]):
                yield Wake(name, "default_dispvm has changed")


def _of_maximum(qube: Qube, *, deleted: bool) -> Iterator[Wake]:
    """A template's own feature counts while dom0's does not stand for it."""
    system = qube.system
    default = system.get_or_none("default_dispvm")
    if qube is system.dom0:
        if default:
            yield Wake(str(default), f"dom0's feature {MAX} has changed")
    elif qube.get_or_none("template_for_dispvms") and not (qube.name == default and MAX in system.dom0.features):
        yield Wake(qube.name, f"feature {MAX} has changed", told=not deleted)


def _of_qube(qube: Qube, kind: str, name: str, pairs: Mapping[str, str]) -> Iterator[Wake]:
    if kind == "domain-preload-dispvm-used":
        pause = delay(qube)
        if _may_refill(qube, pause):
            yield Wake(qube.name, "one was used", abs(pause), told=False)
    elif kind == "domain-shutdown":
        for template in [qube, *qube.system.children(qube)]:
            if preloaded(template):
                yield Wake(template.name, "a template was shut down", AFTER_SHUTDOWN, stale=True)
    elif kind == "property-set" and name in ("template_for_dispvms", "template"):
        if (preloaded(qube) or maximum(qube)) and pairs.get("newvalue") != pairs.get("oldvalue"):
            yield Wake(qube.name, f"{name} has changed", told=maximum(qube) > 0)
    elif kind in ("property-set", "property-reset") and name not in OWN and preloaded(qube):
        yield Wake(qube.name, f"property {name} has changed", AFTER_CHANGE, stale=True)
