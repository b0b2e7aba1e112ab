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

from cloison.errors import HostError
from cloison.runtime import faults
from cloison.runtime.files import fsync_dir, rename, write_atomic
from cloison.runtime.paths import Paths
from cloison.templates import initramfs
from cloison.templates.contain import Tools

PACKAGE = "linux-image-cloud-amd64"
# apt's own user could not read our folders; in the namespace root is only us.
APT_AS_ROOT = '--aptopt=APT::Sandbox::User "root"'
FILES = ("vmlinuz", "initramfs", "modules.img")
_RELEASE = re.compile(r"[0-9][A-Za-z0-9.+~_-]{0,63}")


class BadKernelPackage(HostError):
    """The package does not hold what a kernel package holds."""

    hint = "Name a kernel package of Debian, such as linux-image-cloud-amd64."


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
    release = _only_release(tree)
    new = os.path.join(folder, "kernel-new")
    os.mkdir(new, 0o700)
    _make(tools, folder, tree, release, new)
    return _publish(paths, new, release)


def _only_release(tree: str) -> str:
    modules = os.path.join(tree, "lib", "modules")
    names = os.listdir(modules) if os.path.isdir(modules) else []
    if len(names) != 1 or not _RELEASE.fullmatch(names[0]):
        raise BadKernelPackage(f"the kernel package holds {len(names)} kernels; one is needed")
    return names[0]


def _make(tools: Tools, folder: str, tree: str, release: str, new: str) -> None:
    """The three files of a version."""
    modules = os.path.join(tree, "lib", "modules", release)
    tools.run(["depmod", "-b", tree, release], folder=folder)
    # lz4 unpacks several times as fast as zstd under emulation, and the image is a few megabytes larger.
    tools.run(
        ["mksquashfs", modules, os.path.join(new, "modules.img"), "-comp", "lz4", "-all-root", "-noappend", "-no-xattrs",
         "-mkfs-time", "0", "-all-time", "0", "-quiet", "-no-progress"], folder=folder,
    )
    kernel = os.path.join(tree, "boot", f"vmlinuz-{release}")
    if not os.path.isfile(kernel):
        raise BadKernelPackage(f"the kernel package has no boot/vmlinuz-{release}")
    shutil.copyfile(kernel, os.path.join(new, "vmlinuz"))
    with open(os.path.join(tree, "bin", "busybox"), "rb") as busybox:
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
    """The release's own name, or the first numbered one that is free or holds this very kernel (and so these modules)."""
    number = 0
    while True:
        version = release if number == 0 else f"{release}.{number}"
        target = os.path.join(paths.kernels, version)
        if not os.path.lexists(target):
            return version
        if filecmp.cmp(os.path.join(new, "vmlinuz"), os.path.join(target, "vmlinuz"), shallow=False):
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
