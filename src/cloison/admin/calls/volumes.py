"""The volumes of a qube (reference/admin-api.md 5.8, 1.6). Data never passes through here: a script writes to a path."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cloison.admin.qubesd import Call
from cloison.errors import BadRequest, BadValue, CloisonError, NotPermitted, QubeNotFound, StorageError, StoreError, TokenNotFound
from cloison.model.properties import parse_bool
from cloison.model.volumes import Volume
from cloison.plan import lifecycle
from cloison.plan import volumes as rules
from cloison.storage.base import Pool, VolumeConfig, checked_size

T = TypeVar("T")
MAX_DIGITS = 19
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
        return await call.qubesd.change_volume(do, call.qubesd.pool(volume.pool), call.qubesd.volume_config(call.dest, volume))


def _saved(call: Call) -> Volume:
    volume = _volume(call)
    rules.check_saved(call.dest, volume)
    return volume


async def _replace_content(call: Call, do: Callable[[Pool, VolumeConfig], None]) -> Volume:
    """Have the driver make a new commit of a halted qube's volume; the volume as the model knows it then."""
    rules.check_halted(call.dest)               # one that is starting has the lock, and is not waited for
    async with call.qubesd.lock(call.dest):
        rules.check_halted(call.dest)
        volume = _saved(call)
        call.qubesd.check_store()
        await call.qubesd.save_left(volume)
        await call.qubesd.change_volume(do, call.qubesd.pool(volume.pool), call.qubesd.volume_config(call.dest, volume))
        return await _follow_size(call, volume)


async def _follow_size(call: Call, volume: Volume) -> Volume:
    """The pool has a new content, and knows how large it is; the model follows. Raises StoreError if the store can't."""
    size = await call.qubesd.in_storage(call.qubesd.pool(volume.pool).size, call.qubesd.volume_config(call.dest, volume))
    if size != volume.size:
        with call.qubesd.transaction(f"volume {volume.name} of {call.dest.name} has its new content"):
            call.dest.resize_volume(volume.name, size)
    return call.dest.volumes[volume.name]


# -- reading -------------------------------------------------------------------------------------------------------------


def listing(call: Call) -> str:
    return "".join(f"{name}\n" for name in call.dest.volumes)


def revisions_to_keep(call: Call, volume: Volume) -> int:
    if volume.revisions_to_keep is not None:
        return volume.revisions_to_keep
    return int(call.system.pool(volume.pool).config.get("revisions_to_keep", "1"))


async def _on_disk(call: Call, volume: Volume) -> tuple[int, str]:
    """Bytes used, and the image's path; 0 and the volume's folder where it can't be told: a pool that is away must not keep the
    rest from being shown.
    """
    try:
        pool, config = call.qubesd.pool(volume.pool), call.qubesd.volume_config(call.dest, volume)
        return await call.qubesd.in_storage(lambda: (pool.usage(config), pool.path(config)))
    except StorageError:
        return 0, f"{call.system.pool(volume.pool).config.get('dir_path', '')}/{volume.vid}"


async def info(call: Call) -> str:
    volume = _volume(call)
    if volume.name == "kernel":
        vid = str(call.dest.get_or_none("kernel") or "")
        usage, path = 0, f"{call.system.pool(volume.pool).config.get('dir_path', '')}/{vid}/modules.img"
    else:
        vid = volume.vid
        usage, path = await _on_disk(call, volume)
    pairs = {
        "pool": volume.pool, "vid": vid, "size": volume.size, "usage": usage, "rw": volume.rw,
        "source": volume.source or "", "path": path, "save_on_stop": volume.save_on_stop,
        "snap_on_start": volume.snap_on_start, "revisions_to_keep": revisions_to_keep(call, volume),
        "ephemeral": rules.is_ephemeral(volume, call.system.pool(volume.pool)),
        "is_outdated": call.qubesd.is_outdated(call.dest, volume),
    }
    return "".join(f"{key}={value}\n" for key, value in pairs.items())


async def _revisions(call: Call, volume: Volume) -> list[str]:
    """Ids, oldest first."""
    return await call.qubesd.in_storage(call.qubesd.pool(volume.pool).revisions, call.qubesd.volume_config(call.dest, volume))


async def snapshots(call: Call) -> str:
    volume = _volume(call)
    revisions = await _revisions(call, volume) if volume.save_on_stop else []
    return "".join(f"{revision}\n" for revision in revisions)


# -- content -------------------------------------------------------------------------------------------------------------


async def revert(call: Call) -> None:
    _volume(call)
    revision = call.payload.decode("ascii", "replace").strip()
    if not _REVISION.issuperset(revision):
        raise BadRequest(f"{revision[:60]!r} is not the id of a revision")
    volume = _saved(call)
    rules.check_halted(call.dest)
    if revision not in await _revisions(call, volume):
        raise StorageError(f"volume {volume.name} of {call.dest.name} has no revision {revision[:60]!r}")
    await _replace_content(call, lambda pool, config: pool.revert(config, revision))


def clone_from(call: Call) -> str:
    """A one-use token that stands for this volume."""
    _volume(call)
    lifecycle.check_known(call.dest)
    token = call.qubesd.new_token()
    call.qubesd.tokens[token] = (call.dest.uuid, call.argument)
    return token


