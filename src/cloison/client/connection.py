"""Calls to qubesd: one connection a call, as the Admin API has it (reference/admin-api.md 1).

An exception that qubesd answers with is raised as the class of `cloison.errors` that has its wire name, so that a caller
tells failures apart by class; a name nobody knows here becomes `ServerError`.
"""
from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from cloison import errors
from cloison.errors import CloisonError, PeerError
from cloison.runtime.paths import Paths
from cloison.runtime.unix import connect
from cloison.wire.admin import Event, EventDecoder, Failure, Request, encode_request, parse_reply

if TYPE_CHECKING:                        # it imports this module, and tools that make no use of it don't wait for it
    from cloison.client.calls import AdminCall

T = TypeVar("T")

MAX_REPLY = 64 << 20                     # bytes; qubesd is trusted, this only keeps a fault from eating the host
PARALLEL = 32                            # calls under way at once
_CHUNK = 1 << 16
SLOW, LONG_SLOW = 5.0, 60.0              # s without an answer until whoever waits is told; of calls that may well take their time
LONG = frozenset((                       # those: they boot or copy
    "admin.vm.Start", "admin.vm.Shutdown", "admin.vm.volume.CloneTo", "internal.vm.volume.ImportEnd", "internal.cloison.SealRoot"))
_ENDED = "qubesd ended during the call"


class NoDaemon(CloisonError):
    """Nobody answers on qubesd's socket."""

    hint = "Start it with: cloison up"


class OutOfReach(CloisonError):
    """Something is in the way to qubesd's socket, or somebody else's daemon listens there."""

    hint = "CLOISON_ROOT, or else XDG_RUNTIME_DIR, must name a folder of yours; a qubesd serves the user who started it."


class ServerError(CloisonError):
    """An exception of a class that this version does not know. `class_name` is what qubesd sent."""

    def __init__(self, class_name: str, message: str) -> None:
        super().__init__(message)
        self.class_name = class_name


class Connection:
    """Where qubesd is. Holds nothing open between calls. `source`: the qube that the calls are made for. `slow`: called once with
    the name of a call and its qube, when the answer keeps whoever waits for it waiting.
    """

    def __init__(self, paths: Paths | None = None, source: str = "dom0", slow: Callable[[str, str], object] | None = None) -> None:
        self.paths = paths or Paths.from_environment()
        self.source = source
        self._slow = slow

    def call(self, dest: str, method: str, argument: str = "", payload: bytes = b"", *, internal: bool = False) -> bytes:
        """The reply's content. Raises a CloisonError for whatever went wrong, NoDaemon if qubesd does not run."""
        return self.begin(dest, method, argument, payload, internal=internal).result()

    def do(self, call: AdminCall[T]) -> T:
        """A call of `cloison.client.calls`, and its answer. Raises as `call` does."""
        try:
            return call.answer(self.call(*call[:4]))
        except CloisonError as error:
            return call.answer(error)

    def begin(self, dest: str, method: str, argument: str = "", payload: bytes = b"", *, internal: bool = False) -> Pending:
        """Send a call without waiting for its reply."""
        request = encode_request(Request(method, argument, self.source, "name", dest, payload))
        sock = self._send(request, "qubesd.internal.sock" if internal else "qubesd.sock")
        return Pending(sock, LONG_SLOW if method in LONG else SLOW, lambda: self._tell_slow(method, dest))

    def _tell_slow(self, method: str, dest: str) -> None:
        tell, self._slow = self._slow, None
        if tell is not None:
            tell(method, dest)

    def stream(self, dest: str, method: str, argument: str = "", payload: bytes = b"") -> Stream:
        """A call that is answered by events, and lasts until one side closes."""
        return Stream(self.begin(dest, method, argument, payload).detach())

    def gather(self, requests: Iterable[tuple[str, str, str]]) -> Iterator[bytes | CloisonError]:
        """Many calls (dest, method, argument), PARALLEL of them under way at once; contents and failures in the order given."""
        waiting: list[Pending] = []
        for dest, method, argument in requests:
            waiting.append(self.begin(dest, method, argument))
            if len(waiting) >= PARALLEL:
                yield _outcome(waiting.pop(0))
        for pending in waiting:
            yield _outcome(pending)

    def _send(self, request: bytes, name: str) -> socket.socket:
        path = self.paths.socket(name)
        try:
            sock = connect(path, own=True)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NoDaemon(f"qubesd is not running: nothing answers at {path}") from error
        except OSError as error:
            raise OutOfReach(f"qubesd can't be reached at {path}: {error.strerror}") from error
        try:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass                         # refused before it was read whole: the reply, if any, says why
        except ConnectionError as error:
            sock.close()
            raise NoDaemon(_ENDED) from error
        except BaseException:
            sock.close()
            raise
        return sock


