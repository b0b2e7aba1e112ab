"""A pool for tests of what uses pools: full copies in raw files, its books in memory. Passes the contract suite.

No qemu-img, no sandbox, no crash safety: after `setup` of a new object nothing is left.
"""
from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass, field, replace

from cloison.storage import images
from cloison.storage.base import (
    ABANDONED,
    MAX_REVISIONS,
    Kind,
    Pool,
    PoolError,
    VolumeConfig,
    checked_size,
    explained,
    parse_revision,
    parse_vid,
    refuse_held,
)
from cloison.wire.warden import DiskSource, Layer


@dataclass
class _State:
    """`commits`: number -> path, oldest first; the last one is the present commit."""

    size: int
    commits: dict[int, str] = field(default_factory=dict)
    dirty: str | None = None
    replaces: bool = False
    importing: str | None = None


class FakePool(Pool):
    """See the module."""

    driver = "fake"

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = os.path.abspath(folder)
        self._numbers = itertools.count(1)      # of all volumes: a commit's id is never reused
        self._states: dict[str, _State] = {}
        self._made = False
        self.fail: set[str] = set()             # names of methods that answer as if the disk were full

    def setup(self) -> None:
        with explained(f"can't set up pool {self.name}"):
            self._made = self._made or not os.path.isdir(self.folder)
            os.makedirs(self.folder, exist_ok=True)
            for state in self._states.values():
                self._drop_import(state)

    def destroy(self) -> None:
        if self._made and os.path.isdir(self.folder) and not os.listdir(self.folder):
            os.rmdir(self.folder)
            self._made = False

    def _may(self, method: str) -> None:
        if method in self.fail:
            raise PoolError(f"the pool can't {method}", "no space left on device")

    def create(self, volume: VolumeConfig) -> None:
        self._may("create")
        if volume.kind is Kind.ORIGIN and self._place(volume.vid) not in self._states:
            size = checked_size(volume.size)
            self._states[volume.vid] = _State(size)
            self._commit(volume, self._zeros(volume.vid, size))

    def remove(self, volume: VolumeConfig) -> None:
        parse_vid(volume.vid)
        self._refuse_held(volume)
        state = self._states.pop(volume.vid, None)
        if state is not None:
            for path in (*state.commits.values(), state.dirty, state.importing):
                if path is not None:
                    os.unlink(path)

    def start(self, volume: VolumeConfig) -> DiskSource:
        self._may("start")
        if volume.kind is Kind.VOLATILE:
            return DiskSource(volume.name, checked_size(volume.size))
        state = self._committed(volume)
        if volume.kind is not Kind.ORIGIN:
            layer = Layer(_last(state), "raw")
            snapshot = volume.kind is Kind.SNAPSHOT
            return DiskSource(volume.name, state.size, (layer,), writable=snapshot, commit=self.commit_id(volume))
        self._end_abandoned(state)
        if state.importing:
            raise PoolError(f"can't start volume {volume.vid}", "an import into it is running")
        self._refuse_held(volume)
        if state.dirty is None:
            state.dirty = self._copy(volume.vid, _last(state))
        os.truncate(state.dirty, state.size)
        return DiskSource(volume.name, state.size, (), Layer(state.dirty, "raw"))

    def stop(self, volume: VolumeConfig) -> None:
        self._may("stop")
        if self.is_dirty(volume):
            self._refuse_held(volume)
            state = self._states[volume.vid]
            path = state.dirty
            assert path is not None
            if images.same_content(path, _last(state)):
                spared = state.replaces
                self.discard(volume)
                self._prune(state, len(state.commits) if spared else volume.revisions_to_keep)
                return
            state.dirty = None
            if state.replaces:
                os.unlink(state.commits.popitem()[1])
                volume = replace(volume, revisions_to_keep=len(state.commits))
            self._commit(volume, path)
            state.replaces = False

    def discard(self, volume: VolumeConfig) -> None:
        state = self._states.get(volume.vid)
        if state is not None and state.dirty is not None:
            self._refuse_held(volume)
            os.unlink(state.dirty)
            state.dirty, state.replaces = None, False

    def spare_revisions(self, volume: VolumeConfig) -> None:
        if self.is_dirty(volume):
            self._states[volume.vid].replaces = True

    def import_file(self, volume: VolumeConfig, path: str, *, format: str) -> None:
        if format != "raw":
            raise PoolError(f"can't import into volume {volume.vid}", "the fake pool takes raw files only")
        if self._place(volume.vid) in self._states:
            self._idle(volume, "import into")
        with explained(f"can't import into volume {volume.vid}"):
            size = checked_size(os.stat(path).st_size)
            target = self._new_path(volume.vid)
            os.rename(path, target)
        self._states.setdefault(volume.vid, _State(size)).size = size
        self._commit(volume, target)

    def import_begin(self, volume: VolumeConfig, size: int) -> str:
        state = self._idle(volume, "import into")
        state.importing = self._zeros(volume.vid, checked_size(size))
        return state.importing

    def import_end(self, volume: VolumeConfig, ok: bool) -> None:
        self._may("import_end")
        state = self._committed(volume)
        if ok and not state.importing:
            raise PoolError(f"can't import into volume {volume.vid}", "no import is running")
        if ok and state.importing:
            path, state.importing = state.importing, None
            state.size = os.stat(path).st_size
            self._commit(volume, path)
        self._drop_import(state)

    def clear(self, volume: VolumeConfig) -> None:
        state = self._idle(volume, "clear")
        self._commit(volume, self._zeros(volume.vid, state.size))

    def clone(self, volume: VolumeConfig, source: VolumeConfig) -> None:
        other = self._committed(source)
        if self._place(volume.vid) in self._states:
            if self._idle(volume, "clone") is other:
                raise PoolError(f"can't clone volume {volume.vid}", "it would be its own source")
        self._states.setdefault(volume.vid, _State(other.size)).size = other.size
        self._commit(volume, self._copy(volume.vid, _last(other)))

    def revert(self, volume: VolumeConfig, revision: str | None = None) -> None:
        number = parse_revision(revision) if revision is not None else None
        state = self._idle(volume, "revert")
        old = list(state.commits)[:-1]
        number = old[-1] if number is None and old else number
        if number not in old:
            raise PoolError(f"can't revert volume {volume.vid}", "there is no such revision")
        path = self._copy(volume.vid, state.commits[number])
        state.size = os.stat(path).st_size
        self._commit(volume, path)

    def resize(self, volume: VolumeConfig, size: int) -> None:
        state = self._committed(volume)
        if checked_size(size) < state.size:
            raise PoolError(f"can't resize volume {volume.vid}", "volumes only grow")
        state.size = checked_size(size)
        os.truncate(_last(state), state.size)

    def export_begin(self, volume: VolumeConfig) -> str:
        state = self._committed(volume)
        path = self._copy(volume.vid, _last(state))
        os.truncate(path, state.size)
        return path

    def export_end(self, volume: VolumeConfig, path: str) -> None:
        state = self._committed(volume)
        if os.path.dirname(path) != self.folder or path in (*state.commits.values(), state.dirty):
            raise PoolError(f"can't end an export of volume {volume.vid}", "that file is not one")
        if os.path.exists(path):
            os.unlink(path)

    def is_dirty(self, volume: VolumeConfig) -> bool:
        state = self._states.get(volume.vid)
        return state is not None and state.dirty is not None

    def revisions(self, volume: VolumeConfig) -> list[str]:
        return [str(number) for number in list(self._committed(volume).commits)[:-1]] if volume.kind is Kind.ORIGIN else []

    def commit_id(self, volume: VolumeConfig) -> str:
        return f"fake-{list(self._committed(volume).commits)[-1]}"

    def size(self, volume: VolumeConfig) -> int:
        return checked_size(volume.size) if volume.kind is Kind.VOLATILE else self._committed(volume).size

    def path(self, volume: VolumeConfig) -> str:
        if volume.kind is Kind.VOLATILE:
            return ""
        state = self._committed(volume)
        return state.dirty if state.dirty and volume.kind is Kind.ORIGIN else _last(state)

    def usage(self, volume: VolumeConfig) -> int:
        if volume.kind is not Kind.ORIGIN:
            return 0
        return sum(os.stat(path).st_blocks * 512 for path in self._committed(volume).commits.values())

    def space(self) -> tuple[int, int]:
        usage = shutil.disk_usage(self.folder)
        return usage.total, usage.used

    def _refuse_held(self, volume: VolumeConfig) -> None:
        state = self._states.get(volume.vid)
        if state is not None and state.dirty is not None:
            with explained(f"can't use volume {volume.vid}"):
                refuse_held(volume.vid, state.dirty)

    def _place(self, vid: str) -> str:
        parse_vid(vid)
        return vid

    def _committed(self, volume: VolumeConfig) -> _State:
        vid = volume.vid if volume.kind is Kind.ORIGIN else volume.source
        if vid is None or self._place(vid) not in self._states:
            raise PoolError(f"can't use volume {vid or volume.vid}", "it does not exist")
        return self._states[vid]

    def _idle(self, volume: VolumeConfig, what: str) -> _State:
        state = self._committed(volume)
        self._end_abandoned(state)
        if volume.kind is not Kind.ORIGIN or state.dirty or state.importing:
            raise PoolError(f"can't {what} volume {volume.vid}", "it is in use")
        return state

    def _new_path(self, vid: str) -> str:
        return os.path.join(self.folder, f"{vid.replace('/', ':')}.{next(self._numbers)}")

    def _zeros(self, vid: str, size: int) -> str:
        path = self._new_path(vid)
        with explained(f"can't make volume {vid}"), open(path, "wb") as file:
            file.truncate(size)
        return path

    def _copy(self, vid: str, path: str) -> str:
        """Copies the parts that are not holes: a fresh volume of gigabytes takes no time."""
        target = self._new_path(vid)
        with explained(f"can't copy volume {vid}"), images.opened(path) as source, images.created(target) as copy:
            images.copy_data(source, copy)
        return target

    def _commit(self, volume: VolumeConfig, path: str) -> None:
        state = self._states[volume.vid]
        state.commits[next(self._numbers)] = path
        self._prune(state, volume.revisions_to_keep)

    def _prune(self, state: _State, keep: int) -> None:
        for number in list(state.commits)[:-1 - min(max(keep, 0), MAX_REVISIONS)]:
            os.unlink(state.commits.pop(number))

    def _end_abandoned(self, state: _State) -> None:
        if state.importing and images.drop_abandoned(state.importing, ABANDONED):
            state.importing = None

    def _drop_import(self, state: _State) -> None:
        if state.importing:
            os.unlink(state.importing)
            state.importing = None


def _last(state: _State) -> str:
    return list(state.commits.values())[-1]
