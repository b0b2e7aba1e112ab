"""A pool of volumes, and what every driver promises.

`plan` has decided whether; a driver knows only how. A volume is a numbered list of immutable commits plus at most one
dirty overlay (reference/storage.md 2, 9). While a qube runs, its committed state is that from before its start: that is
what exports, clones and snapshots read.

Every method is idempotent, and after a kill -9 at any point the volume is the old one or the new one.
Errors: `StorageError` and nothing else, with the volume as it was. All calls block; the daemon runs them in threads.
Two pools may not share a folder; `folder` says where one is.
"""
from __future__ import annotations

import abc
import enum
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cloison.errors import StorageError
from cloison.runtime import holders
from cloison.values import InvalidValue, QubeName, VolumeName
from cloison.wire.warden import DiskSource

MAX_SIZE = 1 << 42      # bytes of one volume: 4 TiB
MAX_REVISIONS = 900     # of one volume, whatever is asked for
SECTOR = 512
ABANDONED = 60.0        # s
HELD = 5.0              # s until an image that a process has open counts as in use: a killed one's is closed a moment later
_FOLDERS = ("appvms", "vm-templates")
_FREE_SPACE = "Free some space where the pool is kept, then try again; what was stored is still there."
_FAULTY_DISK = "Look at the host's kernel log and the disk's health; the volume was left as it was."
_ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EIO: _FAULTY_DISK,
    errno.EACCES: "Check who owns the pool's folder; it must belong to the user who runs Cloison.",
    errno.EPERM: "Check who owns the pool's folder; it must belong to the user who runs Cloison.",
    errno.EROFS: "Mount the file system of the pool's folder writable.",
    errno.EOPNOTSUPP: "Take a pool of the driver qcow2, or put this one on btrfs or XFS, whose files can share blocks.",
    errno.EXDEV: "Put the file on the pool's file system first.",
}


class Kind(enum.Enum):
    """What happens to a volume's content at start and stop."""

    ORIGIN = "origin"        # kept: stop makes a new commit
    SNAPSHOT = "snapshot"    # a fresh overlay on the source's last commit, thrown away
    VOLATILE = "volatile"    # empty at each start, thrown away
    READONLY = "readonly"    # kernel modules


@dataclass(frozen=True)
class VolumeConfig:
    """A volume as the model knows it. `vid` is `appvms/<qube>/<volume>` or `vm-templates/<qube>/<volume>`.

    `size` counts when the volume is made or, for VOLATILE, started; from then on the pool knows it (`Pool.size`).
    `revisions_to_keep` below 0 means none, and never more than MAX_REVISIONS are kept.
    """

    vid: str
    name: str                      # root, private, volatile, modules
    kind: Kind
    size: int                      # bytes
    source: str | None = None      # vid of an ORIGIN volume in the same pool, for SNAPSHOT
    revisions_to_keep: int = 1


class PoolError(StorageError):
    """What could not be done, and why; advice in `hint`."""

    def __init__(self, what: str, why: str, hint: str = "") -> None:
        super().__init__(what, why)
        self.what, self.why, self.hint = what, why, hint

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


class DamagedImage(PoolError):
    """An image of the volume is not what it was; `hint` names what is still whole."""


def advice_for(error: OSError) -> str:
    return _ADVICE.get(error.errno or 0, "")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the operating system says inside the block into a `PoolError` about `what`."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or "unknown fault").lower()
        raise PoolError(what, why, advice_for(error)) from error


def refuse_held(vid: str, path: str) -> None:
    """Raises PoolError while any process has this image open for longer than a killed one's takes to be closed, OSError."""
    if not holders.closed_within(path, HELD):
        pids = ", ".join(map(str, holders.who(path)))
        raise PoolError(f"can't use volume {vid}", f"a process still has its image open{f': {pids}' if pids else ''}",
                        "End that process, then try again; nothing was changed.")


def parse_vid(vid: str) -> tuple[str, str]:
    """`appvms/mail/private` -> (`appvms/mail`, `private`). Raises PoolError: nothing else may become a path."""
    parts = vid.split("/")
    if len(parts) == 3 and parts[0] in _FOLDERS:
        try:
            return f"{parts[0]}/{QubeName(parts[1])}", VolumeName(parts[2])
        except InvalidValue as error:
            raise PoolError("not a volume id", str(error)) from error
    raise PoolError("not a volume id", f"{vid[:80]!r} is not appvms/QUBE/VOLUME or vm-templates/QUBE/VOLUME")


