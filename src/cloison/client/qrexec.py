"""The host's end of a qrexec call: a program or service in a qube, with its input, output, errors and exit status.

The request goes to the qube's warden over `run/qubes/qrexec.NAME`; with it goes one end of a socket pair, which becomes the
data channel (docs/architecture.md "A start" 6, reference/qrexec.md 5 and 7). A `Call` does what can be done and says what it waits
for; whoever drives it polls: `Poller` here, for any number of calls without threads, and `aio_program` in an event loop.
"""
from __future__ import annotations

import array
import math
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cloison.client.agent_wait import when_there
from cloison.client.ends import Memory, Sink, Source
from cloison.client.failures import BadCommand, QrexecError
from cloison.errors import PeerError, QubeNotRunning
from cloison.runtime.paths import Paths
from cloison.runtime.unix import connect as connect_unix
from cloison.wire import qrexec as wire

LOST = 255                               # exit status of a call whose channel went away before the status came
PROTOCOL = 125                           # exit status of a call whose qube broke the protocol
PIPE_CLOSED = 141                        # 128 + SIGPIPE: nobody reads our output any more
SIGNALLED = 128                          # an exit status above it names a signal
KILL = 9
ANSWER_TIME = 4.5                        # seconds a warden may take to accept a request, which it does whatever its qube does
QUIET = 5.0                              # seconds without anything that moves, after which a caller may look why
_READ = 1 << 17
_EOF = wire.end_of_stream(wire.STDIN)


class Ends(NamedTuple):
    """Our ends of a call's streams: file descriptors, memory, or None for nothing in and thrown away out.

    They stay the caller's to close, but an output pipe is closed (replaced by /dev/null) as soon as the qube has ended it.
    """

    stdin: int | Source | None = None
    stdout: int | Memory | None = None
    stderr: int | Memory | None = None
    clean_stdout: bool = False           # filter for a terminal
    clean_stderr: bool = False


_NOTHING = Ends()


