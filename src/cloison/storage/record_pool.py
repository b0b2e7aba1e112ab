"""The reading half of a pool whose volumes are records and images: sizes, revisions, exports. Nothing is changed, no lock taken."""
from __future__ import annotations

import abc
import os
import re
import secrets

from cloison.storage import images
from cloison.storage.base import Kind, Pool, PoolError, VolumeConfig, checked_size, explained
from cloison.storage.volume import VolumeFiles
from cloison.wire.warden import Layer


class RecordPool(Pool):
    """Finds a volume's record (manifest.py) and answers from it."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = os.path.abspath(folder)

    def export_begin(self, volume: VolumeConfig) -> str:
        files = self._committed(volume)
        path = files.path(f".export-{secrets.token_hex(8)}.raw")
        with explained(f"can't export volume {volume.vid}"):
            found = files.existing()
            layers = files.layers(found)
            if [layer.format for layer in layers] == ["raw"] and os.stat(layers[0].path).st_size == found.size:
                os.link(layers[0].path, path, follow_symlinks=False)
            else:
                self._flat_file(layers, path, found.size)
        return path

    def export_end(self, volume: VolumeConfig, path: str) -> None:
        files = self._committed(volume)
        if not re.fullmatch(re.escape(files.path("")) + r"\.export-[0-9a-f]{16}\.raw", path):
            raise PoolError(f"can't end an export of volume {volume.vid}", "that file is not one")
        with explained(f"can't end an export of volume {volume.vid}"):
            images.unlink(path)

    def is_dirty(self, volume: VolumeConfig) -> bool:
        if volume.kind is not Kind.ORIGIN:
            return False
        found = self._files(volume.vid).read()
        return found is not None and found.dirty is not None

    def revisions(self, volume: VolumeConfig) -> list[str]:
        if volume.kind is not Kind.ORIGIN:
            return []
        files = self._files(volume.vid)
        return [str(number) for number in files.revisions(files.existing())]

    def commit_id(self, volume: VolumeConfig) -> str:
        return self._committed(volume).existing().commit_id

    def size(self, volume: VolumeConfig) -> int:
        if volume.kind is Kind.VOLATILE:
            return checked_size(volume.size)
        return self._committed(volume).existing().size

    def path(self, volume: VolumeConfig) -> str:
        if volume.kind is Kind.VOLATILE:
            return ""
        files = self._committed(volume)
        found = files.existing()
        if found.dirty is not None and volume.kind is Kind.ORIGIN:
            return files.path(found.dirty_suffix)
        return files.image(found.commit(found.current))

    def usage(self, volume: VolumeConfig) -> int:
        if volume.kind is not Kind.ORIGIN:
            return 0
        files = self._files(volume.vid)
        with explained(f"can't measure volume {volume.vid}"):
            return sum(map(_used, (os.path.join(files.folder, name) for name in files.existing().filenames(files.name))))

    def space(self) -> tuple[int, int]:
        with explained(f"can't measure pool {self.name}"):
            found = os.statvfs(self.folder)
        return found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize

    def _files(self, vid: str) -> VolumeFiles:
        return VolumeFiles(self.folder, vid)

    def _origin(self, volume: VolumeConfig, what: str) -> VolumeFiles:
        if volume.kind is not Kind.ORIGIN:
            raise PoolError(f"can't {what} volume {volume.vid}", "it keeps no content of its own")
        return self._files(volume.vid)

    def _committed(self, volume: VolumeConfig) -> VolumeFiles:
        """The volume whose commits this one shows: itself, or its source. Raises PoolError."""
        if volume.kind is Kind.ORIGIN:
            return self._files(volume.vid)
        if volume.kind is Kind.VOLATILE or volume.source is None:
            raise PoolError(f"can't read volume {volume.vid}", "it has no content of its own and no source")
        return self._files(volume.source)

    def _flat_file(self, layers: tuple[Layer, ...], path: str, size: int) -> None:
        """A new, durable raw file with what the chain shows. Left behind by no failure but a crash."""
        try:
            self._flat_copy(layers, path, size)
            images.seal(path, "raw")
        except BaseException:
            images.unlink(path)
            raise

    @abc.abstractmethod
    def _flat_copy(self, layers: tuple[Layer, ...], path: str, size: int) -> None:
        """A raw file of `size` bytes with what the layers show."""


def _used(path: str) -> int:
    """Bytes of the disk; none if it is missing, which whoever uses the volume is told of."""
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
