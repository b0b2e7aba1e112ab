"""Kernels of the pool `linux-kernel`: Debian's kernel package, our initramfs, and its modules as a squashfs image.

A qube's kernel comes from the host and never from its disk, so a template can't choose what checks it. One folder a
version, made whole beside and renamed into place; a version that is there stays, but for the initramfs, which is
renewed when our recipe for it changed.
"""
from __future__ import annotations

import errno
import filecmp
import os
import re
import shutil
from collections.abc import Callable

from cloison.runtime import faults
from cloison.runtime.files import fsync_dir, rename, write_atomic
from cloison.runtime.paths import Paths
from cloison.templates import initramfs, kernel_tree
from cloison.templates.contain import Tools
from cloison.templates.kernel_tree import KernelTree

PACKAGE = "linux-image-cloud-amd64"
# apt's own user could not read our folders; in the namespace root is only us.
APT_AS_ROOT = '--aptopt=APT::Sandbox::User "root"'
FILES = ("vmlinuz", "initramfs", "modules.img")
_IDENTITY = ("vmlinuz", "modules.img")     # what makes a version that version; the initramfs is ours


def installed(paths: Paths) -> list[str]:
    """Versions in the pool, oldest first as version numbers go."""
    if not os.path.isdir(paths.kernels):
        return []
    folders = ((name, os.path.join(paths.kernels, name)) for name in os.listdir(paths.kernels))
    whole = [name for name, folder in folders if all(os.path.isfile(os.path.join(folder, file)) for file in FILES)]
    return sorted(whole, key=_version_key)


def install(
    paths: Paths, tools: Tools, folder: str, *, suite: str, lines: list[str], package: str = PACKAGE,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Download the suite's kernel into the pool; its version there. `folder` is in `data/tmp`, for what is half done.

    `lines`: apt sources. Raises HostError; the pool is then as before.
    """
    tree = os.path.join(folder, "kernel-tree")
    tools.run(
        ["mmdebstrap", "--mode=root", "--variant=extract", "--format=directory", APT_AS_ROOT,
         f"--include={package},busybox-static", suite, tree, *lines], folder=folder, on_line=on_line,
    )
    return install_tree(paths, tools, folder, kernel_tree.in_package(tree))


def install_tree(paths: Paths, tools: Tools, folder: str, kernel: KernelTree) -> str:
    """Put that kernel into the pool; its version there. The rest is as with `install`."""
    new = os.path.join(folder, "kernel-new")
    os.mkdir(new, 0o700)
    _make(tools, folder, kernel, new)
    return _publish(paths, new, kernel.release)


def _make(tools: Tools, folder: str, kernel: KernelTree, new: str) -> None:
    """The three files of a version."""
    base = os.path.join(folder, "kernel-modules")
    modules = kernel_tree.stage_modules(kernel, base)
    tools.run(["depmod", "-b", base, kernel.release], folder=folder)
    # lz4 unpacks several times as fast as zstd under emulation, and the image is a few megabytes larger.
    tools.run(
        ["mksquashfs", modules, os.path.join(new, "modules.img"), "-comp", "lz4", "-all-root", "-noappend", "-no-xattrs",
         "-mkfs-time", "0", "-all-time", "0", "-quiet", "-no-progress"], folder=folder,
    )
    shutil.copyfile(kernel.vmlinuz, os.path.join(new, "vmlinuz"))
    with open(kernel.busybox, "rb") as busybox:
        archive = initramfs.build(busybox.read(), modules)
    with open(os.path.join(new, "initramfs"), "wb") as file:
        file.write(archive)


def _publish(paths: Paths, new: str, release: str) -> str:
    """Move a version into the pool, durably. Another build of the same release (Debian rebuilds) gets a number."""
    os.makedirs(paths.kernels, mode=0o700, exist_ok=True)
    for name in FILES:
        _fsync(os.path.join(new, name))
    fsync_dir(new)
    version = _version_for(paths, new, release)
    target = os.path.join(paths.kernels, version)
    if os.path.isdir(target):
        if not filecmp.cmp(os.path.join(new, "initramfs"), os.path.join(target, "initramfs"), shallow=False):
            with open(os.path.join(new, "initramfs"), "rb") as file:
                write_atomic(os.path.join(target, "initramfs"), file.read())
        return version
    faults.point("kernel-publish")
    try:
        rename(new, target)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:   # another build has just put the same version there
            raise
    return version


def _version_for(paths: Paths, new: str, release: str) -> str:
    """The release's own name, or the first numbered one that is free or holds this very kernel and these modules."""
    number = 0
    while True:
        version = release if number == 0 else f"{release}.{number}"
        target = os.path.join(paths.kernels, version)
        if not os.path.lexists(target):
            return version
        if all(filecmp.cmp(os.path.join(new, name), os.path.join(target, name), shallow=False) for name in _IDENTITY):
            return version
        number += 1


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _version_key(name: str) -> list[tuple[int, int | str]]:
    """`6.1.0-9` before `6.1.0-56`."""
    return [(1, int(part)) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
