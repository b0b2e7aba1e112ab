"""A pool that keeps the states of volumes as small text files: what the daemon does to a pool, without images.

Unlike `storage.fake` it is on disk: a test may kill the daemon and look at what is left, and what the next one finds.
"""
from __future__ import annotations

import os
import shutil

from cloison.errors import StorageError
from cloison.runtime import files
from cloison.storage.base import Kind, Pool, VolumeConfig
from cloison.wire.warden import DiskSource, Layer


class LedgerPool(Pool):
    driver = "qcow2"

    def __init__(self, name: str, folder: str) -> None:
        self.name, self._folder = name, folder
        self.fail: set[str] = set()             # names of methods that answer with an error

    def setup(self) -> None:
        os.makedirs(self._folder, exist_ok=True)

    def _check(self, method: str) -> None:
        if method in self.fail:
            raise StorageError(f"the pool can't {method}: no space left")

    def _path(self, vid: str) -> str:
        return os.path.join(self._folder, vid)

    def _commits(self, vid: str) -> list[str]:
        """Sizes in bytes, one a commit, oldest first."""
        try:
            with open(self._path(vid), encoding="ascii") as file:
                return file.read().split()
        except FileNotFoundError:
            raise StorageError(f"there is no volume {vid}") from None

    def _commit(self, volume: VolumeConfig, size: int) -> None:
        path = self._path(volume.vid)
        commits = self._commits(volume.vid) if os.path.exists(path) else []
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.write_atomic(path, " ".join([*commits, str(size)]).encode("ascii"))

    def _dirty(self, volume: VolumeConfig) -> str:
        return self._path(volume.vid) + "-dirty"

    def create(self, volume: VolumeConfig) -> None:
        self._check("create")
        if volume.kind is Kind.ORIGIN:
            self._commit(volume, volume.size)

    def remove(self, volume: VolumeConfig) -> None:
        self._check("remove")
        for path in (self._path(volume.vid), self._dirty(volume), self._path(volume.vid) + "-import"):
            if os.path.exists(path):
                os.unlink(path)
        folder = os.path.dirname(self._path(volume.vid))
        if os.path.isdir(folder) and all(name.endswith(".tmp") for name in os.listdir(folder)):
            shutil.rmtree(folder)

    def start(self, volume: VolumeConfig) -> DiskSource:
        self._check("start")
        if volume.kind is Kind.VOLATILE:
            return DiskSource(volume.name, volume.size)
        vid = volume.source if volume.kind is Kind.SNAPSHOT and volume.source else volume.vid
        layers = (Layer(f"{self._path(vid)}.{len(self._commits(vid))}", "qcow2"),)
        if volume.kind is Kind.SNAPSHOT:
            return DiskSource(volume.name, volume.size, layers)
        files.write_atomic(self._dirty(volume), b"")
        return DiskSource(volume.name, volume.size, layers, Layer(self._dirty(volume), "qcow2"))

    def stop(self, volume: VolumeConfig) -> None:
        self._check("stop")
        if self.is_dirty(volume):
            self._commit(volume, self.size(volume))
            os.unlink(self._dirty(volume))

    def discard(self, volume: VolumeConfig) -> None:
        if self.is_dirty(volume):
            os.unlink(self._dirty(volume))

    def import_file(self, volume: VolumeConfig, path: str, *, format: str) -> None:
        self._check("import_file")
        size = os.stat(path).st_size
        os.unlink(path)
        self._commit(volume, size)

    def import_begin(self, volume: VolumeConfig, size: int) -> str:
        path = self._path(volume.vid) + "-import"
        files.write_atomic(path, b"")
        os.truncate(path, size)
        return path

    def import_end(self, volume: VolumeConfig, ok: bool) -> None:
        path = self._path(volume.vid) + "-import"
        if ok:
            self._commit(volume, os.stat(path).st_size)
        if os.path.exists(path):
            os.unlink(path)

    def clear(self, volume: VolumeConfig) -> None:
        self._commit(volume, self.size(volume))

    def clone(self, volume: VolumeConfig, source: VolumeConfig) -> None:
        self._check("clone")
        self._commit(volume, self.size(source))

    def revert(self, volume: VolumeConfig, revision: str | None = None) -> None:
        kept = self.revisions(volume)
        wanted = revision or (kept[-1] if kept else "")
        if wanted not in kept:
            raise StorageError(f"volume {volume.vid} has no revision {wanted}")
        self._commit(volume, int(self._commits(volume.vid)[int(wanted) - 1]))

    def resize(self, volume: VolumeConfig, size: int) -> None:
        self._check("resize")
        self._commit(volume, size)

    def export_begin(self, volume: VolumeConfig) -> str:
        return self._path(volume.vid)

    def export_end(self, volume: VolumeConfig, path: str) -> None:
        """Nothing was made."""

    def is_dirty(self, volume: VolumeConfig) -> bool:
        return volume.kind is Kind.ORIGIN and os.path.exists(self._dirty(volume))

    def revisions(self, volume: VolumeConfig) -> list[str]:
        past = len(self._commits(volume.vid)) - 1
        keep = max(volume.revisions_to_keep, 0)
        return [str(number) for number in range(1, past + 1)][-keep:] if keep else []

    def commit_id(self, volume: VolumeConfig) -> str:
        vid = volume.source if volume.kind is Kind.SNAPSHOT and volume.source else volume.vid
        return f"{vid.replace('/', '-')}-{len(self._commits(vid))}"

    def size(self, volume: VolumeConfig) -> int:
        return int(self._commits(volume.vid)[-1]) if volume.kind is Kind.ORIGIN else volume.size

    def usage(self, volume: VolumeConfig) -> int:
        return 0

    def space(self) -> tuple[int, int]:
        return 1 << 40, 0
