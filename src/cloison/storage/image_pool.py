"""What the drivers with image files share: everything but how a dirty image is made from a commit.

    DIR/appvms/mail/private.json        the manifest, the only truth (manifest.py)
    DIR/appvms/mail/private.4.raw       an image: a commit, or the dirty one
    DIR/appvms/mail/private.import.raw  an import that runs
    DIR/.blank/                         empty file systems, hard-linked as first commits of private volumes (blanks.py)
    DIR/.made/                          DIR was made by `setup`, so `destroy` may take it away; somebody's own folder stays

Every change is: new files, durable; then the manifest, replaced atomically; then files without an owner are unlinked.
A crash in between leaves the old manifest or the new one, and files that `setup` sweeps.

Trust: guest data is never read here. Running qubes hold the layers of their disks by open descriptors, so unlinking a pruned
commit takes nothing from them; no image belongs to two volumes, because a clone hard-links all files it is made of.

One lock a qube's folder (flock, so it holds between processes too and ends with its holder). Reading takes no lock.
"""
from __future__ import annotations

import abc
import logging
import os
import secrets
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

from cloison.errors import StorageError
from cloison.runtime.faults import point
from cloison.runtime.files import fsync_dir
from cloison.storage import images
from cloison.storage.base import Kind, PoolError, VolumeConfig, checked_size, explained, parse_revision
from cloison.storage.blanks import Blanks
from cloison.storage.manifest import Commit, Manifest
from cloison.storage.record_pool import RecordPool
from cloison.storage.volume import VolumeFiles
from cloison.wire.warden import DiskSource, Layer

_FOLDERS = ("appvms", "vm-templates")
_MADE = ".made"
_log = logging.getLogger(__name__)