class Pending:
    """A call under way. `result` waits for its end; `fileno` is readable when something has come."""

    def __init__(self, sock: socket.socket, patience: float, slow: Callable[[], None]) -> None:
        self._sock, self._patience, self._slow = sock, patience, slow
        self._reply = bytearray()

    def fileno(self) -> int:
        return self._sock.fileno()

    def detach(self) -> socket.socket:
        """The connection itself, for a reply that is a stream."""
        return self._sock

    def read(self) -> bool:
        """Read once; True when the reply is whole. Raises PeerError for one beyond MAX_REPLY."""
        data = self._sock.recv(_CHUNK)
        self._reply += data
        if len(self._reply) > MAX_REPLY:
            raise PeerError("reply too long", len(self._reply))
        return not data

    def result(self) -> bytes:
        """Reads what is missing. Raises the failure that qubesd answered with."""
        with self._sock:
            if not wait(self, self._patience):
                self._slow()
            try:
                while not self.read():
                    pass
            except ConnectionResetError as error:
                raise NoDaemon(_ENDED) from error
        return parsed(bytes(self._reply))


class Stream:
    """Events as they come. Closing it ends the call."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = EventDecoder()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def __iter__(self) -> Iterator[Event]:
        """Ends when qubesd closes. Raises the failure that it ends with."""
        return self.until(None)

    def until(self, deadline: float | None) -> Iterator[Event]:
        """The same, and it ends when nothing more has come by then. `deadline`: as `time.monotonic` counts."""
        while True:
            while event := self._decoder.next_event():
                yield event
            if deadline is not None and not wait(self, max(0.0, deadline - time.monotonic())):
                return
            try:
                data = self._sock.recv(_CHUNK)
            except ConnectionResetError as error:
                raise NoDaemon(_ENDED) from error
            if not data:
                break
            self._decoder.feed(data)
        if failure := self._decoder.finish():
            raise server_error(failure)


def _outcome(pending: Pending) -> bytes | CloisonError:
    try:
        return pending.result()
    except CloisonError as error:
        return error


def wait(pending: Pending | Stream, seconds: float) -> bool:
    """Whether something came within that time."""
    poll = select.poll()
    poll.register(pending, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def parsed(reply: bytes) -> bytes:
    """The content of a whole reply. Raises the failure that it is."""
    if not reply:
        raise NoDaemon("qubesd closed the connection without an answer")
    result = parse_reply(reply)
    if isinstance(result, Failure):
        raise server_error(result)
    return result


def server_error(failure: Failure) -> CloisonError:
    """The exception to raise for what qubesd answered, with the hint that came with it."""
    error = _of_class(failure)
    if failure.hint:
        error.hint = failure.hint
    return error


def _of_class(failure: Failure) -> CloisonError:
    if failure.class_name == CloisonError.wire:
        return CloisonError(failure.message)
    classes = (value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, CloisonError))
    # The later of two with one name: BadRequest, not PeerError, which is about a peer of ours.
    known = {kind.wire: kind for kind in classes}.get(failure.class_name)
    return known(failure.message) if known else ServerError(failure.class_name, failure.message)