class Call:
    """One call under way. `pump` drives it; `status` is None until it has ended.

    `lost`: it ended without a status of the program's; `status` is LOST or PROTOCOL then, which a program's own may be, too.
    """

    def __init__(self, channel: socket.socket, ends: Ends, prefix: bytes = b"") -> None:
        """`prefix` is sent before what comes from `ends.stdin`."""
        channel.setblocking(False)
        self.status: int | None = None
        self.lost = False
        self._channel = channel
        self._decoder = wire.Decoder(wire.FROM_SERVICE)
        self._exit: int | None = None
        self._ended = False              # nothing more comes from the channel
        self._input = ends.stdin
        self._sinks: dict[int, Sink | Memory] = {}
        for kind, end, clean in (
            (wire.STDOUT, ends.stdout, ends.clean_stdout), (wire.STDERR, ends.stderr, ends.clean_stderr),
        ):
            if end is not None:
                self._sinks[kind] = Sink(end, clean) if isinstance(end, int) else end
        # Before the peer's HELLO its version is unknown, so these chunks have the size that all versions take.
        chunks = b"".join(wire.data(wire.STDIN, prefix, version=2))
        self._outgoing = memoryview(wire.hello(wire.VERSION) + chunks + (b"" if self._input is not None else _EOF))

    def wants(self) -> dict[int, int]:
        """Descriptor -> poll mask."""
        masks: dict[int, int] = {}
        blocked = False
        for sink in self._sinks.values():
            if sink.blocked:
                blocked = True
                if sink.target is not None:
                    masks[sink.target] = select.POLLOUT
        takes = self._takes_input
        sends = bool(self._outgoing) or (takes and isinstance(self._input, Source) and self._input.ready)
        channel = (0 if blocked or self._ended else select.POLLIN) | (select.POLLOUT if sends else 0)
        if channel:
            masks[self._channel.fileno()] = channel
        if takes and isinstance(self._input, int):
            masks[self._input] = select.POLLIN
        return masks

    @property
    def _takes_input(self) -> bool:
        """More of it can be sent, once it is there."""
        return self._input is not None and not self._outgoing and bool(self._decoder.version) and not self._ended

    def ready(self, fds: set[int]) -> None:
        """Do what can be done now. Raises OSError only for an output of ours that can't be written, TooMuchOutput."""
        for kind, sink in list(self._sinks.items()):
            if sink.blocked and sink.target in fds:
                self._write(kind, sink)
        if self._takes_input and (self._input.ready if isinstance(self._input, Source) else self._input in fds):
            self._read_input()
        if self._outgoing:
            self._send()
        if self._channel.fileno() in fds and not self._blocked and not self._ended:
            self._receive()
        try:
            self._deliver()
        except PeerError:                # the qube loses this call and nothing else
            self.status, self.lost = PROTOCOL, True

    def signal(self, number: int) -> None:
        """Have the program's process group signalled, after the input that is on its way. An agent that can't do that does nothing.

        It reaches no program that has stopped reading its input while much of it is on its way; `close` does.
        """
        if self.status is None and not self._ended:
            self._outgoing = memoryview(bytes(self._outgoing) + wire.exit_code(SIGNALLED + number))
            self._send()

    def end_input(self) -> None:
        """Nothing more is read from `ends.stdin`; the program sees the end."""
        if self._input is not None:
            self._input = None
            self._outgoing = memoryview(bytes(self._outgoing) + _EOF)

    def close(self) -> None:
        """Ends the call for the qube too, if it is still under way: it gets SIGHUP, and SIGKILL when that does not help."""
        self._channel.close()
        for sink in self._sinks.values():
            sink.close()

    def kill(self) -> None:
        """End the program at once, and the call."""
        if self._channel.fileno() >= 0:
            self.signal(KILL)
        self.close()

    def fileno(self) -> int:
        """The channel."""
        return self._channel.fileno()

    @property
    def _blocked(self) -> bool:
        return any(sink.blocked for sink in self._sinks.values())

    def _read_input(self) -> None:
        limit = wire.MAX_CHUNK_2 if self._decoder.version == 2 else wire.MAX_CHUNK
        assert self._input is not None
        try:
            data = self._input.read(limit) if isinstance(self._input, Source) else os.read(self._input, limit)
        except BlockingIOError:
            return
        except OSError:                  # a terminal that went away, a folder: the same to the qube as its end
            data = b""
        if data:
            self._outgoing = memoryview(wire.HEADER.pack(wire.STDIN, len(data)) + data)
        else:
            self._input = None
            self._outgoing = memoryview(_EOF)

    def _send(self) -> None:
        try:
            self._outgoing = self._outgoing[self._channel.send(self._outgoing):]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):   # the service reads no more; what it still says is worth reading
            self._outgoing = memoryview(b"")
            self._input = None

    def _receive(self) -> None:
        try:
            data = self._channel.recv(_READ)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self._decoder.feed(data)
        else:
            self._ended = True

    def _deliver(self) -> None:
        """Hand on messages until a sink is full or no whole one is left; then see whether this was the end."""
        while not self._blocked and self.status is None and (message := self._decoder.next_message()):
            if isinstance(message, wire.Data):
                self._data(message.kind, message.payload)
            elif isinstance(message, wire.Exit):
                self._exit = message.status if 0 <= message.status <= LOST else LOST
                self._ended = True
        if self._ended and not self._blocked and self.status is None:
            self.status, self.lost = (LOST, True) if self._exit is None else (self._exit, False)

    def _data(self, kind: int, untrusted: bytes) -> None:
        sink = self._sinks.get(kind)
        if sink is None:
            return
        if untrusted:
            sink.put(untrusted)
            if sink.eager:
                self._write(kind, sink)
        else:
            del self._sinks[kind]
            sink.finish()

    def _write(self, kind: int, sink: Sink | Memory) -> None:
        try:
            sink.flush()
        except BrokenPipeError:
            sink.close()
            del self._sinks[kind]
            if kind == wire.STDOUT:
                self.status = PIPE_CLOSED


class Request:
    """A call that was asked for and is not yet accepted. `call` may be driven once `take` has said so."""

    def __init__(
        self, paths: Paths, qube: str, command: str, ends: Ends, prefix: bytes = b"", *, only_start: bool = False,
    ) -> None:
        """`command` is a whole command line with its user (reference/qrexec.md 10.1). Waits for nothing.

        Raises QubeNotRunning if nobody listens for that qube, QrexecError, BadCommand for a command that can't be sent.
        """
        try:
            request = wire.exec_command(wire.JUST_EXEC if only_start else wire.EXEC_CMDLINE, 0, 0, command)
        except ValueError as error:
            raise BadCommand(f"this command can't be sent: {error}") from error
        self.qube, self._decoder = qube, wire.Decoder(wire.TO_CLIENT)
        channel, far_end = socket.socketpair()
        with far_end:
            try:
                self.call = Call(channel, ends, prefix)
            except BaseException:
                channel.close()
                raise
            try:
                self.sock = _send_request(os.path.join(paths.qubes, f"qrexec.{qube}"), qube, request, far_end)
            except BaseException:        # with its copies of our ends: whoever reads from them must see the end
                self.call.close()
                raise

    def take(self, data: bytes) -> bool:
        """Whether the daemon has accepted it, by what came from `sock`. Raises QrexecError where it has not."""
        if not data:
            raise QrexecError(
                f"the qrexec daemon of {self.qube} refused the call: too many calls are under way, or the qube is ending")
        try:
            self._decoder.feed(data)
            while message := self._decoder.next_message():
                if isinstance(message, wire.Allocated):
                    return True
        except PeerError as error:
            raise not_taken(self.qube, error) from error
        return False

    def abandon(self) -> None:
        self.sock.close()
        self.call.close()


