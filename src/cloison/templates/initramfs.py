"""Our initramfs: busybox, the few kernel modules without which there is no root disk, and `init.sh`.

Uncompressed on purpose: it is about 3 MB, QEMU hands it over by DMA, and under emulation unpacking would cost more than
reading it. Deterministic, so that a change of recipe shows as a change of bytes.
"""
from __future__ import annotations

import os
from importlib import resources
from pathlib import PurePosixPath

from cloison.errors import HostError
from cloison.templates import cpio

# What /init needs: the disks and the two file systems (ext4 is built into Debian's kernels; a kernel that has one of
# these built in lists it in modules.builtin).
NEEDED = ("virtio_pci", "virtio_blk", "ext4", "squashfs")
_FOLDERS = ("bin", "dev", "proc", "sys", "modules", "newroot")


class MissingModule(HostError):
    """A kernel package lacks a module that the guest can't boot without."""

    hint = "Use a kernel package of Debian (linux-image-cloud-amd64 or linux-image-amd64)."


def module_name(path: str) -> str:
    """`kernel/fs/ext4/ext4.ko.xz` and `ext4` are the same module; `-` and `_` are too."""
    return PurePosixPath(path).name.split(".ko", 1)[0].replace("-", "_")


def load_order(modules_dep: str, builtin: str, wanted: tuple[str, ...] = NEEDED) -> list[str]:
    """Paths (relative to the modules folder) to load for `wanted`, each after all it depends on, none twice.

    `modules_dep` and `builtin` are the texts of modules.dep and modules.builtin. Raises MissingModule.
    """
    rows = dict(line.split(":", 1) for line in modules_dep.splitlines() if ":" in line)
    by_name = {module_name(path): path for path in rows}
    present = {module_name(path) for path in builtin.split()}
    order: list[str] = []
    for name in wanted:
        if name in present:
            continue
        if name not in by_name:
            raise MissingModule(f"the kernel package has no module {name}")
        path = by_name[name]
        # depmod lists every dependency, the deepest last.
        order += [each for each in (*reversed(rows[path].split()), path) if each not in order]
    return order


def build(busybox: bytes, modules: str) -> bytes:
    """The archive for one kernel. `modules`: the folder lib/modules/<release>, after depmod. Raises MissingModule."""
    order = load_order(_read(modules, "modules.dep").decode(), _read(modules, "modules.builtin").decode())
    init = resources.files(__package__).joinpath("init.sh").read_bytes()
    entries = base(busybox, init)
    for number, path in enumerate(order):
        if not path.endswith(".ko"):
            raise MissingModule(f"the module {path} is compressed, which busybox's insmod can't load")
        entries.append(cpio.file(f"modules/{number:02}-{module_name(path)}.ko", _read(modules, path)))
    return cpio.archive(entries)


def base(busybox: bytes, init: bytes) -> list[cpio.Entry]:
    """Folders, busybox and `/init`: what any initramfs of ours begins with."""
    return [
        *(cpio.directory(name) for name in _FOLDERS),
        cpio.file("bin/busybox", busybox, executable=True),
        cpio.file("init", init, executable=True),
    ]


def _read(folder: str, path: str) -> bytes:
    with open(os.path.join(folder, path), "rb") as file:
        return file.read()