def checked_size(size: int) -> int:
    """`size` rounded up to whole sectors. Raises PoolError when out of range."""
    if not 1 <= size <= MAX_SIZE:
        raise PoolError("not a volume size", f"{size} bytes is not between 1 and {MAX_SIZE}")
    return -(-size // SECTOR) * SECTOR


_REVISION = re.compile(r"[1-9][0-9]{0,17}")


def parse_revision(text: str) -> int:
    """A revision id from outside -> its number. Raises PoolError."""
    if not _REVISION.fullmatch(text):
        raise PoolError("not a revision", f"{text[:40]!r} is not a number counting from 1")
    return int(text)


class Pool(abc.ABC):
    """Where volumes are kept. `name` is the user's, `driver` the class's."""

    name: str
    driver: str
    folder: str

    @abc.abstractmethod
    def setup(self) -> None:
        """Make the pool's folder; sweep what a crash left half done. Once, before anything else, by the one owner."""

    @abc.abstractmethod
    def destroy(self) -> None:
        """Take back what `setup` made: a folder that was there before, or that still holds something, stays. The pool is not used
        any more."""

    # A volume's life

    @abc.abstractmethod
    def create(self, volume: VolumeConfig) -> None:
        """Make an ORIGIN volume's first, empty commit (a `private` one: an empty ext4). Others: nothing to make."""

    @abc.abstractmethod
    def remove(self, volume: VolumeConfig) -> None:
        """All files and revisions; the folder too when it is empty. Gone already is fine. Refused while any process has the
        overlay open."""

    @abc.abstractmethod
    def start(self, volume: VolumeConfig) -> DiskSource:
        """Make the disk ready. ORIGIN: a dirty overlay (one left from a power loss is used as it is, once no process has it
        open). Refused while an import runs. The files named in the answer are there until the next change of the volume or its
        source: open them before that; open ones stay readable whatever comes."""

    @abc.abstractmethod
    def stop(self, volume: VolumeConfig) -> None:
        """ORIGIN: the dirty overlay becomes a commit, surplus revisions are pruned; one that nothing was written to is dropped, and
        takes no revision's place. Not started: nothing. Refused while any process has the overlay open."""

    @abc.abstractmethod
    def spare_revisions(self, volume: VolumeConfig) -> None:
        """The session under way is worth no revision: what its stop commits takes the present commit's place, and `revert` gives
        what it would have given before. Not started: nothing."""

    @abc.abstractmethod
    def discard(self, volume: VolumeConfig) -> None:
        """Drop the dirty overlay, as when a start failed: the volume is what it was before it. Not dirty: nothing. Refused while
        any process has the overlay open."""

    # New content. Each makes a commit, the old one becomes a revision; refused while dirty or importing.

    @abc.abstractmethod
    def import_file(self, volume: VolumeConfig, path: str, *, format: str) -> None:
        """Take the file (moved into the pool, same file system) as the new commit, or as the first of a new volume.
        `format` is `raw` or `qcow2` without backing file. The file's size becomes the volume's."""

    @abc.abstractmethod
    def import_begin(self, volume: VolumeConfig, size: int) -> str:
        """Path of an empty file of `size` bytes (whole sectors) for somebody to fill. Until `import_end` the volume can't
        start, unless whoever filled it is gone: nobody has the file open, nor touched it for ABANDONED seconds."""

    @abc.abstractmethod
    def import_end(self, volume: VolumeConfig, ok: bool) -> None:
        """Take what was filled in as the new commit, or drop it. Raises StorageError when no import runs and `ok`."""

    @abc.abstractmethod
    def clear(self, volume: VolumeConfig) -> None:
        """The new commit is what `create` makes, at the present size."""

    @abc.abstractmethod
    def clone(self, volume: VolumeConfig, source: VolumeConfig) -> None:
        """The new commit, or the first of a new volume, is the committed state of `source` in this pool."""

    @abc.abstractmethod
    def revert(self, volume: VolumeConfig, revision: str | None = None) -> None:
        """The new commit is that revision, the newest one if None."""

    @abc.abstractmethod
    def resize(self, volume: VolumeConfig, size: int) -> None:
        """Grow to `size` bytes from the next start on (a running qube's disk is grown by its machine as well)."""

    # Reading

    @abc.abstractmethod
    def export_begin(self, volume: VolumeConfig) -> str:
        """Path of a raw file with the committed state, to read only."""

    @abc.abstractmethod
    def export_end(self, volume: VolumeConfig, path: str) -> None:
        """Done with what `export_begin` returned."""

    @abc.abstractmethod
    def is_dirty(self, volume: VolumeConfig) -> bool:
        """Started and not stopped, or left so by a power loss. Only ORIGIN volumes ever are."""

    @abc.abstractmethod
    def revisions(self, volume: VolumeConfig) -> list[str]:
        """Ids of the old commits that are kept, oldest first."""

    @abc.abstractmethod
    def commit_id(self, volume: VolumeConfig) -> str:
        """Names the present commit (of the source, for a SNAPSHOT), never reused even after a removal: part of a warm
        image's key, and what tells whether a snapshot is outdated. `[a-z0-9-]+`."""

    @abc.abstractmethod
    def size(self, volume: VolumeConfig) -> int:
        """Bytes as the guest sees them at the next start."""

    @abc.abstractmethod
    def path(self, volume: VolumeConfig) -> str:
        """The image that a running qube writes to, else the uppermost of the committed state; empty if that is in no file with a
        name. For people to look at: it may be gone with the next change."""

    @abc.abstractmethod
    def usage(self, volume: VolumeConfig) -> int:
        """Bytes really used."""

    @abc.abstractmethod
    def space(self) -> tuple[int, int]:
        """(size, used) in bytes of where the pool is kept."""