def _send_request(path: str, qube: str, request: bytes, far_end: socket.socket) -> socket.socket:
    """Reference/qrexec.md 5. Nothing is waited for before the request is out, so the warden wakes up once."""
    try:
        sock = connect_unix(path, own=True)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise QubeNotRunning(f"{qube} does not run, or its qrexec is not ready") from error
    except OSError as error:
        raise not_taken(qube, error) from error
    try:
        sock.settimeout(ANSWER_TIME)
        sock.sendall(wire.hello(wire.SOCKET_VERSION))
        # The descriptor travels with the request's first byte.
        descriptor = array.array("i", [far_end.fileno()])
        sent = sock.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
        if sent < len(request):          # after a short call the daemon has hung up by now: sending nothing would fail
            sock.sendall(request[sent:])
    except OSError as error:
        sock.close()
        raise not_taken(qube, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


def not_taken(qube: str, error: OSError | PeerError) -> QrexecError:
    if isinstance(error, TimeoutError):
        silent = QrexecError(f"the warden of {qube} does not answer, so no call can be made")
        silent.hint = f"qvm-kill {qube} ends it; it goes on by itself if its warden does."
        return silent
    return QrexecError(f"the qrexec daemon of {qube} did not take the call: {error}")


def start(
    paths: Paths, qube: str, command: str, ends: Ends, prefix: bytes = b"", *, only_start: bool = False,
    answer_time: float = ANSWER_TIME, agent_time: float | None = None,
) -> Call:
    """Begin a call to a running qube; one whose agent is being replaced is waited for. Raises as `Request`, AgentSilent, and
    QrexecError if it is refused.

    `only_start`: the call ends when the program has been started, with status 0. `agent_time`: seconds that a new agent may take.
    """
    request = when_there(paths, qube, lambda: Request(paths, qube, command, ends, prefix, only_start=only_start), agent_time)
    try:
        with request.sock as sock:
            sock.settimeout(answer_time)
            while not request.take(sock.recv(4096)):
                pass
    except OSError as error:
        request.abandon()
        raise not_taken(qube, error) from error
    except BaseException:
        request.abandon()
        raise
    return request.call


class Poller:
    """Drives calls, turn by turn, without threads."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._polled: dict[int, int] = {}

    def turn(self, calls: Sequence[Call], deadline: float | None = None) -> bool:
        """Wait until one of them can go on, and let it. False: the deadline (as `time.monotonic` counts) came first."""
        wanted: dict[int, int] = {}
        for call in calls:
            for fd, mask in call.wants().items():
                wanted[fd] = wanted.get(fd, 0) | mask
        for fd in self._polled.keys() - wanted.keys():
            self._poll.unregister(fd)
        for fd, mask in wanted.items():
            if self._polled.get(fd) != mask:
                self._poll.register(fd, mask)
        self._polled = wanted
        left = None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1000))
        found = self._poll.poll(left)
        ready = {fd for fd, _ in found}
        for call in calls:
            call.ready(ready)
        return bool(found) or left is None


def pump(calls: Sequence[Call], quiet: Callable[[], None] | None = None) -> list[int]:
    """Until all have ended; their exit statuses in order. On an exception (an interrupt too) the caller closes the calls.

    `quiet` is called whenever nothing has moved for QUIET seconds: the caller may want to see why.
    """
    poller = Poller()
    while active := [call for call in calls if call.status is None]:
        if not poller.turn(active, None if quiet is None else time.monotonic() + QUIET) and quiet is not None:
            quiet()
    return [LOST if call.status is None else call.status for call in calls]


def run(paths: Paths, qube: str, command: str, ends: Ends = _NOTHING, prefix: bytes = b"") -> int:
    """One call from its start to its end: the exit status."""
    call = start(paths, qube, command, ends, prefix)
    try:
        return pump([call])[0]
    finally:
        call.close()
