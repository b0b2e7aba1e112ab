"""What qubes report about themselves: the three calls of the misc socket (reference/admin-api.md 11.5, 20)."""
from __future__ import annotations

import time

from cloison.admin.qubesd import Call
from cloison.errors import BadRequest, QubeError, QubeNotRunning
from cloison.model import requests
from cloison.model.domains import Qube
from cloison.model.features import check_quota
from cloison.model.own_features import AGENT

MAX_DIGITS = 9


def _apply(call: Call, untrusted: dict[str, bytes], *, tools: bool) -> None:
    requested = requests.check(untrusted, tools=tools)
    with call.qubesd.transaction():
        requests.apply(call.source, requested)
        check_quota(call.source.features, call.source.tags)


async def _entries(call: Call, folder: str) -> dict[str, bytes]:
    """What the calling qube has in that folder of its QubesDB."""
    if not call.source.kind.machine or not call.source.is_running:
        raise QubeNotRunning(f"{call.source.name} does not run: it has no QubesDB")
    found = await call.qubesd.qdb_read(call.source, folder)
    return {path.removeprefix(folder): value for path, value in found.items()}


async def features_request(call: Call) -> None:
    _apply(call, await _entries(call, "/features-request/"), tools=False)


def template_features(call: Call) -> None:
    """What the maker of a template's image has read in it, a `name=value` a line: the same as the template would say, running."""
    said = dict(line.partition(b"=")[::2] for line in call.payload.splitlines())
    requested = requests.check({name.decode("ascii", "replace"): value for name, value in said.items()})
    with call.qubesd.transaction():
        requests.apply(call.dest, requested)
        if AGENT in requested:          # the maker's word; a qube that says it of itself is not believed
            call.dest.set_feature(AGENT, requested[AGENT])


async def notify_tools(call: Call) -> None:
    """As old Windows tools ask for features."""
    found = await _entries(call, "/qubes-tools/")
    _apply(call, {name: value for name, value in found.items() if name in requests.TOOLS and value}, tools=True)


def notify_updates(call: Call) -> None:
    """A qube says how many updates wait for it; one that shares its template's software gives a hint about the template.

    The hint counts only if the template doesn't run, which would tell itself, and if the qube runs what the template has now.
    """
    text = call.payload.decode("ascii", "replace").strip()
    if not text.isdecimal() or not text.isascii() or len(text) > MAX_DIGITS:
        raise BadRequest("the payload must be the number of updates")
    count, qube = int(text), call.source
    if qube.klass == "RemoteVM":
        raise QubeError(f"{qube.name} is a RemoteVM: its updates are not known here")
    if qube.get_or_none("updateable"):
        return _note_updates(call, qube, count)
    template = next((each for each in qube.templates() if each.get("updateable")), None)
    if template is None or not template.is_halted or count == 0:
        return None
    if not any(call.qubesd.is_outdated(qube, volume) for volume in qube.volumes.values()):
        _note_updates(call, template, count)
    return None


def _note_updates(call: Call, qube: Qube, count: int) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(call.system.host.now()))
    with call.qubesd.transaction():
        if count == 0 and qube.features.get("updates-available"):
            qube.set_feature("last-update", now)
        qube.set_feature("updates-available", "1" if count else "")
        qube.set_feature("last-updates-check", now)
