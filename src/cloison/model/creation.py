"""Makes qubes of the model: their values, tags and volumes, and the events of their birth and end.

Making the volumes' files is the daemon's; this is the part that a transaction holds.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from cloison.errors import BadPropertyValue, BadRequest, BadValue, CloisonError
from cloison.model import volumes
from cloison.model.domains import Qube, System
from cloison.model.features import PROHIBIT_START, unfinished
from cloison.model.properties import Value

_VOLUMES = ("root", "private", "volatile", "kernel")
_NOT_COPIED = "preload-dispvm"
KERNELS = "linux-kernel"            # the driver of a pool that holds no volumes of qubes


@dataclass(frozen=True)
class Birth:
    """A qube about to be. `tags` are announced; `pools`: volume -> pool, `pool` for all that are not snapshots."""

    klass: str
    name: str
    label: str
    uuid: str
    state: str
    template: str | None = None
    dispid: int | None = None
    pool: str | None = None
    pools: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    values: Mapping[str, Value] = field(default_factory=dict)
    unfinished: str = ""            # the tool that has yet to finish it


def create(system: System, birth: Birth) -> Qube:
    """Raises QubeExists, BadRequest, BadValue, BadPropertyValue, CloisonError (unknown pool)."""
    kind = system.kinds[birth.klass]
    if birth.label not in system.labels:
        raise BadRequest(f"there is no label {birth.label[:60]!r}")
    template = _template(system, birth) if kind.templates else None
    values: dict[str, Value] = {"label": birth.label, **birth.values}
    if birth.dispid is not None:
        values["dispid"] = birth.dispid
    if template is not None:
        values["template"] = template.name
    qube = system.add(kind, birth.name, values, uuid=birth.uuid, state=birth.state)
    if template is not None and birth.klass == "DispVM":
        inherit_from_template(qube, template)
    _keep_quietly(qube)
    if birth.unfinished:
        qube.journal.put("features", qube.qid, qube.features, PROHIBIT_START, unfinished(birth.unfinished))
    for volume in _volumes(system, birth, template):
        qube.put_volume(volume)
    system.journal.emit("", "domain-add", vm=qube.name)
    for tag in birth.tags:
        qube.add_tag(tag)
    return qube


def no_template(system: System, klass: str) -> str:
    """What to do where no template was named and none is the default."""
    if all(qube.klass != "TemplateVM" for qube in system.qubes.values()):
        return "there is no template yet; cloison template build debian-13 makes one"
    return f"name one, or set it: qubes-prefs {'default_dispvm' if klass == 'DispVM' else 'default_template'} NAME"


def _template(system: System, birth: Birth) -> Qube:
    name = birth.template
    if name is None:
        name = system.get_or_none("default_dispvm" if birth.klass == "DispVM" else "default_template")
        if name is None:
            what = no_template(system, birth.klass)
            raise BadValue(f"a qube of class {birth.klass} needs a template, and no default is set: {what}")
    template = system.qube(name)
    if template.klass not in system.kinds[birth.klass].templates:
        raise BadPropertyValue(f"{name} is of class {template.klass}: it can't be the template of a {birth.klass}")
    if birth.klass == "DispVM" and not template.get("template_for_dispvms"):
        raise BadValue(f"{name} is not a template for disposables (its template_for_dispvms is not set)")
    return template


def _keep_quietly(qube: Qube) -> None:
    """Tags and features a qube is born with, before anybody can listen."""
    for prop in ("audiovm", "guivm", "relayvm"):
        target = qube.get_or_none(prop)
        if target is not None:
            qube.journal.put("tags", qube.qid, qube.tags, f"{prop}-{target}", None)
    if qube.kind.machine and not qube.system.get("check_updates_vm"):
        qube.journal.put("features", qube.qid, qube.features, "check-updates", "")


def _volumes(system: System, birth: Birth, template: Qube | None) -> list[volumes.Volume]:
    if not system.kinds[birth.klass].machine:
        return []
    pools = {name: birth.pools.get(name) or _pool(system, birth, name, template) for name in _VOLUMES}
    for role, pool in [*birth.pools.items(), *([("", birth.pool)] if birth.pool else [])]:
        if system.pool(pool).driver == KERNELS and role != "kernel":
            raise CloisonError(f"pool {pool} holds kernels, no volumes of qubes")
    made = volumes.for_new_qube(birth.klass, birth.name, pools, template.volumes if template else None)
    for volume in made:
        if volume.snap_on_start and volume.name in birth.pools:
            raise CloisonError(f"volume {volume.name} is a snapshot: it stays in pool {volume.pool}")
    return [_with_revisions(system, volume) for volume in made]


def _with_revisions(system: System, volume: volumes.Volume) -> volumes.Volume:
    """How many revisions to keep is the pool's setting at the qube's birth; a later change is for new volumes."""
    if volume.revisions_to_keep is not None:
        return volume
    return replace(volume, revisions_to_keep=int(system.pool(volume.pool).config.get("revisions_to_keep", "1")))


def _pool(system: System, birth: Birth, name: str, template: Qube | None) -> str:
    """Of a volume whose pool was not named: a disposable's volumes are where its template's are."""
    if birth.pool and name != "kernel":
        return birth.pool
    if birth.klass == "DispVM" and template is not None and name in template.volumes:
        return template.volumes[name].pool
    return str(system.get(f"default_pool_{name}"))


def inherit_from_template(qube: Qube, template: Qube) -> None:
    """A new disposable takes over what is set on its template: properties, features, tags, firewall."""
    for name, prop in qube.properties.items():
        if prop.clone and name in template.values and name not in qube.values:
            qube.store_value(name, template.values[name])
    for feature, value in template.features.items():
        if not feature.startswith(_NOT_COPIED):
            qube.journal.put("features", qube.qid, qube.features, feature, value)
    for tag in template.tags:
        qube.journal.put("tags", qube.qid, qube.tags, tag, None)
    if "firewall" in template.texts:
        qube.put_text("firewall", template.texts["firewall"])


def preloaded(template: Qube) -> list[str]:
    """Names of the disposables of this template that wait to be used."""
    return template.features.get("preload-dispvm", "").split()


def drop_preloaded(template: Qube, names: Collection[str]) -> None:
    """They are not for use any more."""
    before = preloaded(template)
    rest = [name for name in before if name not in names]
    if rest != before:
        template.set_feature("preload-dispvm", " ".join(rest))


def forget(qube: Qube) -> None:
    """The end of a qube in the model, and in the store with all that belongs to it."""
    journal = qube.journal
    journal.emit("", "domain-pre-delete", vm=qube.name)
    if qube.is_preload and qube.template is not None:
        drop_preloaded(qube.template, [qube.name])
    qube.system.remove(qube)
    journal.emit("", "domain-delete", vm=qube.name)
