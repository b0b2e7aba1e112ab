"""What a volume consists of: a small JSON file beside its images, the only truth about them.

A change of the volume is one atomic replacement of its manifest; files that it does not name are left-overs. Image
files have their final names from the start, so nothing needs to be renamed when a dirty overlay becomes a commit.

    {"version": 2, "serial": "3f0c...", "size": 2147483648, "last": 7, "current": 6, "revisions": [5], "dirty": 7,
     "dirty_format": "qcow2", "replaces": false,
     "commits": [{"id": 4, "format": "raw", "base": null, "size": 2147483648, "time": 1767225600, "length": 983040}, ...]}

A dirty `qcow2` is an overlay on the present commit; a dirty `raw` is a whole copy of it. `commits` holds every image that
`current` or a revision needs; `base` is the commit below. Pure but for the names.

A record of an earlier version is read by way of `_STEPS`, and is one of this version when the volume next changes.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cloison.storage.base import MAX_REVISIONS, MAX_SIZE, PoolError

MAX_BYTES = 1 << 20
MAX_COMMITS = 1000
_SERIAL = re.compile(r"[0-9a-f]{16}")
_HINT = "Restore the file from a backup; the images beside it were not touched."


@dataclass(frozen=True)
class Commit:
    """One immutable image. `format` is `raw` or `qcow2`; `base` the id of the one below; `time` in Unix seconds; `length` of the
    file in bytes, 0 if version 1 has not noted it.
    """

    id: int
    format: str
    base: int | None
    size: int
    time: int
    length: int = 0

    def filename(self, volume: str) -> str:
        return f"{volume}.{self.id}.{self.format}"


@dataclass(frozen=True)
class Manifest:
    """State of one volume. `serial` tells it from an earlier volume of the same name; `last` is the highest id given."""

    serial: str
    size: int
    last: int = 0
    current: int = 0
    revisions: tuple[int, ...] = ()
    dirty: int | None = None
    commits: tuple[Commit, ...] = ()
    dirty_format: str = "qcow2"
    replaces: bool = False          # the dirty image will take the present commit's place, which becomes no revision

    @property
    def commit_id(self) -> str:
        """Names the present commit, among all volumes that ever were."""
        return f"{self.serial}-{self.current}"

    def commit(self, number: int) -> Commit:
        return next(commit for commit in self.commits if commit.id == number)

    def chain(self, number: int) -> tuple[Commit, ...]:
        """The images that make up a commit, bottom first."""
        chain = [self.commit(number)]
        while (base := chain[-1].base) is not None:
            chain.append(self.commit(base))
        return tuple(reversed(chain))

    def filenames(self, volume: str) -> set[str]:
        """Every image file that belongs to the volume."""
        names = {commit.filename(volume) for commit in self.commits}
        return names | {f"{volume}{self.dirty_suffix}"} if self.dirty else names

    @property
    def dirty_suffix(self) -> str:
        """What the dirty image's name ends in: it has the name that it keeps as a commit."""
        return f".{self.dirty}.{self.dirty_format}"

    def opened(self, format: str) -> Manifest:
        """With a dirty image of that format on the present commit."""
        return replace(self, dirty=self.last + 1, last=self.last + 1, dirty_format=format)

    def grown(self, size: int) -> Manifest:
        """Larger from the next start on. The present commit counts as that large already: a revert to it keeps the size."""
        commits = tuple(replace(commit, size=size) if commit.id == self.current else commit for commit in self.commits)
        return replace(self, size=size, commits=commits)

    def committed(self, *, time: int, keep: int, length: int = 0) -> Manifest:
        """The dirty image has become the present commit."""
        assert self.dirty is not None
        base = self.current if self.dirty_format == "qcow2" else None
        commit = Commit(self.dirty, self.dirty_format, base, self.size, time, length)
        if self.replaces:
            return replace(self.dropped(), commits=(*self.commits, commit), current=commit.id).pruned()
        return self.dropped().with_commits((commit,), keep=keep)

    def unchanged(self, *, keep: int) -> Manifest:
        """Nothing was written to the dirty image. Fewer revisions stay only where fewer are wanted by now."""
        return replace(self.dropped(), revisions=self.revisions if self.replaces else _newest(self.revisions, keep)).pruned()

    def dropped(self) -> Manifest:
        """The dirty image is none any more."""
        return replace(self, dirty=None, replaces=False)

    def with_commits(self, new: tuple[Commit, ...], *, keep: int) -> Manifest:
        """The last of `new` becomes the present commit, the one before a revision; `keep` newest revisions stay."""
        top = new[-1]
        revisions = (*self.revisions, self.current) if self.current else ()
        result = replace(
            self, commits=self.commits + new, current=top.id, revisions=_newest(revisions, keep), size=top.size,
            last=max(self.last, top.id),
        )
        return result.pruned()

    def pruned(self) -> Manifest:
        """Without images that nothing needs any more."""
        needed = {commit.id for number in (*self.revisions, self.current) for commit in self.chain(number)}
        return replace(self, commits=tuple(commit for commit in self.commits if commit.id in needed))

    def encode(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1).encode() + b"\n"