class ImagePool(RecordPool):
    """See the module. `folder` is made by `setup`. `format`: of a dirty image, and of an empty one."""

    format: str

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name, folder)
        self._blanks = Blanks(os.path.join(self.folder, ".blank"))

    def setup(self) -> None:
        with explained(f"can't set up pool {self.name}"):
            self._make_folder()
            for part in _FOLDERS:
                above = os.path.join(self.folder, part)
                images.make_folder(above)
                for qube in sorted(os.listdir(above)):
                    if os.path.isdir(os.path.join(above, qube)):
                        self._sweep_qube(f"{part}/{qube}")
            self._blanks.setup()

    def destroy(self) -> None:
        with explained(f"can't take down pool {self.name}"):
            self._blanks.destroy()
            for part in _FOLDERS:
                with suppress(OSError):
                    os.rmdir(os.path.join(self.folder, part))
            if os.path.isdir(self.folder) and os.listdir(self.folder) == [_MADE]:
                os.rmdir(os.path.join(self.folder, _MADE))
                os.rmdir(self.folder)

    def _make_folder(self) -> None:
        """Marked as ours if it was not there. A crash between the two leaves it without a mark: it then stays for good, empty."""
        try:
            os.makedirs(self.folder, mode=0o700)
        except FileExistsError:
            if not os.path.isdir(self.folder):
                raise
        else:
            os.mkdir(os.path.join(self.folder, _MADE), 0o700)

    # A volume's life

    def create(self, volume: VolumeConfig) -> None:
        if volume.kind is not Kind.ORIGIN:
            return
        files = self._files(volume.vid)
        with files.changing("create"):
            if files.read() is None:
                first = self._empty(files, 1, checked_size(volume.size))
                files.write(_unborn(first.size).with_commits((first,), keep=0))

    def remove(self, volume: VolumeConfig) -> None:
        files = self._files(volume.vid)
        if volume.kind is not Kind.ORIGIN or not os.path.isdir(files.folder):
            return
        with files.changing("remove"):
            files.refuse_held(_known(files))
            images.unlink(files.record_path)
            fsync_dir(files.folder)
            point("storage:remove:record")
            images.sweep(files.folder, files.name, ())
            images.sweep_temporaries(files.folder, files.name)

    def start(self, volume: VolumeConfig) -> DiskSource:
        if volume.kind is Kind.VOLATILE:
            return DiskSource(volume.name, checked_size(volume.size))
        files = self._committed(volume)
        if volume.kind is not Kind.ORIGIN:
            with explained(f"can't start volume {volume.vid}"):
                found = files.existing()
                layers = files.layers(found)
                return DiskSource(volume.name, found.size, layers, writable=volume.kind is Kind.SNAPSHOT,
                                  blank=len(layers) == 1 and self._blanks.holds(layers[0].path, found.size), commit=found.commit_id)
        self._before_start(files)
        with files.changing("start"):
            files.refuse_import()
            found = files.existing()
            layers = files.layers(found)
            top = self._open_dirty(files, found, layers) if found.dirty is None else self._reopen_dirty(files, found)
        return DiskSource(volume.name, found.size, self._backing(layers), Layer(top, self.format))

    def stop(self, volume: VolumeConfig) -> None:
        if not self.is_dirty(volume):
            return
        files = self._files(volume.vid)
        with files.changing("commit"):
            found = files.existing()
            if found.dirty is None:
                return
            files.refuse_held(found)
            files.check_dirty(found)
            if self._is_untouched(files, found):
                files.write(found.unchanged(keep=volume.revisions_to_keep))
                return
            images.seal(files.path(found.dirty_suffix), found.dirty_format)
            point("storage:stop:sealed")
            length = os.stat(files.path(found.dirty_suffix)).st_size
            files.write(found.committed(time=_now(), keep=volume.revisions_to_keep, length=length))
        self._after_stop(files)

    def discard(self, volume: VolumeConfig) -> None:
        if not self.is_dirty(volume):
            return
        files = self._files(volume.vid)
        with files.changing("discard the last session of"):
            found = files.existing()
            files.refuse_held(found)
            files.write(found.dropped())

    def spare_revisions(self, volume: VolumeConfig) -> None:
        if not self.is_dirty(volume):
            return
        files = self._files(volume.vid)
        with files.changing("keep the revisions of"):
            found = files.existing()
            if found.dirty is not None and not found.replaces:
                files.write(replace(found, replaces=True))

    # New content

    def import_file(self, volume: VolumeConfig, path: str, *, format: str) -> None:
        files = self._origin(volume, "import into")
        with files.changing("import into"):
            files.refuse_import()
            self._adopt(files, path, format, volume.revisions_to_keep)

    def import_begin(self, volume: VolumeConfig, size: int) -> str:
        files = self._origin(volume, "import into")
        with files.changing("import into"):
            files.idle()
            images.sparse_file(files.import_path, checked_size(size))
        return files.import_path

    def import_end(self, volume: VolumeConfig, ok: bool) -> None:
        files = self._origin(volume, "import into")
        if not os.path.lexists(files.import_path):
            if ok:
                raise PoolError(f"can't import into volume {volume.vid}", "no import is running")
            return
        with files.changing("import into"):
            try:
                if ok:
                    self._adopt(files, files.import_path, "raw", volume.revisions_to_keep)
            finally:
                images.unlink(files.import_path)

    def clear(self, volume: VolumeConfig) -> None:
        files = self._origin(volume, "clear")
        with files.changing("clear"):
            found = files.idle()
            empty = self._empty(files, found.last + 1, found.size)
            files.write(found.with_commits((empty,), keep=volume.revisions_to_keep))

    def clone(self, volume: VolumeConfig, source: VolumeConfig) -> None:
        files, other = self._origin(volume, "clone"), self._committed(source)
        if other.vid == volume.vid:
            raise PoolError(f"can't clone volume {volume.vid}", "it would be its own source")
        with ExitStack() as locks:
            for each in sorted({other.folder: other, files.folder: files}.values(), key=lambda each: each.folder):
                locks.enter_context(each.changing("clone"))
            wanted = other.existing()
            other.layers(wanted)
            mine = _unborn(wanted.size) if files.read() is None else files.idle()
            files.write(mine.with_commits(_link_chain(files, other, wanted, mine.last), keep=volume.revisions_to_keep))

    def revert(self, volume: VolumeConfig, revision: str | None = None) -> None:
        what = f"can't revert volume {volume.vid}"
        files = self._origin(volume, "revert")
        number = parse_revision(revision) if revision is not None else None
        with files.changing("revert"):
            there = files.revisions(files.existing())
            found = files.idle()
            if not there:
                raise PoolError(what, "no revision is kept", "Set revisions_to_keep to keep old states from now on.")
            number = there[-1] if number is None else number
            if number not in there:
                raise PoolError(what, f"there is no revision {number}", "List the revisions there are.")
            files.layers(found, number)
            if number == found.current:         # only the damaged session upon it goes
                return files.write(found)
            old = found.commit(number)
            again = replace(old, id=found.last + 1, time=_now())
            images.link(files.image(old), files.image(again))
            point("storage:revert:linked")
            files.write(found.with_commits((again,), keep=volume.revisions_to_keep))

    def resize(self, volume: VolumeConfig, size: int) -> None:
        files = self._origin(volume, "resize")
        size = checked_size(size)
        with files.changing("resize"):
            found = files.existing()
            if size < found.size:
                raise PoolError(f"can't resize volume {volume.vid}", f"it has {found.size} bytes and volumes only grow")
            if size > found.size:
                files.write(found.grown(size))

    def _sweep_qube(self, qube: str) -> None:
        """Unlink what a crash left in a qube's folder. A volume whose record can't be read is left alone."""
        folder = os.path.join(self.folder, qube)
        with images.locked(folder):
            images.sweep_temporaries(folder)
            found = (images.IMAGE.fullmatch(file) for file in os.listdir(folder))
            for name in sorted({match[1] for match in found if match}):
                try:
                    self._files(f"{qube}/{name}").sweep()
                except StorageError as error:
                    _log.error("%s", error)

    # New images

    def _empty(self, files: VolumeFiles, number: int, size: int) -> Commit:
        """An image with no content, or with an empty ext4 for `private`: no guest needs to run mkfs at its start."""
        blank = files.name == "private"
        commit = Commit(number, "raw" if blank else self.format, None, size, _now())
        path = files.image(commit)
        images.unlink(path)
        if blank:
            self._blanks.link(size, path)
        else:
            self._make_empty(path, size)
            images.seal(path, self.format)
        point("storage:empty:made")
        return replace(commit, length=os.stat(path).st_size)

    def _open_dirty(self, files: VolumeFiles, found: Manifest, layers: tuple[Layer, ...]) -> str:
        """Make the present commit's dirty image; its path."""
        new = found.opened(self.format)
        path = files.path(new.dirty_suffix)
        images.unlink(path)
        self._make_dirty(layers, path, new.size)
        point("storage:start:overlay")
        files.write(new)
        return path

    def _reopen_dirty(self, files: VolumeFiles, found: Manifest) -> str:
        """Path of the dirty image that a power loss or a crash left."""
        files.refuse_held(found)
        files.check_dirty(found)
        path = files.path(found.dirty_suffix)
        with images.opened(path) as fd:
            os.fchmod(fd, 0o600)        # it was sealed already if the crash came just before its commit
        with images.opened(path, os.O_RDWR) as fd:
            self._grow_dirty(fd, found.size)
        return path

    def _adopt(self, files: VolumeFiles, path: str, format: str, keep: int) -> None:
        """Make a finished file the present commit. The lock is held."""
        found = files.unused(files.read() or _unborn(1))
        size = checked_size(self._seal_import(path, format))
        commit = Commit(found.last + 1, format, None, size, _now(), os.stat(path).st_size)
        images.link(path, files.image(commit))
        point("storage:import:linked")
        files.write(found.with_commits((commit,), keep=keep))
        os.unlink(path)

    # What a driver adds. All raise OSError or PoolError; files are made anew, and what a failure leaves of one is swept.

    @abc.abstractmethod
    def _seal_import(self, path: str, format: str) -> int:
        """Make a file that came from elsewhere durable and read-only; its size in bytes as a guest sees it."""

    @abc.abstractmethod
    def _make_empty(self, path: str, size: int) -> None:
        """An image of `format` without content."""

    @abc.abstractmethod
    def _make_dirty(self, layers: tuple[Layer, ...], path: str, size: int) -> None:
        """A durable image of `format` that shows the commit of these layers and can be written to."""

    @abc.abstractmethod
    def _grow_dirty(self, fd: int, size: int) -> None:
        """Make an image of `format` at least `size` bytes large."""

    @abc.abstractmethod
    def _is_untouched(self, files: VolumeFiles, found: Manifest) -> bool:
        """Whether the dirty image shows what the present commit shows. No machine has it open. In doubt, no."""

    @abc.abstractmethod
    def _backing(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Those of the commit's layers that lie below a dirty image."""

    def _before_start(self, files: VolumeFiles) -> None:
        """Put the commit in order, if it needs that. No lock is held."""

    def _after_stop(self, files: VolumeFiles) -> None:
        """The same, after a new commit. Never fails."""


def _known(files: VolumeFiles) -> Manifest:
    """The record; of a volume whose record can't be read one that names no image, since that shall not bar its removal."""
    with suppress(PoolError):
        return files.read() or _unborn(1)
    return _unborn(1)


def _now() -> int:
    return int(time.time())


def _unborn(size: int) -> Manifest:
    """Record of a volume about to get its first commit."""
    return Manifest(serial=secrets.token_hex(8), size=size)


def _link_chain(files: VolumeFiles, other: VolumeFiles, wanted: Manifest, last: int) -> tuple[Commit, ...]:
    """Hard-link the images of another volume's present commit under new ids above `last`."""
    commits: list[Commit] = []
    for number, old in enumerate(wanted.chain(wanted.current), last + 1):
        new = replace(old, id=number, base=commits[-1].id if commits else None)
        images.link(other.image(old), files.image(new))
        point("storage:clone:linked")
        commits.append(new)
    return (*commits[:-1], replace(commits[-1], size=wanted.size))
