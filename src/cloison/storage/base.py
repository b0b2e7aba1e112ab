"""A pool of volumes, and what every driver promises.

`plan` has decided whether; a driver knows only how. A volume is a numbered list of immutable commits plus at most one
dirty overlay (reference/storage.md 2, 9). While a qube runs, its committed state is that from before its start.

Every method is idempotent, and after a kill -9 at any point the volume is the old one or the new one.
Errors: `StorageError` and nothing else, with the volume as it was.
"""
from __future__ import annotations

import abc
import enum
from dataclasses import dataclass

from cloison.wire.warden import DiskSource


class Kind(enum.Enum):
    """What happens to a volume's content at start and stop."""

    ORIGIN = "origin"        # kept: stop makes a new commit
    SNAPSHOT = "snapshot"    # a fresh overlay on the source's last commit, thrown away
    VOLATILE = "volatile"    # empty at each start, thrown away
    READONLY = "readonly"    # kernel modules


@dataclass(frozen=True)
class VolumeConfig:
    """A volume as the model knows it. `vid` is `appvms/<qube>/<volume>` or `vm-templates/<qube>/<volume>`."""

    vid: str
    name: str                      # root, private, volatile, modules
    kind: Kind
    size: int                      # bytes
    source: str | None = None      # vid of an ORIGIN volume in the same pool, for SNAPSHOT
    revisions_to_keep: int = 1


class Pool(abc.ABC):
    """Where volumes are kept. Blocking calls: the daemon runs them in a thread where they may be slow."""

    name: str
    driver: str

    @abc.abstractmethod
    def setup(self) -> None:
        """Make the pool's folder; sweep what a crash left half done."""

    @abc.abstractmethod
    def create(self, volume: VolumeConfig) -> None:
        """Make an ORIGIN volume's first, empty commit (a `private` one: an empty ext4). Others: nothing to make."""

    @abc.abstractmethod
    def remove(self, volume: VolumeConfig) -> None:
        """All files and revisions; the folder too when it is empty. Gone already is fine."""

    @abc.abstractmethod
    def start(self, volume: VolumeConfig) -> DiskSource:
        """Make the disk ready. ORIGIN: a dirty overlay (one left from a power loss is used as it is)."""

    @abc.abstractmethod
    def stop(self, volume: VolumeConfig) -> None:
        """ORIGIN: the dirty overlay becomes a commit, surplus revisions are pruned. Not started: nothing."""

    @abc.abstractmethod
    def import_file(self, volume: VolumeConfig, path: str, *, format: str) -> None:
        """Take the file (moved into the pool, same file system) as the new commit. The volume must not be dirty."""

    @abc.abstractmethod
    def is_dirty(self, volume: VolumeConfig) -> bool: ...

    @abc.abstractmethod
    def revisions(self, volume: VolumeConfig) -> list[str]:
        """Ids of the old commits that are kept, oldest first."""

    @abc.abstractmethod
    def commit_id(self, volume: VolumeConfig) -> str:
        """Names the present commit, never reused: part of a warm image's key."""

    @abc.abstractmethod
    def usage(self, volume: VolumeConfig) -> int:
        """Bytes really used."""
