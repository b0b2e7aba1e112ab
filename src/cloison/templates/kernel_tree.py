"""What of an unpacked kernel package a qube needs, wherever its distribution puts it, and modules as busybox can load them.

Debian has its modules in `lib/modules` up to 12 and in `usr/lib/modules` from 13 on, compressed by then. They are unpacked once
here, not at each boot in the guest, where it would take its processor and its kmod to know how.
"""
from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from cloison.errors import HostError

MAX_MODULE = 256 << 20           # bytes, unpacked
_RELEASE = re.compile(r"[0-9][A-Za-z0-9.+~_-]{0,63}")
_PREFIXES = ("usr", "")          # of lib and bin; the first that exists
_LOADER = b"/lib64/ld-linux"
_LINKS = ("build", "source")     # in a folder of modules: to what compiles more of them
_OPENERS: dict[str, Callable[[str], lzma.LZMAFile | gzip.GzipFile]] = {".xz": lzma.open, ".gz": gzip.open}


class BadKernelPackage(HostError):
    """The package or the folder does not hold what a kernel package holds."""

    hint = "Name a kernel package of Debian, such as linux-image-cloud-amd64."


class BadKernelFiles(HostError):
    """The files that a person named are no kernel with its modules."""

    hint = "Give --vmlinuz the image of a kernel, and --modules the folder that its `make modules_install` has filled."


@dataclass(frozen=True)
class KernelTree:
    """Paths of a kernel, of its folder of modules, which is named after its release, and of a busybox that needs no library."""

    vmlinuz: str
    modules: str
    busybox: str

    @property
    def release(self) -> str:
        return os.path.basename(self.modules)


def in_package(tree: str) -> KernelTree:
    """Of an unpacked kernel package and busybox. Raises BadKernelPackage."""
    release, modules = _only_release(tree)
    vmlinuz = os.path.join(tree, "boot", f"vmlinuz-{release}")
    if not os.path.isfile(vmlinuz):
        raise BadKernelPackage(f"the kernel package has no boot/vmlinuz-{release}")
    busybox = _first(tree, "bin/busybox", os.path.isfile)
    if busybox is None:
        raise BadKernelPackage("busybox-static holds no bin/busybox")
    return KernelTree(vmlinuz, modules, busybox)


def of_files(vmlinuz: str, modules: str, busybox: str) -> KernelTree:
    """Of a person's own kernel. `modules`: a folder like /lib/modules/6.1.0-9-amd64. Raises BadKernelFiles, HostError."""
    folder = os.path.realpath(modules)
    if not _RELEASE.fullmatch(os.path.basename(folder)):
        raise BadKernelFiles(f"{modules} is not named after a kernel's release, as /lib/modules/6.1.0-9-amd64 is")
    if not os.path.isdir(os.path.join(folder, "kernel")):
        raise BadKernelFiles(f"{modules} has no folder kernel/ with modules in it")
    if not os.path.isfile(vmlinuz):
        raise BadKernelFiles(f"{vmlinuz} is not a file")
    with open(busybox, "rb") as file:
        if _LOADER in file.read():       # there is no library in an initramfs
            raise HostError(f"{busybox} needs libraries; install the package busybox-static")
    return KernelTree(vmlinuz, folder, busybox)


def stage_modules(kernel: KernelTree, base: str) -> str:
    """A copy below `base`, no module compressed, where any depmod looks for it. Returns that folder. Raises BadKernelPackage."""
    target = os.path.join(base, "lib", "modules", kernel.release)
    shutil.copytree(kernel.modules, target, symlinks=True, ignore=shutil.ignore_patterns(*_LINKS))
    os.mkdir(os.path.join(base, "usr"))
    os.symlink("../lib", os.path.join(base, "usr", "lib"))
    for folder, _, names in os.walk(target):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if stem.endswith(".ko"):
                _unpack(os.path.join(folder, name), suffix)
    return target


def _only_release(tree: str) -> tuple[str, str]:
    folder = _first(tree, "lib/modules", os.path.isdir)
    names = os.listdir(folder) if folder is not None else []
    if folder is None or len(names) != 1 or not _RELEASE.fullmatch(names[0]):
        raise BadKernelPackage(f"the kernel package holds {len(names)} kernels; one is needed")
    return names[0], os.path.join(folder, names[0])


def _first(tree: str, path: str, is_there: Callable[[str], bool]) -> str | None:
    return next((found for prefix in _PREFIXES if is_there(found := os.path.join(tree, prefix, path))), None)


def _unpack(path: str, suffix: str) -> None:
    if suffix not in _OPENERS:
        raise BadKernelPackage(f"the module {os.path.basename(path)} is compressed in a way that is not known here")
    with _OPENERS[suffix](path) as packed:
        try:
            data = packed.read(MAX_MODULE + 1)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise BadKernelPackage(f"the module {os.path.basename(path)} can't be unpacked: {error}") from error
    if len(data) > MAX_MODULE:
        raise BadKernelPackage(f"the module {os.path.basename(path)} is larger than {MAX_MODULE >> 20} MiB")
    with open(path.removesuffix(suffix), "wb") as file:
        file.write(data)
    os.unlink(path)
