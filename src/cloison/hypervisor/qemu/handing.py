"""What a QEMU is handed into its box: descriptors, and read-only files under the names that it opens them by.

Only what is the qube's own to write comes as a descriptor that can be written to: its uppermost layers, and the memory file of
a warm image in the making. Everything else is shared with other qubes, and comes in a form that nothing done to it gets past:
by a read-only mount for an ordinary user's box; frozen or sealed (readonly.py) for a box of the host's root.
"""
from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from cloison.errors import MachineError
from cloison.hypervisor import readonly, sandbox
from cloison.hypervisor.base import Disk, DiskFile, MachineSpec
from cloison.hypervisor.qemu import argv


@dataclass
class Handed:
    """`fds`: what QEMU inherits; `sets`: those of them that are disk files; `files`: path inside -> path on the host."""

    fds: list[int] = field(default_factory=list)
    sets: list[int] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    drives: tuple[argv.Drive, ...] = ()
    ram: argv.Ram = field(default_factory=argv.Ram)
    kernel: str | None = None
    initramfs: str | None = None


def hand_over(spec: MachineSpec, opened: contextlib.ExitStack) -> Handed:
    """Make it ready; `opened` closes what had to be opened for it. Raises MachineError, OSError."""
    return _Handing(opened).all_of(spec)


class _Handing:
    def __init__(self, opened: contextlib.ExitStack) -> None:
        self._opened = opened
        self._user = sandbox.host_user()
        self._handed = Handed()

    def all_of(self, spec: MachineSpec) -> Handed:
        handed = self._handed
        handed.drives = tuple(map(self._drive, spec.disks))
        if spec.ram_fd is not None:
            if spec.ram_shared:
                self._give(spec.ram_fd)
            handed.fds.append(spec.ram_fd)
            handed.ram = argv.Ram(f"/proc/self/fd/{spec.ram_fd}", spec.ram_shared)
        if spec.state_fd is not None:
            handed.fds.append(spec.state_fd)
        elif spec.kernel:
            handed.kernel, handed.initramfs = self._boot_file("vmlinuz", spec.kernel), self._boot_file("initramfs", spec.initramfs)
        return handed

    def _drive(self, disk: Disk) -> argv.Drive:
        return argv.Drive(disk.role, disk.size, tuple(self._node(disk.role, level, file) for level, file in enumerate(disk.files)))

    def _node(self, role: str, level: int, file: DiskFile) -> argv.Node:
        if file.secret_fd is not None:
            self._give(file.secret_fd)
            self._handed.fds.append(file.secret_fd)
        if not file.read_only:
            return argv.Node(self._set(file.fd), file.format, read_only=False, fd_secret=file.secret_fd)
        if self._user is not None:
            frozen = readonly.frozen(file.fd)
            self._opened.callback(os.close, frozen)
            return argv.Node(self._set(frozen), file.format, read_only=True, fd_secret=file.secret_fd)
        if not file.path:
            raise MachineError(f"a read-only file of disk {role} has no path to be mounted by")
        inside = f"/disks/{role}.{level}"
        self._handed.files[inside] = file.path
        return argv.Node(inside, file.format, read_only=True, fd_secret=file.secret_fd)

    def _set(self, fd: int) -> int:
        self._handed.fds.append(fd)
        self._handed.sets.append(fd)
        return fd

    def _give(self, fd: int) -> None:
        """QEMU opens this one once more, by its descriptor's name, so it must be the box's user's own."""
        if self._user is not None:
            os.fchown(fd, self._user, self._user)

    def _boot_file(self, name: str, path: str) -> str:
        if self._user is None:
            self._handed.files[f"/boot/{name}"] = path
            return f"/boot/{name}"
        fd = readonly.sealed(path, name)
        self._opened.callback(os.close, fd)
        self._handed.fds.append(fd)
        return f"/proc/self/fd/{fd}"
