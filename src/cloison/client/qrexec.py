"""The host's end of a qrexec call: a program or service in a qube, with its input, output, errors and exit status.

The request goes to the qube's warden over `run/qubes/qrexec.NAME`; with it goes one end of a socket pair, which becomes the
data channel (docs/architecture.md "A start" 6, reference/qrexec.md 5 and 7). Bytes of the qube are `untrusted` until they
leave through a `Sink`, which replaces what could drive a terminal. One loop pumps any number of calls, without threads:
an end that can't be written to holds one chunk and stops what feeds it, and nothing else.
"""
from __future__ import annotations

import array
import os
import select
import socket
import stat
from collections.abc import Sequence
from typing import NamedTuple

from cloison.errors import CloisonError, PeerError, QubeNotRunning
from cloison.runtime.paths import Paths
from cloison.runtime.unix import connect as connect_unix
from cloison.wire import qrexec as wire

LOST = 255                               # exit status of a call whose channel went away before the status came
PROTOCOL = 125                           # exit status of a call whose qube broke the protocol
PIPE_CLOSED = 141                        # 128 + SIGPIPE: nobody reads our output any more
ANSWER_TIME = 10.0                       # seconds a warden may take to accept a request
_SAFE_WRITE = 4096                       # a pipe that polls writable takes this much without blocking (PIPE_BUF)
_READ = 1 << 17
_EOF = wire.end_of_stream(wire.STDIN)

# Every byte but printable ASCII, TAB, LF, CR, BS and BEL becomes `_`: no escape sequence reaches a terminal (QSB-013b).
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r\b\a"
TERMINAL_TABLE = bytes(byte if byte in _PRINTABLE else 0x5F for byte in range(256))


class QrexecError(CloisonError):
    """The qube's qrexec can't be reached or broke the protocol."""

    exit_status = 125


class BadCommand(CloisonError):
    """A command that no qrexec message can carry."""


class Ends(NamedTuple):
    """Our ends of a call's streams: file descriptors, or None for nothing in and thrown away out.

    They stay the caller's to close, but an output pipe is closed (replaced by /dev/null) as soon as the qube has ended it.
    """

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    clean_stdout: bool = False           # filter for a terminal
    clean_stderr: bool = False


_NOTHING = Ends()


class Sink:
    """Where bytes from a qube go. At most one chunk waits here; while it does, `blocked`.

    Writes never block on a pipe. The inherited description is left blocking, since the flag would hit every process that
    shares it; a pipe is opened anew instead, and what can't be (a socket, a terminal) gets small writes when it polls ready.
    """

    def __init__(self, fd: int, clean: bool) -> None:
        self.fd = fd
        self._clean = clean
        self._pending = memoryview(b"")
        mode = os.fstat(fd).st_mode
        self._own = _open_nonblocking(fd) if stat.S_ISFIFO(mode) else None
        self._is_pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._limit = wire.MAX_CHUNK if self._own is not None or stat.S_ISREG(mode) else _SAFE_WRITE

    @property
    def target(self) -> int:
        """The descriptor to poll."""
        return self.fd if self._own is None else self._own

    @property
    def blocked(self) -> bool:
        return bool(self._pending)

    @property
    def eager(self) -> bool:
        """A write can be tried without polling first."""
        return self._limit != _SAFE_WRITE

    def put(self, untrusted: bytes) -> None:
        """Only when not `blocked`; `flush` writes it."""
        self._pending = memoryview(untrusted.translate(TERMINAL_TABLE) if self._clean else untrusted)

    def flush(self) -> None:
        """Write what can be written now. Raises BrokenPipeError if nobody reads, OSError for a full disk."""
        try:
            while self._pending:
                self._pending = self._pending[os.write(self.target, self._pending[:self._limit]):]
                if not self.eager:
                    return               # poll again: a second write could block
        except BlockingIOError:
            pass

    def finish(self) -> None:
        """The qube has ended this stream: let a reader of the pipe see it."""
        self.close()
        if self._is_pipe:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self.fd, inheritable=False)
            os.close(null)

    def close(self) -> None:
        """Lets go of what was opened here; what still waits is lost."""
        self._pending = memoryview(b"")
        if self._own is not None:
            os.close(self._own)
            self._own = None