async def clone_to(call: Call) -> None:
    volume = _volume(call)
    if not call.payload.isascii():
        raise BadRequest("a clone token is ASCII text")
    token = call.payload.decode("ascii")
    call.qubesd.check_store()
    if token not in call.qubesd.tokens:
        raise TokenNotFound("the clone token is unknown or was used")
    uuid, source_volume = call.qubesd.tokens.pop(token)
    try:
        source = call.system.qube_by_uuid(uuid)
        origin = source.volumes[source_volume]
    except (QubeNotFound, KeyError):
        raise StorageError("the volume that the clone token stood for is gone") from None
    rules.check_saved(source, origin)
    origin_config = call.qubesd.volume_config(source, origin)
    rules.check_halted(call.dest)
    async with call.qubesd.lock(call.dest):
        rules.check_halted(call.dest)
        volume = _saved(call)
        await call.qubesd.save_left(volume)
        await call.qubesd.copy_volume(volume, call.qubesd.volume_config(call.dest, volume), origin, origin_config)
        await _follow_size(call, volume)
    with call.qubesd.transaction():
        call.system.journal.emit(call.dest.name, "domain-import-volume", name=volume.name, source=origin.vid)


async def resize(call: Call) -> None:
    """The record first: whatever fails or dies after that, the next start of the qube brings the new size."""
    _volume(call)
    size = checked_size(number(call.payload.strip()))
    async with call.qubesd.lock(call.dest):
        volume = _volume(call)
        growth = rules.plan_resize(call.dest, volume, size)
        call.qubesd.check_store()
        done = ""
        if volume.save_on_stop:
            pool, config = call.qubesd.pool(volume.pool), call.qubesd.volume_config(call.dest, volume)
            await call.qubesd.change_volume(lambda pool, config: pool.resize(config, size), pool, config)
            done = f"volume {volume.name} of {call.dest.name} has {size} bytes from the next start on"
        with call.qubesd.transaction(done):
            call.dest.resize_volume(volume.name, size)
    if growth is not rules.Growth.OFFLINE:      # without the lock: a guest may take its time, and can be killed meanwhile
        await call.qubesd.grow(call.dest, call.dest.volumes[volume.name], file_system=growth is rules.Growth.FILE_SYSTEM)


async def clear(call: Call) -> None:
    volume = await _replace_content(call, lambda pool, config: pool.clear(config))
    with call.qubesd.transaction():
        call.system.journal.emit(call.dest.name, "domain-volume-import-begin", volume=volume.name, size=volume.size)
        call.system.journal.emit(call.dest.name, "domain-volume-import-end", volume=volume.name, success=True)


# -- settings ------------------------------------------------------------------------------------------------------------


def _change(call: Call, volume: Volume) -> None:
    with call.qubesd.transaction():
        call.dest.put_volume(volume)


def _check_changeable(volume: Volume) -> None:
    """Raises BadValue."""
    if volume.name == "kernel":
        raise BadValue("the modules of a kernel are the same for all qubes, and never change")


def set_revisions(call: Call) -> None:
    volume = _volume(call)
    keep = number(call.payload, signed=True)
    rules.check_revisions(keep)
    if keep != 0:
        _check_changeable(volume)
    if (keep == -1) != (revisions_to_keep(call, volume) == -1):
        rules.check_halted(call.dest)
    _change(call, replace(volume, revisions_to_keep=keep))


def set_rw(call: Call) -> None:
    volume = _volume(call)
    rw = flag(call.payload)
    if rw:
        _check_changeable(volume)
    rules.check_halted(call.dest)
    _change(call, replace(volume, rw=rw))


def set_ephemeral(call: Call) -> None:
    volume = _volume(call)
    ephemeral = flag(call.payload)
    _check_changeable(volume)
    if ephemeral:
        rules.check_ephemeral(volume)
    _change(call, replace(volume, ephemeral=ephemeral))


# -- import, on the internal socket ----------------------------------------------------------------------------------------


async def import_begin(call: Call) -> str:
    volume = call.dest.volumes.get(call.argument)
    if volume is None:
        raise BadRequest(f"{call.dest.name} has no volume {call.argument[:60]!r}")
    size = number(call.payload.strip()) if call.payload else volume.size
    rules.check_saved(call.dest, volume)
    rules.check_halted(call.dest)
    async with call.qubesd.lock(call.dest):
        await call.qubesd.save_left(volume)
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
    if call.qubesd.imports.pop((call.dest.name, volume.name), None) is None:
        raise StorageError(f"no import to volume {volume.name} of {call.dest.name} is under way")
    good, failure = status == b"ok", None
    try:
        call.qubesd.check_store()
    except StoreError as error:
        good, reason = False, str(error).encode()
    await _with_volume(call, lambda pool, config: pool.import_end(config, ok=good))
    try:
        await _follow_size(call, volume)
    except StoreError as error:
        failure = error
    with call.qubesd.transaction():
        call.system.journal.emit(call.dest.name, "domain-volume-import-end", volume=volume.name, success=good)
    if failure is not None:
        raise failure
    if not good:
        raise CloisonError(reason.decode("ascii", "replace")[:1000].strip() or "the import failed")
