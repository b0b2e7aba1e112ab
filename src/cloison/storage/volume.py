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
from cloison.storage.base import ABANDONED, DamagedImage, PoolError, advice_for, explained, parse_vid, refuse_held
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
        return self.unused(self.existing())

    def refuse_import(self) -> None:
        """Also ends an import that was left behind. The lock is held."""
        if os.path.lexists(self.import_path) and not images.drop_abandoned(self.import_path, ABANDONED):
            raise PoolError(f"can't use volume {self.vid}", "an import into it is running",
                            "Wait until it has ended; if its writer is gone, that is a minute later.")

    def unused(self, found: Manifest) -> Manifest:
        """The record for whoever replaces the content: a dirty image that is damaged, and that no process has open, is given up by
        that. Raises PoolError, OSError.
        """
        if found.dirty is None:
            return found
        if not self._spoilt(found):
            raise PoolError(f"can't change volume {self.vid}", "it is in use", "Shut the qube down first.")
        self.refuse_held(found)
        return found.dropped()

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

    # -- whole or damaged ----------------------------------------------------------------------------------------------------

    def layers(self, found: Manifest, number: int | None = None) -> tuple[Layer, ...]:
        """A commit, the present one if None: bottom first, each image seen to be there, readable and whole. Raises DamagedImage."""
        chain = found.chain(found.current if number is None else number)
        for commit in chain:
            if why := self._fault(_suffix(commit), commit.format, commit.length):
                raise self._damaged(found, _suffix(commit), why)
        return tuple(Layer(self.image(commit), commit.format) for commit in chain)

    def check_dirty(self, found: Manifest) -> None:
        """Raises DamagedImage for a dirty image that can't be used."""
        if why := self._spoilt(found):
            raise self._damaged(found, found.dirty_suffix, why)

    def revisions(self, found: Manifest) -> tuple[int, ...]:
        """What can be gone back to, oldest first. The present commit is among that when the session upon it is damaged."""
        return (*found.revisions, found.current) if self._spoilt(found) else found.revisions

    def _spoilt(self, found: Manifest) -> str:
        """What is wrong with the dirty image; empty if there is none. A whole copy is never shorter than what it is a copy of."""
        if found.dirty is None:
            return ""
        length = found.commit(found.current).length if found.dirty_format == "raw" else 0
        return self._fault(found.dirty_suffix, found.dirty_format, length)

    def _fault(self, suffix: str, format: str, length: int = 0) -> str:
        """What is wrong with an image; empty if nothing is. `length`: bytes that its file must have at least."""
        try:
            with images.opened(self.path(suffix)) as fd:
                os.pread(fd, 1, 0)
                size = os.fstat(fd).st_size
                if size < length:
                    return f"it has {size} bytes of {length}"
                if format == "qcow2":
                    checked_header(fd)
        except FileNotFoundError:
            return "it is missing"
        except PoolError as error:
            return error.why
        except OSError as error:
            advice = advice_for(error)
            return f"it can't be read: {(error.strerror or 'unknown fault').lower()}{f'. {advice}' if advice else ''}"
        return ""

    def _damaged(self, found: Manifest, suffix: str, why: str) -> DamagedImage:
        return DamagedImage(f"volume {self.vid} is damaged", f"image {self.name}{suffix}: {why}", self._what_helps(found))

    def _what_helps(self, found: Manifest) -> str:
        place = f"{self.vid.split('/')[1]}:{self.name}"
        whole = [number for number in reversed(self.revisions(found)) if self._is_whole(found, number)]
        if found.current in whole:
            return (f"qvm-volume revert {place} goes back to what its last whole stop has kept; qvm-clone makes another qube of "
                    f"that. qvm-volume import and clear replace it.")
        if whole:
            return f"qvm-volume revert {place} {whole[0]} goes back to revision {whole[0]}, which is whole."
        return (f"No revision of it is whole: restore it with qvm-volume import {place} FILE, "
                f"or begin anew with qvm-volume clear {place}.")

    def _is_whole(self, found: Manifest, number: int) -> bool:
        return not any(self._fault(_suffix(commit), commit.format, commit.length) for commit in found.chain(number))


def _suffix(commit: Commit) -> str:
    return commit.filename("")
