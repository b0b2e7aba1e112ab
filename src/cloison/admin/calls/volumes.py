"""The volumes of a qube (reference/admin-api.md 5.8, 1.6). Data never passes through here: a script writes to a path."""
from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cloison.admin.qubesd import Call
from cloison.errors import BadRequest, BadValue, CloisonError, NotPermitted, QubeNotHalted, StorageError, TokenNotFound
from cloison.model.domains import Qube
from cloison.model.properties import parse_bool
from cloison.model.volumes import Volume
from cloison.storage.base import Pool, VolumeConfig

T = TypeVar("T")
MAX_DIGITS = 19
MAX_SIZE = 1 << 60
_REVISION = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.-")


def number(untrusted: bytes, *, signed: bool = False) -> int:
    """A number as payload. Raises BadRequest."""
    try:
        text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("not a number") from None
    digits = text[1:] if signed and text.startswith("-") else text
    if not digits.isdecimal() or len(digits) > MAX_DIGITS or (digits.startswith("0") and digits != "0"):
        raise BadRequest(f"{text[:30]!r} is not a decimal number of at most {MAX_DIGITS} digits")
    return int(text)


def flag(untrusted: bytes) -> bool:
    """A boolean as payload. Raises BadRequest."""
    try:
        return parse_bool(untrusted.decode("ascii"))
    except (BadValue, UnicodeDecodeError):
        raise BadRequest("not a boolean: use True or False") from None


def _volume(call: Call) -> Volume:
    """Raises NotPermitted: whether there is such a volume is nobody's business."""
    try:
        return call.dest.volumes[call.argument]
    except KeyError:
        raise NotPermitted(f"no volume {call.argument[:60]!r} for you") from None


async def _with_volume(call: Call, do: Callable[[Pool, VolumeConfig], T]) -> T:
    """Run a driver's method in a thread, with the qube held still."""
    async with call.qubesd.lock(call.dest):
        volume = _volume(call)
        return await asyncio.to_thread(do, call.qubesd.pool(volume.pool), call.qubesd.volume_config(call.dest, volume))


def _saved(call: Call) -> Volume:
    volume = _volume(call)
    if not volume.save_on_stop:
        raise StorageError(f"volume {volume.name} of {call.dest.name} keeps nothing, so it can't take this")
    return volume


def _check_halted(qube: Qube) -> None:
    if qube.kind.machine and not qube.is_halted:
        raise QubeNotHalted(f"{qube.name} is {qube.power}: shut it down first")


# -- reading -------------------------------------------------------------------------------------------------------------


def listing(call: Call) -> str:
    return "".join(f"{name}\n" for name in call.dest.volumes)


def revisions_to_keep(call: Call, volume: Volume) -> int:
    if volume.revisions_to_keep is not None:
        return volume.revisions_to_keep
    return int(call.system.pool(volume.pool).config.get("revisions_to_keep", "1"))


def is_ephemeral(call: Call, volume: Volume) -> bool:
    if volume.ephemeral is not None:
        return volume.ephemeral
    return volume.volatile and call.system.pool(volume.pool).config.get("ephemeral_volatile") == "True"


def info(call: Call) -> str:
    volume = _volume(call)
    folder = call.system.pool(volume.pool).config.get("dir_path", "")
    if volume.name == "kernel":
        vid = str(call.dest.get_or_none("kernel") or "")
        usage, path = 0, f"{folder}/{vid}/modules.img"
    else:
        vid = volume.vid
        usage = call.qubesd.pool(volume.pool).usage(call.qubesd.volume_config(call.dest, volume))
        path = f"{folder}/{vid}"
    pairs = {
        "pool": volume.pool, "vid": vid, "size": volume.size, "usage": usage, "rw": volume.rw,
        "source": volume.source or "", "path": path, "save_on_stop": volume.save_on_stop,
        "snap_on_start": volume.snap_on_start, "revisions_to_keep": revisions_to_keep(call, volume),
        "ephemeral": is_ephemeral(call, volume), "is_outdated": call.qubesd.is_outdated(call.dest, volume),
    }
    return "".join(f"{key}={value}\n" for key, value in pairs.items())


def snapshots(call: Call) -> str:
    volume = _volume(call)
    if not volume.save_on_stop:
        return ""
    revisions = call.qubesd.pool(volume.pool).revisions(call.qubesd.volume_config(call.dest, volume))
    return "".join(f"{revision}\n" for revision in revisions)


# -- content -------------------------------------------------------------------------------------------------------------


async def revert(call: Call) -> None:
    volume = _saved(call)
    revision = call.payload.decode("ascii", "replace").strip()
    if not _REVISION.issuperset(revision):
        raise BadRequest(f"{revision[:60]!r} is not the id of a revision")
    _check_halted(call.dest)
    pool = call.qubesd.pool(volume.pool)
    if revision not in pool.revisions(call.qubesd.volume_config(call.dest, volume)):
        raise StorageError(f"volume {volume.name} of {call.dest.name} has no revision {revision[:60]!r}")
    await _with_volume(call, lambda pool, config: pool.revert(config, revision))


