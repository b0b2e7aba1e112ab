"""Calls of trusted parts of this host, and Cloison's own calls (reference/admin-api.md 5.11, 19, 20)."""
from __future__ import annotations

import json
import re

from cloison.admin.calls.create import disposable_template
from cloison.admin.calls.power import tell
from cloison.admin.qubesd import Call
from cloison.errors import BackupProfileNotFound, BadRequest, CloisonError, NotPermitted, QubeError
from cloison.plan import lifecycle, preload
from cloison.values import PowerState

MAX_PATH = 4096
_SHAPE = re.compile(rb"(memory|vcpus)=([0-9]{1,9})")


def _check_profile(call: Call) -> None:
    """Raises BadRequest."""
    if "/" in call.argument:
        raise BadRequest("the name of a backup profile holds no '/'")


def backup(call: Call) -> None:
    """There are no profiles: this version makes no backups."""
    _check_profile(call)
    raise BackupProfileNotFound(f"there is no backup profile {call.argument[:60]!r}: backups are not available yet")


def cancel_backup(call: Call) -> None:
    _check_profile(call)
    raise CloisonError(f"no backup with profile {call.argument[:60]!r} is under way")


async def suspend_pre(call: Call) -> None:
    """Tell all qubes, then pause what runs. What was paused already is left alone afterwards."""
    await call.qubesd.drop_preloaded("the host is to sleep")
    running = [qube for qube in call.system.sorted_qubes() if qube.kind.machine and qube.power is PowerState.RUNNING]
    await tell(running, call.qubesd, "qubes.SuspendPreAll")
    for qube in running:
        if qube.power is PowerState.RUNNING:
            await call.qubesd.pause(qube)
            call.qubesd.suspended.add(qube.uuid)


async def suspend_post(call: Call) -> None:
    asleep = [qube for qube in call.system.sorted_qubes()
              if qube.uuid in call.qubesd.suspended and qube.power is PowerState.PAUSED]
    call.qubesd.suspended.clear()
    for qube in asleep:
        await call.qubesd.unpause(qube)
    await tell(asleep, call.qubesd, "qubes.SuspendPostAll")
    for qube in call.system.sorted_qubes():
        if preload.maximum(qube):
            call.qubesd.preload(qube)


# -- Cloison's own -------------------------------------------------------------------------------------------------------


async def status(call: Call) -> str:
    return json.dumps(await call.qubesd.status())


def host_path(untrusted: bytes) -> str:
    """A path of this host as payload. Raises BadRequest."""
    path = untrusted.decode("utf-8", "replace")
    if len(path) > MAX_PATH or "\0" in path or not path.startswith("/"):
        raise BadRequest("the payload must be an absolute path")
    return path


async def seal_root(call: Call) -> None:
    """The payload names a raw image below data/tmp, which becomes the root volume's new commit."""
    path = host_path(call.payload)
    if not call.dest.volumes.get("root") or not call.dest.volumes["root"].save_on_stop:
        raise QubeError(f"{call.dest.name} has no root volume of its own to seal")
    await call.qubesd.seal_root(call.dest, path)


async def disposable(call: Call) -> None:
    """A disposable that lives as long as the caller's connection.

    The connection itself is handed to the warden, so that the caller's end ends the qube even while qubesd is away. The payload:
    nothing, `uuid` (as for admin.vm.CreateDisposable), or `memory=MIB`, `vcpus=N`, apart by a space, which only dom0 may say.
    """
    if call.connection is None:
        raise BadRequest("a disposable by lease needs a connection that stays")
    shape = _shape(call)
    template = disposable_template(call)
    lifecycle.check_disposable(template)
    qube = await call.qubesd.create_disposable(template, call.source)
    try:
        if shape:
            with call.qubesd.transaction():
                for name, value in shape.items():
                    qube.set_text(name, value)
        how = await call.while_there(call.qubesd.start(qube, lease=call.connection))
    except CloisonError:
        await call.qubesd.discard(qube)
        raise
    call.send(qube.name, "disposable-ready", (("name", qube.name), ("uuid", qube.uuid), ("start", how)))
    await call.qubesd.stopped(qube)


def _shape(call: Call) -> dict[str, str]:
    """Properties that the payload asks for. Raises BadRequest, NotPermitted."""
    if call.payload in (b"", b"uuid"):
        return {}
    words = [_SHAPE.fullmatch(word) for word in call.payload.split(b" ")]
    shape = {word[1].decode(): word[2].decode() for word in words if word}
    if len(shape) != len(words):
        raise BadRequest("the payload can only be empty, uuid, or memory=MIB and vcpus=N")
    if call.source is not call.system.dom0:
        raise NotPermitted("only dom0 says how large a disposable is")
    return shape
