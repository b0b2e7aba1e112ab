"""From a launch's disks to open files. The only place where a warden opens a qube's images; nothing of them is read here."""
from __future__ import annotations

import importlib
import os
from collections.abc import Callable

from cloison.errors import MachineError
from cloison.hypervisor.base import Disk, DiskFile
from cloison.hypervisor.qemu import warm
from cloison.runtime import faults
from cloison.storage.qcow2_image import Encryption, create_overlay_fd
from cloison.wire.warden import DiskSource, Launch, Layer


def open_all(launch: Launch, tmp: str) -> tuple[Disk, ...]:
    """Every disk of a qube that is to run, warm or cold. `tmp`: folder for nameless overlays. Raises MachineError."""
    return _guarded(lambda opened: tuple(_running(source, launch.warm, tmp, opened) for source in launch.disks))


def open_for_making(launch: Launch, root_overlay: str) -> tuple[Disk, ...]:
    """Disks of a warm image in the making: nothing of any qube, only the root's commits under a new overlay."""
    def make(opened: list[int]) -> tuple[Disk, ...]:
        disks = []
        for source in launch.disks:
            files = [_file(layer, opened) for layer in source.layers] if source.role in ("root", "modules") else []
            if source.role == "root":
                fd = os.open(root_overlay, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                opened.append(fd)
                create_overlay_fd(fd, source.size)
                files.append(DiskFile(fd, "qcow2", read_only=False))
            disks.append(Disk(source.role, warm.MADE_SIZES.get(source.role, source.size), tuple(files)))
        return tuple(disks)
    return _guarded(make)


def prepare(launch: Launch) -> None:
    """Load what only this launch's disks need: once in the process that forks wardens, instead of in each of them."""
    if any(source.ephemeral for source in launch.disks):
        importlib.import_module("cloison.storage.luks")


def _guarded(make: Callable[[list[int]], tuple[Disk, ...]]) -> tuple[Disk, ...]:
    opened: list[int] = []
    try:
        return make(opened)
    except OSError as error:
        for fd in opened:
            os.close(fd)
        raise MachineError(f"a disk can't be opened: {error.filename or 'overlay'}: {error.strerror}") from error


def _running(source: DiskSource, warm_folder: str | None, tmp: str, opened: list[int]) -> Disk:
    layers = list(source.layers)
    if source.role == "root" and warm_folder is not None:
        layers.append(warm.layer(warm_folder))
    files = [_file(layer, opened) for layer in layers]
    if source.top is not None:
        files.append(_file(source.top, opened, writable=True))
    elif source.writable:
        files.append(_nameless(source, tmp, opened))
    return Disk(source.role, source.size, tuple(files))


def _file(layer: Layer, opened: list[int], *, writable: bool = False) -> DiskFile:
    fd = os.open(layer.path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)
    opened.append(fd)
    return DiskFile(fd, layer.format, read_only=not writable, path=layer.path)


def _nameless(source: DiskSource, tmp: str, opened: list[int]) -> DiskFile:
    """An overlay without a name: it is gone with its last descriptor, whatever dies first (lesson #5323)."""
    faults.point("warden:overlay")
    fd = os.open(tmp, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    opened.append(fd)
    if not source.ephemeral:
        create_overlay_fd(fd, source.size)
        return DiskFile(fd, "qcow2", read_only=False)
    from cloison.storage import luks  # with the first disk that needs it: the cipher's library takes 30 ms and 9 MB

    secret = luks.new_secret()
    create_overlay_fd(fd, source.size, Encryption(luks.new_header(secret), luks.LENGTH))
    return DiskFile(fd, "qcow2", read_only=False, secret_fd=_pipe(secret, opened))


def _pipe(secret: bytes, opened: list[int]) -> int:
    """A pipe that gives these bytes once, and ends. They fit: nobody has to read meanwhile."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    opened.append(reading)
    try:
        os.write(writing, secret)
    finally:
        os.close(writing)
    return reading