def clone_from(call: Call) -> str:
    """A one-use token that stands for this volume."""
    _saved(call)
    token = call.qubesd.new_token()
    call.qubesd.tokens[token] = (call.dest.name, call.argument)
    return token


async def clone_to(call: Call) -> None:
    volume = _volume(call)
    token = call.payload.decode("ascii", "replace")
    if token not in call.qubesd.tokens:
        raise TokenNotFound("the clone token is unknown or was used")
    source_name, source_volume = call.qubesd.tokens.pop(token)
    source = call.system.qube(source_name)
    origin = source.volumes[source_volume]
    if not volume.save_on_stop or origin.pool != volume.pool:
        raise StorageError(f"volume {volume.name} of {call.dest.name} can't take the content of {source_name}'s {origin.name}")
    _check_halted(call.dest)
    origin_config = call.qubesd.volume_config(source, origin)
    await _with_volume(call, lambda pool, config: pool.clone(config, origin_config))
    with call.qubesd.transaction():
        call.dest.resize_volume(volume.name, origin.size)
        call.system.journal.emit(call.dest.name, "domain-import-volume", name=volume.name, source=origin.vid)


async def resize(call: Call) -> None:
    volume = _volume(call)
    size = number(call.payload.strip())
    if size > MAX_SIZE:
        raise StorageError(f"a volume has at most {MAX_SIZE} bytes")
    if volume.name == "kernel":
        raise StorageError("the kernel volume has no size of its own")
    if size < volume.size:
        raise StorageError(f"volume {volume.name} of {call.dest.name} has {volume.size} bytes and can't shrink to {size}")
    if not call.dest.is_halted:
        raise QubeNotHalted(f"{call.dest.name} is {call.dest.power}: volumes grow only while it is halted")
    if volume.save_on_stop:
        await _with_volume(call, lambda pool, config: pool.resize(config, size))
    with call.qubesd.transaction():
        call.dest.resize_volume(volume.name, size)


async def clear(call: Call) -> None:
    volume = _saved(call)
    _check_halted(call.dest)
    await _with_volume(call, lambda pool, config: pool.clear(config))
    with call.qubesd.transaction():
        call.system.journal.emit(call.dest.name, "domain-volume-import-begin", volume=volume.name, size=None)
        call.system.journal.emit(call.dest.name, "domain-volume-import-end", volume=volume.name, success=True)


# -- settings ------------------------------------------------------------------------------------------------------------


def _change(call: Call, volume: Volume) -> None:
    with call.qubesd.transaction():
        call.dest.put_volume(volume)


def set_revisions(call: Call) -> None:
    volume = _volume(call)
    keep = number(call.payload, signed=True)
    if keep < -1 or keep > 10**6:
        raise BadValue("revisions_to_keep must be -1 (no snapshots) or more")
    if (keep == -1) != (revisions_to_keep(call, volume) == -1):
        _check_halted(call.dest)
    _change(call, replace(volume, revisions_to_keep=keep))


def set_rw(call: Call) -> None:
    volume = _volume(call)
    rw = flag(call.payload)
    _check_halted(call.dest)
    _change(call, replace(volume, rw=rw))


def set_ephemeral(call: Call) -> None:
    volume = _volume(call)
    ephemeral = flag(call.payload)
    if ephemeral and not volume.volatile:
        raise BadValue(f"volume {volume.name} can't be ephemeral: only a volatile, writable one can")
    _change(call, replace(volume, ephemeral=ephemeral))


# -- import, on the internal socket ----------------------------------------------------------------------------------------


async def import_begin(call: Call) -> str:
    volume = call.dest.volumes.get(call.argument)
    if volume is None:
        raise BadRequest(f"{call.dest.name} has no volume {call.argument[:60]!r}")
    size = number(call.payload.strip()) if call.payload else volume.size
    if not volume.save_on_stop or size > MAX_SIZE:
        raise StorageError(f"volume {volume.name} of {call.dest.name} can't take {size} bytes")
    _check_halted(call.dest)
    path = await _with_volume(call, lambda pool, config: pool.import_begin(config, size))
    call.qubesd.imports[(call.dest.name, volume.name)] = size
    with call.qubesd.transaction():
        call.system.journal.emit(call.dest.name, "domain-volume-import-begin", volume=volume.name, size=size)
    return f"{size} {path}"


async def import_end(call: Call) -> None:
    volume = call.dest.volumes.get(call.argument)
    status, _, reason = call.payload.partition(b"\n")
    if volume is None or status not in (b"ok", b"fail"):
        raise BadRequest("ImportEnd takes a volume and ok or fail")
    size = call.qubesd.imports.pop((call.dest.name, volume.name), None)
    if size is None:
        raise StorageError(f"no import to volume {volume.name} of {call.dest.name} is under way")
    good = status == b"ok"
    await _with_volume(call, lambda pool, config: pool.import_end(config, ok=good))
    with call.qubesd.transaction():
        if good:
            call.dest.resize_volume(volume.name, size)
        call.system.journal.emit(call.dest.name, "domain-volume-import-end", volume=volume.name, success=good)
    if not good:
        raise CloisonError(reason.decode("ascii", "replace")[:1000].strip() or "the import failed")