def _newest(revisions: tuple[int, ...], keep: int) -> tuple[int, ...]:
    return revisions[-min(keep, MAX_REVISIONS):] if keep > 0 else ()


def decode(data: bytes, vid: str) -> Manifest:
    """Inverse of `Manifest.encode`, total. Raises PoolError for anything else: nothing is ever guessed or deleted then."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("too long")
        fields = json.loads(data)
        version = fields.pop("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise ValueError(f"it is of version {version}, and this Cloison reads up to {VERSION}")
        for step in _STEPS[version - 1:]:
            step(fields)
        commits = tuple(Commit(**commit) for commit in fields.pop("commits"))
        manifest = Manifest(**{**fields, "revisions": tuple(fields["revisions"]), "commits": commits})
        _check(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PoolError(f"can't read the record of volume {vid}", str(error)[:200], _HINT) from error
    return manifest


def _from_1(fields: dict[str, Any]) -> None:
    """Version 1 did not know the length of images, nor dirty ones that take a commit's place."""
    fields.setdefault("dirty_format", "qcow2")
    fields.setdefault("replaces", False)
    for commit in fields["commits"]:
        commit.setdefault("length", 0)


_STEPS: tuple[Callable[[dict[str, Any]], None], ...] = (_from_1,)      # from each version to the next, in place
VERSION = 1 + len(_STEPS)


def _check(manifest: Manifest) -> None:
    """Every number in range, every reference to an earlier commit that is there."""
    if not isinstance(manifest.serial, str) or not _SERIAL.fullmatch(manifest.serial):
        raise ValueError("bad serial")
    if not _number(manifest.last, 1) or not _number(manifest.size, 1) or manifest.size > MAX_SIZE:
        raise ValueError("number out of range")
    if manifest.dirty is not None and not (_number(manifest.dirty, 1) and manifest.dirty <= manifest.last):
        raise ValueError("bad dirty image")
    if not isinstance(manifest.replaces, bool):
        raise ValueError("bad mark of the dirty image")
    if manifest.dirty_format not in ("raw", "qcow2"):
        raise ValueError("bad format of the dirty image")
    _check_commits(manifest)


def _check_commits(manifest: Manifest) -> None:
    if not 1 <= len(manifest.commits) <= MAX_COMMITS:
        raise ValueError("bad number of commits")
    ids: set[int] = set()
    for commit in sorted(manifest.commits, key=lambda commit: commit.id):
        if not _number(commit.id, 1) or commit.id > manifest.last or commit.id in ids or commit.id == manifest.dirty:
            raise ValueError("bad commit id")
        if not _number(commit.size, 1) or commit.size > MAX_SIZE or not _number(commit.time, 0) or not _number(commit.length, 0):
            raise ValueError("number out of range")
        if commit.format not in ("raw", "qcow2") or (commit.base is not None and commit.base not in ids):
            raise ValueError("bad commit")
        ids.add(commit.id)
    if not {manifest.current, *manifest.revisions} <= ids:
        raise ValueError("a commit is missing")


def _number(value: object, least: int) -> bool:
    return type(value) is int and value >= least
