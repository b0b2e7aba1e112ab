"""A disk whose power may fail: what a folder holds afterwards is what was made durable by then, and of the rest any part.

While `recording`, each `os.fsync` notes what it makes durable: the content of a file, or the names in a folder. `after_cut` builds
the folder as a power cut at this moment may leave it. Names that are not durable yet may be there or not, each kind for itself:
records (`.json`) and all others; content that is not durable is not there.
"""
from __future__ import annotations

import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

Names = dict[str, int]                      # name -> inode
WAYS = tuple(itertools.product((False, True), repeat=2))       # whether new names of records, and of others, are there


class Disk:
    """Everything below `root`, which is all durable to begin with. Inodes are kept by links elsewhere, so that no number is used
    twice; folders by descriptors. (The pool asks the kernel whether a process has an image open, and none may.)
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: list[int] = []
        self._links = tempfile.mkdtemp(dir=root.parent)
        self._content: dict[int, tuple[bytes, int]] = {}       # inode -> durable content and mode of a file
        self._names: dict[int, Names] = {}                     # inode -> durable names of a folder
        for folder, folders, files in os.walk(root):
            self._hold(folder)
            for name in (*folders, *files):
                self._hold(os.path.join(folder, name))

    def _hold(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        self.durable(fd)
        os.close(fd)

    def durable(self, fd: int) -> None:
        """What fsync does."""
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            self._held.append(os.dup(fd))
            self._names[found.st_ino] = {entry.name: entry.inode() for entry in os.scandir(fd)}
        else:
            link = os.path.join(self._links, str(found.st_ino))
            if not os.path.exists(link):
                os.link(os.readlink(f"/proc/self/fd/{fd}"), link)
            with open(link, "rb") as file:
                self._content[found.st_ino] = (file.read(), found.st_mode & 0o777)

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)
        shutil.rmtree(self._links)

    def after_cut(self, target: Path, *, new_records: bool, new_others: bool) -> None:
        """Build it at `target`, which is not there yet."""
        target.mkdir(mode=0o700)
        built: dict[int, str] = {}
        self._build(os.stat(self.root).st_ino, self.root, target, built, new_records, new_others)

    def _build(self, inode: int, real: Path | None, target: Path, built: dict[int, str], records: bool, others: bool) -> None:
        durable = self._names.get(inode, {})
        present = {entry.name: entry.inode() for entry in os.scandir(real)} if real is not None and real.is_dir() else {}
        names = {**{name: number for name, number in (present if records else durable).items() if name.endswith(".json")},
                 **{name: number for name, number in (present if others else durable).items() if not name.endswith(".json")}}
        for name, number in names.items():
            place, there = target / name, real / name if real is not None and present.get(name) == number else None
            if number in self._names or (there is not None and there.is_dir()):
                place.mkdir(mode=0o700)
                self._build(number, there, place, built, records, others)
            elif number in built:
                os.link(built[number], place)
            else:
                data, mode = self._content.get(number, (b"", 0o600))
                place.write_bytes(data)
                place.chmod(mode)
                built[number] = str(place)


@contextmanager
def recording(root: Path, before_each: Callable[[Disk], None]) -> Iterator[Disk]:
    """`before_each` is called before each fsync."""
    disk, real = Disk(root), os.fsync

    def fsync(fd: int) -> None:
        before_each(disk)
        real(fd)
        disk.durable(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        try:
            yield disk
        finally:
            disk.close()
