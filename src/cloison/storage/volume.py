"""One volume in its qube's folder: its record, the lock around a change of it, and the images that its record names."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cloison.errors import StorageError
from cloison.runtime.faults import point
from cloison.runtime.files import fsync_dir, write_atomic
from cloison.storage import images
from cloison.storage import manifest as records
from cloison.storage.base import ABANDONED, PoolError, explained, parse_vid, refuse_held
from cloison.storage.manifest import Commit, Manifest
from cloison.storage.qcow2_image import checked_header
from cloison.wire.warden import Layer


class VolumeFiles:
    """Files of the volume `vid` below the pool's folder. Raises PoolError for a bad id. Makes nothing by itself."""

    def __init__(self, pool_folder: str, vid: str) -> None:
        qube, self.name = parse_vid(vid)
        self.vid = vid
        self.folder = os.path.join(pool_folder, qube)
        self.record_path = self.path(".json")
        self.import_path = self.path(".import.raw")

    def path(self, suffix: str) -> str:
        return os.path.join(self.folder, self.name + suffix)

    def image(self, commit: Commit) -> str:
        return os.path.join(self.folder, commit.filename(self.name))

    def read(self) -> Manifest | None:
        """The record, or None when the volume does not exist. Raises PoolError for an unreadable one."""
        with explained(f"can't read the record of volume {self.vid}"):
            try:
                with images.opened(self.record_path) as fd:
                    return records.decode(os.pread(fd, records.MAX_BYTES + 1, 0), self.vid)
            except FileNotFoundError:
                return None

    def existing(self) -> Manifest:
        """The record of a volume that must exist. Raises PoolError."""
        found = self.read()
        if found is None:
            raise PoolError(f"can't use volume {self.vid}", "it does not exist")
        return found

    def idle(self) -> Manifest:
        """The record of a volume that exists and that nobody uses. Raises PoolError."""
        self.refuse_import()
        found = self.existing()
        self.refuse_dirty(found)
        return found

    def refuse_import(self) -> None:
        """Also ends an import that was left behind. The lock is held."""
        if os.path.lexists(self.import_path) and not images.drop_abandoned(self.import_path, ABANDONED):
            raise PoolError(f"can't use volume {self.vid}", "an import into it is running",
                            "Wait until it has ended; if its writer is gone, that is a minute later.")

    def refuse_dirty(self, found: Manifest) -> None:
        if found.dirty is not None:
            raise PoolError(f"can't change volume {self.vid}", "it is in use", "Shut the qube down first.")

    def refuse_held(self, found: Manifest) -> None:
        """For a machine may live on unseen and write. Raises PoolError, OSError."""
        if found.dirty is not None:
            refuse_held(self.vid, self.path(found.dirty_suffix))

    @contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """The lock of the folder, around a change. A change that fails leaves no file that the record does not name."""
        with explained(f"can't {what} volume {self.vid}"), images.locked(self.folder):
            try:
                yield
            except BaseException:
                with suppress(OSError, StorageError):   # an unreadable record: touch nothing
                    self.sweep()
                raise

    def sweep(self) -> None:
        """Unlink images without an owner."""
        found = self.read()
        images.sweep(self.folder, self.name, found.filenames(self.name) if found else ())

    def write(self, new: Manifest) -> None:
        """The step that counts: from here on the volume is the new one. Then images that lost their owner go."""
        point("storage:record:before")
        fsync_dir(self.folder)      # the images' names come first
        write_atomic(self.record_path, new.encode())
        point("storage:record:after")
        with suppress(OSError):     # what stays now goes with the next change, or at setup
            images.sweep(self.folder, self.name, new.filenames(self.name))

    def layers(self, found: Manifest) -> tuple[Layer, ...]:
        """The committed state, bottom first, each image seen to be there and readable. Raises PoolError, OSError."""
        layers = found.layers(self.folder, self.name)
        for layer in layers:
            with images.opened(layer.path) as fd:
                if layer.format == "qcow2":
                    checked_header(fd)
        return layers
