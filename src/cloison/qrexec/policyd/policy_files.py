"""Policy files on disk: where they lie, how they are opened, and when they must be read again.

The files shipped with Cloison come last in precedence: a file of the same name in the user's folder takes its place, so that
updates reach everything the user has not written (docs/decisions/0012). A change is noticed through inotify before the next
decision; a file counts when its writer has closed it, so half of it never does.
"""
from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence

import cloison.policy
from cloison.policy.parse import MAX_FILE, PolicySyntaxError, Root, parse
from cloison.policy.rules import Rules
from cloison.runtime import inotify
from cloison.runtime.paths import Paths

MAX_NAMES = 65_536        # names in one folder
RETRY = 1.0               # seconds until a policy that could not be read is tried again without any news
SHIPPED = os.path.join(os.path.dirname(cloison.policy.__file__), "default")

_NEWS = (inotify.CREATE | inotify.MOVED_TO | inotify.MOVED_FROM | inotify.DELETE | inotify.CLOSE_WRITE | inotify.ATTRIB
         | inotify.DELETE_SELF | inotify.MOVE_SELF)

Folders = Mapping[Root, Sequence[str]]


def folders(paths: Paths) -> dict[Root, tuple[str, ...]]:
    """Where each root is; of several folders the first that has a file wins."""
    return {
        Root.MAIN: (os.path.join(paths.config, "policy.d"), SHIPPED),
        Root.RUNTIME: (os.path.join(paths.run, "policy.d"),),
        Root.LEGACY: (os.path.join(paths.config, "qubes-rpc", "policy"),),
    }


def make_folders(where: Folders) -> None:
    """Those that a policy must have, empty. Raises OSError."""
    for places in where.values():
        os.makedirs(places[0], mode=0o700, exist_ok=True)
    os.makedirs(os.path.join(where[Root.MAIN][0], "include"), mode=0o700, exist_ok=True)


class FolderReader:
    """A `Reader` of real files. `watch` is called with each path before it is looked at."""

    def __init__(self, where: Folders, watch: Callable[[str], None] = lambda path: None) -> None:
        self._where, self._watch = where, watch

    def names(self, root: Root, folder: str) -> Sequence[str]:
        places = self._where[root]
        found: dict[str, None] = {}
        there = False
        missing: OSError | None = None
        for place in places:
            path = os.path.join(place, folder)
            try:
                self._watch(path)
                found |= dict.fromkeys(_files(path))
                there = True
            except (FileNotFoundError, NotADirectoryError) as error:
                if folder == "." and place == places[0]:      # the user's folder: what it would refuse is unknown
                    raise
                missing = error
        if missing is not None and not there:
            raise missing
        return list(found)

    def content(self, root: Root, path: str) -> bytes:
        return self._read(root, path)[1]

    def place(self, root: Root, path: str) -> str:
        """The file that is read for this path. Raises OSError."""
        return self._read(root, path)[0]

    def _read(self, root: Root, path: str) -> tuple[str, bytes]:
        missing = FileNotFoundError(f"{path} does not exist")
        for place in self._where[root]:
            file = os.path.join(place, path)
            try:
                return file, self._open(file)
            except FileNotFoundError as error:
                self._watch(os.path.dirname(file))
                if os.path.islink(file):             # it was meant to be policy: no shipped file stands in for it
                    raise FileNotFoundError(error.errno, f"it is a link to {os.readlink(file)}, which does not exist") from error
                missing = error
        raise missing

    def _open(self, path: str) -> bytes:
        # Without O_NONBLOCK a named pipe of that name would hold everything up.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(f"{path} is not a regular file")
            self._watch(f"/proc/self/fd/{fd}")
            return _read_all(fd)
        finally:
            os.close(fd)


def _files(folder: str) -> list[str]:
    """Regular files and links to such. A dangling link counts too: it was meant to be policy."""
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(names) >= MAX_NAMES:
                raise OSError(f"{folder} holds more than {MAX_NAMES} files")
            if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                names.append(entry.name)
    return names


def _read_all(fd: int) -> bytes:
    """One byte more than is allowed at most: the parser refuses that."""
    parts: list[bytes] = []
    left = MAX_FILE + 1
    while left and (part := os.read(fd, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def load(paths: Paths) -> Rules:
    """The policy as it is now. Raises PolicySyntaxError."""
    return parse(FolderReader(folders(paths)))


class LivePolicy:
    """The policy as it is now, read again when something changed. Close it."""

    def __init__(self, where: Folders) -> None:
        self._where = where
        self._watch: inotify.Watch | None = None
        self._loaded: Rules | PolicySyntaxError | None = None
        self._loaded_at = 0.0

    def rules(self) -> Rules:
        """Raises PolicySyntaxError as long as anything is wrong anywhere."""
        if self._is_stale():
            self._load()
        assert self._loaded is not None
        if isinstance(self._loaded, PolicySyntaxError):
            raise self._loaded.with_traceback(None)
        return self._loaded

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _is_stale(self) -> bool:
        """One system call. The kernel has queued the news before the writer's close returned, so none is missed."""
        if self._loaded is None or self._watch is None or self._watch.clear():
            return True
        return isinstance(self._loaded, PolicySyntaxError) and time.monotonic() - self._loaded_at > RETRY

    def _load(self) -> None:
        """Watches come before reading, so that a change in between makes this reading stale."""
        self.close()
        try:
            self._watch = inotify.Watch(self._where[Root.MAIN][0], _NEWS)
        except OSError:
            self._watch = None           # no folder, or no more watches to be had: read anew each time
        try:
            self._loaded = parse(FolderReader(self._where, self._add_watch))
        except PolicySyntaxError as error:
            self._loaded = error
        self._loaded_at = time.monotonic()

    def _add_watch(self, path: str) -> None:
        if self._watch is not None:
            try:
                self._watch.add(path, _NEWS)
            except (FileNotFoundError, NotADirectoryError):
                return                   # whoever reads it will say so
            except OSError:
                self.close()