def _open_nonblocking(fd: int) -> int | None:
    """The same pipe through a description of our own, or None if the system doesn't let us."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


class Call:
    """One call under way. `pump` drives it; `status` is None until it has ended."""

    def __init__(self, channel: socket.socket, ends: Ends, prefix: bytes = b"") -> None:
        """`prefix` is sent before what comes from `ends.stdin`."""
        channel.setblocking(False)
        self.status: int | None = None
        self._channel = channel
        self._decoder = wire.Decoder(wire.FROM_SERVICE)
        self._exit: int | None = None
        self._ended = False              # nothing more comes from the channel
        self._input = ends.stdin
        self._sinks: dict[int, Sink] = {}
        if ends.stdout is not None:
            self._sinks[wire.STDOUT] = Sink(ends.stdout, ends.clean_stdout)
        if ends.stderr is not None:
            self._sinks[wire.STDERR] = Sink(ends.stderr, ends.clean_stderr)
        # Before the peer's HELLO its version is unknown, so these chunks have the size that all versions take.
        chunks = b"".join(wire.data(wire.STDIN, prefix, version=2))
        self._outgoing = memoryview(wire.hello(wire.VERSION) + chunks + (b"" if self._input is not None else _EOF))

    def wants(self) -> dict[int, int]:
        """Descriptor -> poll mask."""
        masks: dict[int, int] = {}
        blocked = False
        for sink in self._sinks.values():
            if sink.blocked:
                masks[sink.target] = select.POLLOUT
                blocked = True
        channel = (0 if blocked or self._ended else select.POLLIN) | (select.POLLOUT if self._outgoing else 0)
        if channel:
            masks[self._channel.fileno()] = channel
        if self._input is not None and not self._outgoing and self._decoder.version and not self._ended:
            masks[self._input] = select.POLLIN
        return masks

    def ready(self, fds: set[int]) -> None:
        """Do what can be done now. Raises OSError only for an output of ours that can't be written."""
        for kind, sink in list(self._sinks.items()):
            if sink.blocked and sink.target in fds:
                self._write(kind, sink)
        if self._input is not None and self._input in fds and not self._outgoing:
            self._read_input(self._input)
        if self._outgoing:
            self._send()
        if self._channel.fileno() in fds and not self._blocked and not self._ended:
            self._receive()
        try:
            self._deliver()
        except PeerError:                # the qube loses this call and nothing else
            self.status = PROTOCOL

    def close(self) -> None:
        """Ends the call for the qube too, if it is still under way."""
        self._channel.close()
        for sink in self._sinks.values():
            sink.close()

    @property
    def _blocked(self) -> bool:
        return any(sink.blocked for sink in self._sinks.values())

    def _read_input(self, fd: int) -> None:
        limit = wire.MAX_CHUNK_2 if self._decoder.version == 2 else wire.MAX_CHUNK
        try:
            data = os.read(fd, limit)
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
            self.status = LOST if self._exit is None else self._exit

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

    def _write(self, kind: int, sink: Sink) -> None:
        try:
            sink.flush()
        except BrokenPipeError:
            sink.close()
            del self._sinks[kind]
            if kind == wire.STDOUT:
                self.status = PIPE_CLOSED


def start(
    paths: Paths, qube: str, command: str, ends: Ends, prefix: bytes = b"", *, only_start: bool = False
) -> Call:
    """Begin a call to a running qube. `command` is a whole command line with its user (reference/qrexec.md 10.1).

    `only_start`: the call ends when the program has been started, with status 0. Raises QubeNotRunning if nobody listens for
    that qube, QrexecError if the request is refused, BadCommand for a command that can't be sent.
    """
    try:
        request = wire.exec_command(wire.JUST_EXEC if only_start else wire.EXEC_CMDLINE, 0, 0, command)
    except ValueError as error:
        raise BadCommand(f"this command can't be sent: {error}") from error
    channel, far_end = socket.socketpair()
    with far_end:
        try:
            call = Call(channel, ends, prefix)
        except BaseException:
            channel.close()
            raise
        try:
            _request(os.path.join(paths.qubes, f"qrexec.{qube}"), qube, request, far_end)
        except BaseException:            # with its copies of our ends: whoever reads from them must see the end
            call.close()
            raise
    return call


def _request(path: str, qube: str, request: bytes, far_end: socket.socket) -> None:
    """Reference/qrexec.md 5. Nothing is waited for before the request is out, so the warden wakes up once."""
    try:
        sock = connect_unix(path, own=True)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise QubeNotRunning(f"{qube} does not run, or its qrexec is not ready") from error
    with sock:
        sock.settimeout(ANSWER_TIME)
        try:
            sock.sendall(wire.hello(wire.SOCKET_VERSION))
            # The descriptor travels with the request's first byte.
            descriptor = array.array("i", [far_end.fileno()])
            sent = sock.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
            if sent < len(request):      # after a short call the daemon has hung up by now: sending nothing would fail
                sock.sendall(request[sent:])
            _await_port(sock, qube)
        except (OSError, PeerError) as error:
            raise QrexecError(f"the qrexec daemon of {qube} did not take the call: {error}") from error


def _await_port(sock: socket.socket, qube: str) -> None:
    """Until the daemon has accepted the request. Raises QrexecError when it hangs up instead."""
    decoder = wire.Decoder(wire.TO_CLIENT)
    while data := sock.recv(4096):
        decoder.feed(data)
        while message := decoder.next_message():
            if isinstance(message, wire.Allocated):
                return
    raise QrexecError(f"the qrexec daemon of {qube} refused the call: too many calls are under way, or the qube is ending")


def pump(calls: Sequence[Call]) -> list[int]:
    """Until all have ended; their exit statuses in order. On an exception (an interrupt too) the caller closes the calls."""
    poll = select.poll()
    polled: dict[int, int] = {}
    while active := [call for call in calls if call.status is None]:
        wanted: dict[int, int] = {}
        for call in active:
            for fd, mask in call.wants().items():
                wanted[fd] = wanted.get(fd, 0) | mask
        for fd in polled.keys() - wanted.keys():
            poll.unregister(fd)
        for fd, mask in wanted.items():
            if polled.get(fd) != mask:
                poll.register(fd, mask)
        polled = wanted
        ready = {fd for fd, _ in poll.poll()}
        for call in active:
            call.ready(ready)
    return [LOST if call.status is None else call.status for call in calls]


def run(paths: Paths, qube: str, command: str, ends: Ends = _NOTHING, prefix: bytes = b"") -> int:
    """One call from its start to its end: the exit status."""
    call = start(paths, qube, command, ends, prefix)
    try:
        return pump([call])[0]
    finally:
        call.close()
