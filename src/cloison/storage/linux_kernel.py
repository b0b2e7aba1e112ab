"""Pool `linux-kernel`: boot files by version, `DIR/<version>/{vmlinuz,initramfs,modules.img}`.

They come from the host and never from a guest's disk. A version may hold `default-kernelopts-common.txt`, one line of
kernel options for qubes that set none.
"""
from __future__ import annotations

import os
import re

from cloison.storage import images
from cloison.storage.base import PoolError, explained
from cloison.wire.warden import DiskSource, Kernel, Layer

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")
_PARTS = re.compile(r"[0-9]+|~?[A-Za-z]+")
_OPTIONS = re.compile(r"[ -~]{0,4096}")
_FILES = ("vmlinuz", "initramfs", "modules.img")


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts versions as their numbers count: 6.9 before 6.10, 6.10-rc1 before 6.10. Total: every text has one."""
    parts = _PARTS.findall(version)
    return (*map(_rank, parts), (1, 0, ""))


def _rank(part: str) -> tuple[int, int, str]:
    """Before the end of a version (1) comes what leads up to it; numbers and other words come after it."""
    if part.isdecimal():
        return 2, int(part), ""
    return 0 if part.startswith(("rc", "~")) else 3, 0, part


class KernelPool:
    """See the module. Read only; whoever installs a kernel renames a finished folder into place."""

    driver = "linux-kernel"
    name = "linux-kernel"

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)

    def versions(self) -> list[str]:
        """Complete versions, the oldest first. No folder: none."""
        with explained("can't list the kernels"):
            try:
                names = os.listdir(self.folder)
            except FileNotFoundError:
                return []
        return sorted((name for name in names if _VERSION.fullmatch(name) and self._missing(name) is None), key=version_key)

    def kernel(self, version: str) -> Kernel:
        """Boot files of a version. Raises StorageError when there is no such version or a file of it is missing."""
        self._check(version)
        paths = (os.path.join(self.folder, version, file) for file in _FILES)
        return Kernel(version, *paths)

    def modules(self, version: str) -> DiskSource:
        """The read-only disk with the kernel's modules. Raises StorageError as `kernel` does."""
        path = self.kernel(version).modules
        with explained(f"can't use kernel {version}"), images.opened(path) as fd:
            return DiskSource("modules", os.fstat(fd).st_size, (Layer(path, "raw"),), writable=False)

    def default_kernelopts(self, version: str) -> str:
        """Options for qubes that set none, possibly empty. Raises StorageError as `kernel` does, and for a bad file."""
        self._check(version)
        path = os.path.join(self.folder, version, "default-kernelopts-common.txt")
        with explained(f"can't use kernel {version}"):
            try:
                with images.opened(path) as fd:
                    text = os.pread(fd, 4100, 0).decode("utf-8", "replace").strip()
            except FileNotFoundError:
                return ""
        if not _OPTIONS.fullmatch(text):
            raise PoolError(f"can't use kernel {version}", f"{path} is not one line of printable ASCII")
        return text

    def _check(self, version: str) -> None:
        if not _VERSION.fullmatch(version):
            raise PoolError("not a kernel version", repr(version[:80]))
        missing = self._missing(version)
        if missing is not None:
            hint = "cloison kernel list shows the ones there are; cloison kernel add adds one."
            raise PoolError(f"can't use kernel {version}", f"{missing} is missing", hint)

    def _missing(self, version: str) -> str | None:
        """Path of the first file that is not there."""
        for file in _FILES:
            path = os.path.join(self.folder, version, file)
            if not os.path.isfile(path):
                return path
        return None
