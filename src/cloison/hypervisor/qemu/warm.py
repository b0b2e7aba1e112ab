"""Warm images: a guest that has booted and is nobody yet, kept as files, from which qubes start without booting.

A folder per image, named by a key over everything that shapes it; it appears whole or not at all:

    ram            guest memory, sparse, exactly the machine's size
    state          device state (under a megabyte)
    disk.qcow2     the root overlay as it stood then: it backs the root of every qube started from here
    manifest.json  what went into the key, for people and for dropping it with its commit; sizes and digests of the other three

Digests find what a broken disk or a stray hand did to an image: a guest that starts from it may do anything. Whoever may write
here may also write another manifest; that is the user alone, and no QEMU.

RAM is handed to QEMU as a *sealed memfd*, not as the file: QEMU 7.2 opens private RAM for writing, and a compromised QEMU that
could write the file would be in every later qube. A write-sealed memfd can be mapped privately and by nobody changed. Device
state is handed to it the same way, for the same reason.
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cloison.errors import MachineError
from cloison.hypervisor import readonly
from cloison.hypervisor.qemu import argv
from cloison.hypervisor.qemu.driver import QEMU
from cloison.runtime import faults, files, holders
from cloison.runtime.programs import find
from cloison.wire.warden import Launch, Layer

RAM, STATE, DISK, MANIFEST = "ram", "state", "disk.qcow2", "manifest.json"
FORMAT = 4                       # of this folder and of the agent's protocol; another number is another key
# What a guest in the making believes of the disks that each qube brings along; a clone with others is told at its start.
MADE_SIZES = {"private": 2 << 30, "volatile": 10 << 30}
_COPY = 1 << 22
_PAGE = 1 << 16                  # bytes of RAM that are looked at as one: all zeros, then a hole
_versions: dict[str, str] = {}


class DamagedImage(MachineError):
    """A file of a warm image is not what was saved. Nothing of a user's is in it: it can be dropped and made again."""


def key(launch: Launch) -> str:
    """32 hexadecimal digits. Raises MachineError when a file that goes into it can't be seen."""
    return hashlib.sha256(json.dumps(ingredients(launch), sort_keys=True).encode()).hexdigest()[:32]


def making(launch: Launch) -> str:
    """Name of the work folder, and of the lock of the processes, while that image is made."""
    return f"making-{key(launch)}"


def ingredients(launch: Launch) -> dict[str, object]:
    """Everything a warm image depends on; two launches with equal ingredients may share one."""
    root = next(disk for disk in launch.disks if disk.role == "root")
    shape = argv.shape(argv.Settings(
        name="shape", uuid="", memory=launch.memory, vcpus=launch.vcpus, accelerator=launch.accelerator, fd_monitor=0,
        fd_channel=0, drives=tuple(
            argv.Drive(disk.role, MADE_SIZES.get(disk.role, 0)) for disk in launch.disks)))
    return {
        "format": FORMAT, "commit": root.commit, "qemu": qemu_version(), "shape": shape,
        "cpu": _cpu() if launch.accelerator == "kvm" else "max",
        "root": [_identity(layer.path) for layer in root.layers], "kernelopts": launch.kernelopts,
        "boot": [_identity(path) for path in (launch.kernel.vmlinuz, launch.kernel.initramfs, launch.kernel.modules)],
    }


def _identity(path: str) -> list[object]:
    """Which file this is, so that another one under the same name counts as another."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise MachineError(f"{path} can't be read: {error.strerror}") from error
    return [path, status.st_ino, status.st_size, status.st_mtime_ns]


def qemu_version() -> str:
    """First line of `qemu --version`; asked once for each binary."""
    program = os.path.realpath(find(QEMU))
    stamp = f"{program} {os.stat(program).st_mtime_ns}"
    if stamp not in _versions:
        output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        _versions[stamp] = (output.splitlines() or [""])[0]
    return _versions[stamp]


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        lines = file.read().split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "microcode")))


# -- on disk -----------------------------------------------------------------------------------------------------------


def folder(base: str, name: str) -> str | None:
    """The image's folder if it exists."""
    path = os.path.join(base, name)
    return path if os.path.exists(os.path.join(path, MANIFEST)) else None


def names(base: str) -> list[str]:
    return sorted(name for name in os.listdir(base) if os.path.exists(os.path.join(base, name, MANIFEST)))


