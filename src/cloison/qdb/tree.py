"""A qube's QubesDB: paths and values in memory, watches, a quota, and what to answer to each message. No I/O.

The warden holds one tree and the guest's agent its copy. The agent asks for everything once (`request_sync`); from then on
each side sends the other what its own clients change. The quota bounds what the *guest* stored last, on both sides alike;
the host's own entries don't count, so a guest that fills its share can't keep the host from writing (lesson QSB-085).
Who watches goes away through `forget`, a lost vchan through `peer_lost`: the caller's job.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final, NamedTuple

from cloison.errors import PeerError
from cloison.wire import qdb

MAX_ENTRIES: Final = 4096                # of the guest
MAX_BYTES: Final = 1 << 20               # of the guest, paths and values
MAX_WATCHES: Final = 256                 # of one client

HOST: Final = 0
GUEST: Final = 1


class Fired(NamedTuple):
    """One event for one client: send it `notice(path)`."""

    client: Hashable
    path: str


class Outcome(NamedTuple):
    """What a message leads to: bytes back to its sender, bytes for the other side of the vchan, watches that fired."""

    reply: bytes = b""
    forward: bytes = b""
    fired: tuple[Fired, ...] = ()


def notice(path: str) -> bytes:
    """The message that tells a client of a change."""
    return qdb.encode(qdb.RESP_WATCH, path)


def is_entry(path: str) -> bool:
    """Whether a value can stand there: not empty, no `/` at the end."""
    return path.startswith("/") and not path.endswith("/") and path.isascii() and qdb.is_path_text(path.encode())


class Tree:
    """`side` is where this tree lives: HOST or GUEST."""

    def __init__(self, side: int, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._side = side
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._values: dict[str, bytes] = {}
        self._charged: dict[str, int] = {}                # the guest's entries, bytes each
        self._charged_bytes = 0
        self._watches: dict[Hashable, list[str]] = {}
        self._peer_synced = False                         # the peer has a copy and hears of changes
        self._sync_requested = False                      # we asked for a copy and it hasn't ended

    # -- entries -----------------------------------------------------------------------------------------------------------

    def read(self, path: str) -> bytes | None:
        return self._values.get(path)

    def entries(self, prefix: str = "") -> list[tuple[str, bytes]]:
        """Paths that begin with the prefix, and their values, in order of path."""
        return sorted(item for item in self._values.items() if item[0].startswith(prefix))

    def paths(self, prefix: str = "") -> list[str]:
        return sorted(path for path in self._values if path.startswith(prefix))

    def store(self, path: str, value: bytes, *, by_guest: bool) -> bool:
        """Write without telling anyone. False, and nothing changed: not an entry's path, a bad value, or over the quota."""
        if not is_entry(path) or len(value) > qdb.MAX_VALUE or b"\0" in value:
            return False
        if by_guest and not self._charge(path, len(path) + len(value)):
            return False
        if not by_guest:
            self._discharge(path)
        self._values[path] = value
        return True

    def _charge(self, path: str, size: int) -> bool:
        total = self._charged_bytes - self._charged.get(path, 0) + size
        if total > self._max_bytes or (path not in self._charged and len(self._charged) >= self._max_entries):
            return False
        self._charged[path] = size
        self._charged_bytes = total
        return True

    def _discharge(self, path: str) -> None:
        self._charged_bytes -= self._charged.pop(path, 0)

    def discard(self, path: str) -> bool:
        """Remove an entry, or with `/` at the end all below, without telling anyone. False if there was nothing."""
        gone = self.paths(path) if path.endswith("/") else [path] if path in self._values else []
        for entry in gone:
            del self._values[entry]
            self._discharge(entry)
        return bool(gone)

    # -- what this side's owner changes --------------------------------------------------------------------------------------

    def write(self, path: str, value: bytes) -> Outcome:
        """The owner's own write; never against the quota. Raises ValueError for a path or value that can't be stored."""
        if not self.store(path, value, by_guest=False):
            raise ValueError(f"can't be stored: path {path!r} with a value of {len(value)} bytes")
        return Outcome(b"", self._for_peer(qdb.encode(qdb.WRITE, path, value)), self._fire(path))

    def remove(self, path: str) -> Outcome:
        """The owner's own removal; a trailing `/` means all below. Nothing there is fine."""
        if not self.discard(path):
            return Outcome()
        return Outcome(b"", self._for_peer(qdb.encode(qdb.RM, path)), self._fire(path))

    def _for_peer(self, message: bytes) -> bytes:
        return message if self._peer_synced else b""

    # -- watches -------------------------------------------------------------------------------------------------------------

    def watch(self, client: Hashable, path: str) -> bool:
        """Exact path, or with `/` at the end all below. The same one twice fires twice. False: too many, or no path."""
        watches = self._watches.setdefault(client, [])
        if not path or len(watches) >= MAX_WATCHES:
            return False
        watches.append(path)
        return True

    def unwatch(self, client: Hashable, path: str) -> bool:
        """One watch less; False if there was none."""
        watches = self._watches.get(client, [])
        if path not in watches:
            return False
        watches.remove(path)
        return True

    def forget(self, client: Hashable) -> None:
        """The client is gone, and its watches."""
        self._watches.pop(client, None)

    def _fire(self, changed: str) -> tuple[Fired, ...]:
        return tuple(self._matches(changed))

    def _matches(self, changed: str) -> Iterator[Fired]:
        for client, watches in self._watches.items():
            for watch in watches:
                if changed == watch or (watch.endswith("/") and changed.startswith(watch)):
                    yield Fired(client, changed)
                elif changed.endswith("/") and watch.startswith(changed):
                    yield Fired(client, watch)    # it was below what was removed

    # -- messages ------------------------------------------------------------------------------------------------------------

    def request_sync(self) -> bytes:
        """A new vchan, our side is to copy the peer's: what to send first. What was here is dropped."""
        self._values.clear()
        self._charged.clear()
        self._charged_bytes = 0
        self._sync_requested = True
        self._peer_synced = True                          # it had everything before we asked
        return qdb.encode(qdb.MULTIREAD)

    def peer_lost(self) -> None:
        """The vchan is gone: nothing is forwarded until the next copy."""
        self._peer_synced = False
        self._sync_requested = False

    def handle_peer(self, message: qdb.Message) -> Outcome:
        """A message from the vchan. Raises PeerError for one that has no place there now."""
        match message.kind:
            case qdb.WRITE:
                return self._write(message, by_guest=self._side == HOST)
            case qdb.RM:
                # The error without an entry's absence: qubesdb-daemon drops the channel for RESP_ERROR_NOENT.
                return self._remove(message, absent=qdb.RESP_ERROR)
            case qdb.MULTIREAD if not message.path and not self._peer_synced:
                self._peer_synced = True
                return self._multiread(message)
            case qdb.RESP_MULTIREAD if self._sync_requested:
                return self._take_copy(message)
            case qdb.RESP_OK | qdb.RESP_ERROR | qdb.RESP_ERROR_NOENT:
                return Outcome()
        raise PeerError("unexpected message from the other side of QubesDB", message.kind)

    def handle_client(self, client: Hashable, message: qdb.Message) -> Outcome:
        """A message from a local client. Raises PeerError for a type that no client sends."""
        match message.kind:
            case qdb.READ:
                return self._read(message)
            case qdb.WRITE:
                return self._forwarded(message, self._write(message, by_guest=self._side == GUEST))
            case qdb.RM:
                return self._forwarded(message, self._remove(message, absent=qdb.RESP_ERROR_NOENT))
            case qdb.MULTIREAD:
                return self._multiread(message)
            case qdb.LIST:
                listed = [qdb.encode(qdb.RESP_LIST, path) for path in self.paths(message.path)]
                return Outcome(b"".join([*listed, qdb.encode(qdb.RESP_LIST)]))
            case qdb.WATCH:
                return _answer(message, qdb.RESP_OK if self.watch(client, message.path) else qdb.RESP_ERROR)
            case qdb.UNWATCH:
                return _answer(message, qdb.RESP_OK if self.unwatch(client, message.path) else qdb.RESP_ERROR_NOENT)
        raise PeerError("unexpected message from a client of QubesDB", message.kind)

    def _forwarded(self, message: qdb.Message, outcome: Outcome) -> Outcome:
        """The peer hears of a client's change, if there was one."""
        if outcome.reply[0] != qdb.RESP_OK:
            return outcome
        return outcome._replace(forward=self._for_peer(qdb.encode(*message)))

    def _read(self, message: qdb.Message) -> Outcome:
        value = self._values.get(message.path)
        if value is None:
            return _answer(message, qdb.RESP_ERROR_NOENT)
        return Outcome(qdb.encode(qdb.RESP_READ, message.path, value))

    def _write(self, message: qdb.Message, *, by_guest: bool) -> Outcome:
        if not self.store(message.path, message.value, by_guest=by_guest):
            return _answer(message, qdb.RESP_ERROR)
        return _answer(message, qdb.RESP_OK, self._fire(message.path))

    def _remove(self, message: qdb.Message, *, absent: int) -> Outcome:
        if not self.discard(message.path):
            return _answer(message, absent)
        return _answer(message, qdb.RESP_OK, self._fire(message.path))

    def _multiread(self, message: qdb.Message) -> Outcome:
        entries = self.entries(message.path)
        if not message.path:
            entries.reverse()                             # as qubesdb-daemon does: cheaper for its sorted list
        series = [qdb.encode(qdb.RESP_MULTIREAD, path, value) for path, value in entries]
        return Outcome(b"".join([*series, qdb.encode(qdb.RESP_MULTIREAD)]))

    def _take_copy(self, message: qdb.Message) -> Outcome:
        if not message.path:
            self._sync_requested = False
            return Outcome()
        if not self.store(message.path, message.value, by_guest=self._side == HOST):
            raise PeerError("an entry that can't be stored", message.path)
        return Outcome(b"", b"", self._fire(message.path))


def _answer(message: qdb.Message, kind: int, fired: tuple[Fired, ...] = ()) -> Outcome:
    return Outcome(qdb.encode(kind, message.path), b"", fired)