def finish(work: str, base: str, launch: Launch) -> str:
    """A filled work folder becomes an image: synced, made read-only, renamed. Its path."""
    for name in (RAM, STATE, DISK):
        fd = os.open(os.path.join(work, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            if os.fstat(fd).st_uid != os.geteuid():      # of a box of the host's root
                os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, 0o400)
        finally:
            os.close(fd)
    faults.point("warm:synced")
    manifest = {**ingredients(launch), "files": {name: _described(os.path.join(work, name)) for name in (RAM, STATE, DISK)}}
    files.write_atomic(os.path.join(work, MANIFEST), json.dumps(manifest, indent=1).encode())
    name = key(launch)
    target = os.path.join(base, name)
    if folder(base, name) is not None:
        shutil.rmtree(work)
        return target
    drop(base, name)                 # what is left of one that was dropped when something died
    files.rename(work, target)
    return target


def drop(base: str, name: str) -> None:
    """Remove an image; first its manifest, so that half of one is never taken for one."""
    path = os.path.join(base, name)
    for part in (MANIFEST, DISK, STATE, RAM):
        if os.path.exists(os.path.join(path, part)):
            os.unlink(os.path.join(path, part))
    shutil.rmtree(path, ignore_errors=True)


def sweep(base: str, keep: Sequence[str] = ()) -> None:
    """Remove what a crash left half made or cut short, and images whose root or boot files are no longer there as they were."""
    for name in os.listdir(base):
        if name in keep:
            continue
        if folder(base, name) is None or not _still_true(os.path.join(base, name)):
            drop(base, name)


def _still_true(path: str) -> bool:
    """Without reading the files; `load` does that."""
    try:
        with open(os.path.join(path, MANIFEST), encoding="utf-8") as file:
            data = json.load(file)
        sizes = all(os.path.getsize(os.path.join(path, name)) == data["files"][name][0] for name in (RAM, STATE, DISK))
        return sizes and data["format"] == FORMAT and all(_identity(entry[0]) == entry for entry in data["root"] + data["boot"])
    except (OSError, ValueError, TypeError, LookupError, MachineError):
        return False


def mark_used(path: str) -> None:
    """Somebody is about to start from it. Only for `by_use`: if it can't be noted, nothing else fails."""
    with contextlib.suppress(OSError):
        os.utime(path)


def by_use(base: str) -> list[tuple[float, str]]:
    """When each image was last started from, or made, and its name; the oldest first."""
    return sorted((os.stat(os.path.join(base, name)).st_mtime, name) for name in names(base))


def in_use(base: str, name: str) -> bool:
    """Whether any process has its disk open, as all qubes have that were started from it. Raises OSError."""
    return holders.is_open(os.path.join(base, name, DISK))


def commit(base: str, name: str) -> str:
    """The root's commit that an image was made from; empty if it can't be told."""
    try:
        with open(os.path.join(base, name, MANIFEST), encoding="utf-8") as file:
            return str(json.load(file)["commit"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def layer(path: str) -> Layer:
    return Layer(os.path.join(path, DISK), "qcow2")


# -- whole or damaged ----------------------------------------------------------------------------------------------------


def check(path: str) -> None:
    """Read an image and compare it with what was saved; takes a second. Raises DamagedImage."""
    for name in (STATE, DISK, RAM):
        _compare(path, name, _described)


class Memory(NamedTuple):
    """Of a whole image, in memory and sealed. `state` has one position for all who have the descriptor: `readonly.again`."""

    ram: int
    state: int


def load(path: str) -> Memory:
    """RAM as `load_ram` gives it, and device state. Raises DamagedImage."""
    _compare(path, DISK, _described)
    loaded: list[int] = []

    def load_state(file: str) -> list[object]:
        loaded.append(readonly.sealed(file, "warm-state"))
        return _described(f"/proc/self/fd/{loaded[-1]}")

    def load_and_describe(_file: str) -> list[object]:
        seen = hashlib.blake2b()
        loaded.append(load_ram(path, seen.update))
        return [os.fstat(loaded[-1]).st_size, seen.hexdigest()]

    try:
        _compare(path, STATE, load_state)
        _compare(path, RAM, load_and_describe)
    except DamagedImage:
        for fd in loaded:
            os.close(fd)
        raise
    state, ram = loaded
    return Memory(ram, state)


def _compare(path: str, name: str, describe: Callable[[str], list[object]]) -> None:
    try:
        with open(os.path.join(path, MANIFEST), encoding="utf-8") as file:
            saved = json.load(file)["files"][name]
        same = describe(os.path.join(path, name)) == saved
    except (OSError, ValueError, TypeError, LookupError, MachineError) as error:
        raise DamagedImage(f"the warm image {path} is damaged: {name} can't be checked: {error}") from error
    if not same:
        raise DamagedImage(f"the warm image {path} is damaged: {name} is not what was saved")


def _described(file: str) -> list[object]:
    """Size and digest. RAM's holes count as what they read as, wherever a file system puts them."""
    seen = hashlib.blake2b()
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for position, piece in _nonzero(fd):
            _feed(seen.update, position, piece)
        return [os.fstat(fd).st_size, seen.hexdigest()]
    finally:
        os.close(fd)


def _feed(update: Callable[[bytes], None], position: int, piece: bytes) -> None:
    update(position.to_bytes(8, "little"))
    update(piece)


# -- in memory -----------------------------------------------------------------------------------------------------------


def load_ram(path: str, seen: Callable[[bytes], None] = lambda _data: None) -> int:
    """The image's RAM as a sealed memfd; its holes stay holes. `seen` is fed what was read. Raises MachineError."""
    try:
        source = os.open(os.path.join(path, RAM), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MachineError(f"warm image {path} can't be read: {error.strerror}") from error
    target = os.memfd_create("warm-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(target, os.fstat(source).st_size)
        for position, piece in _nonzero(source):
            _feed(seen, position, piece)
            os.pwrite(target, piece, position)
        readonly.seal(target)
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        os.close(target)
        raise MachineError(f"warm image {path} can't be loaded: {error.strerror}") from error
    finally:
        os.close(source)
    return target


def _nonzero(source: int) -> Iterator[tuple[int, bytes]]:
    """Position and content of every page that is not all zeros: what is left out would be memory that every qube pays for."""
    position = 0
    while (position := _next_data(source, position)) >= 0:
        data = os.pread(source, _COPY, position)
        if not data:
            return
        for start in range(0, len(data), _PAGE):
            piece = data[start:start + _PAGE]
            if piece.count(0) != len(piece):
                yield position + start, piece
        position += len(data)


def _next_data(source: int, position: int) -> int:
    """Where the page begins that holds the next data; -1 if none does."""
    try:
        return os.lseek(source, position, os.SEEK_DATA) // _PAGE * _PAGE
    except OSError as error:
        if error.errno == errno.ENXIO:
            return -1
        raise
