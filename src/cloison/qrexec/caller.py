"""The caller's end of a data channel, for programs whose start is their user's time: `qrexec-client`, `qrexec-client-vm`.

Only built-in modules are imported, and none of `typing` and `socket`, which cost more than the interpreter: so what little is
needed of `wire/qrexec.py` stands here again, and a test holds it to that. Facts: reference/qrexec.md 7.

What comes from the channel is untrusted until a `Sink` writes it, which on a terminal replaces what could drive it (QSB-013b).
An end that can't be written to holds one chunk, and stops what feeds it.
"""
from __future__ import annotations

import _socket
import os
import select
import stat
import struct

TYPE_CHECKING = False                    # what types need costs a start under emulation
if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = struct.Struct("<II")
NUMBER = struct.Struct("<I")
STATUS = struct.Struct("<i")
STDIN, STDOUT, STDERR, EXIT_CODE, HELLO = 0x190, 0x191, 0x192, 0x193, 0x300
VERSION = 4
CHUNKS = {2: 4096, 3: 65536, 4: 65536}   # bytes in one message, by protocol version
PROBLEM = 125                            # exit status: the other side broke the protocol
LOST = 255                               # exit status: the channel went before the status came
_SAFE_WRITE = 4096                       # what a terminal that polls writable is given at once
_BUFFER = 1 << 18

# Every byte but printable ASCII, TAB, LF, CR, BS and BEL becomes `_`.
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r\b\a"
TERMINAL_TABLE = bytes(byte if byte in _PRINTABLE else 0x5F for byte in range(256))


class ProtocolError(Exception):
    """The other side left the protocol."""


class NobodyCame(Exception):
    """The service's end did not connect in time."""


class _Listener(_socket.socket):
    """It accepts by the built-in module's own name for that, which gives a descriptor."""

    if TYPE_CHECKING:
        def _accept(self) -> tuple[int, object]: ...


def listen(domain: int, port: int, patience: float | None) -> _socket.socket:
    """As vchan server on a Unix socket (2.2): the one client. `patience`: seconds, None for ever. Raises NobodyCame, OSError."""
    folder = os.environ.get("VCHAN_SOCKET_DIR") or "/var/run/vchan"
    own = os.environ.get("VCHAN_DOMAIN") or "0"
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = f"/proc/self/fd/{fd}/vchan.{own}.{domain}.{port}.sock"
    temporary = f"{path}.{os.getpid()}"
    listener = _Listener(_socket.AF_UNIX, _socket.SOCK_STREAM)
    listener.bind(temporary)
    listener.listen(1)
    os.rename(temporary, path)
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    try:
        if not poll.poll(None if patience is None else patience * 1000):
            raise NobodyCame(f"the service's end did not connect within {patience:g} s")
        accepted, _ = listener._accept()
    finally:
        os.unlink(path)
        listener.close()
        os.close(fd)
    return _socket.socket(fileno=accepted)


class Sink:
    """Where untrusted bytes go: a descriptor that is written to without blocking and without changing its flags for others."""

    def __init__(self, fd: int, *, clean: bool = False, own: bool = False) -> None:
        """`own`: a socket that nobody else writes to, so that its other end is told when the stream ends."""
        self.fd = self._target = fd
        self._clean, self._own = clean, own
        self._waiting = memoryview(b"")
        self._socket: _socket.socket | None = None
        mode = os.fstat(fd).st_mode
        self._limit = _SAFE_WRITE if stat.S_ISCHR(mode) else _BUFFER
        if stat.S_ISSOCK(mode):
            self._socket = _socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(mode):
            try:
                self._target = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                self._limit = _SAFE_WRITE    # PIPE_BUF: a pipe that polls writable takes it whole

    @property
    def blocked(self) -> bool:
        return bool(self._waiting)

    def put(self, untrusted: memoryview) -> None:
        """Only when not `blocked`. Raises OSError when nobody reads, or the disk is full."""
        self._waiting = memoryview(bytes(untrusted).translate(TERMINAL_TABLE)) if self._clean else untrusted
        self.flush()
        if self._waiting and not self._clean:
            self._waiting = memoryview(bytes(self._waiting))     # what it was a part of is read into again

    def flush(self) -> None:
        """Write what can be written now. Raises OSError."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._write(self._waiting[:self._limit]):]
                if self._limit == _SAFE_WRITE:
                    return                   # a second write could block
        except BlockingIOError:
            return

    def _write(self, data: memoryview) -> int:
        return os.write(self._target, data) if self._socket is None else self._socket.send(data, _socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Let a reader see the end. The descriptor's number stays taken."""
        if self._socket is not None and self._own:
            try:
                self._socket.shutdown(_socket.SHUT_WR)
            except OSError:
                pass                         # its reader is gone already
        self.release()
        if not self._own:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, self.fd)
            os.close(null)

    def release(self) -> None:
        """Let go of what was opened here. What still waits is lost."""
        self._waiting = memoryview(b"")
        if self._socket is not None:
            self._socket.close()
        elif self._target != self.fd:
            os.close(self._target)


class Caller:
    """One call over a connected channel. `run` it to its end."""

    def __init__(
        self, channel: _socket.socket, source: int | None, stdout: Sink | None, stderr: Sink | None, prefix: bytes = b"",
    ) -> None:
        """`source`: descriptor of the input, None for none. `prefix` goes before it. The sinks None: thrown away."""
        channel.setblocking(False)
        self._channel, self._source = channel, source
        self._sinks = {kind: sink for kind, sink in ((STDOUT, stdout), (STDERR, stderr)) if sink is not None}
        self._buffer = bytearray(_BUFFER)
        self._start = self._end = 0              # of what is unread in the buffer
        self._version = 0
        self._status: int | None = None
        self._over = False                       # nothing more comes from the channel
        self._output_ended = stdout is None
        self._outgoing = [memoryview(HEADER.pack(HELLO, 4) + NUMBER.pack(VERSION))]
        for start in range(0, len(prefix), CHUNKS[2]):       # the size that all versions take
            self._message(memoryview(prefix)[start:start + CHUNKS[2]])
        if source is None:
            self._message(b"")

    def run(self) -> int:
        """The service's exit status, LOST or PROBLEM. Raises OSError for an output of ours that can't be written."""
        try:
            while not self._finished():
                self._step()
        except ProtocolError:
            return PROBLEM
        finally:
            for sink in self._sinks.values():
                sink.release()
        return LOST if self._status is None else self._status

    def _finished(self) -> bool:
        if any(sink.blocked for sink in self._sinks.values()) or self._start != self._end:
            return False
        return self._over or (self._status is not None and self._output_ended and not self._outgoing)

    def _step(self) -> None:
        """Wait until something can be done, and do it."""
        poll = select.poll()
        blocked = [sink for sink in self._sinks.values() if sink.blocked]
        for sink in blocked:
            poll.register(sink.fd, select.POLLOUT)
        mask = (0 if blocked or self._over else select.POLLIN) | (select.POLLOUT if self._outgoing else 0)
        if mask:
            poll.register(self._channel.fileno(), mask)
        if self._source is not None and not self._outgoing and self._version:
            poll.register(self._source, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if self._source in ready and self._source is not None and not self._outgoing:
            self._read_source(self._source)
        if self._outgoing:
            self._send()
        for kind, sink in list(self._sinks.items()):
            if sink.blocked and sink.fd in ready:
                self._write(kind, sink)
        if self._channel.fileno() in ready and not self._over and not blocked:
            self._receive()
        self._deliver()

    # -- to the service ------------------------------------------------------------------------------------------------

    def _message(self, data: bytes | memoryview) -> None:
        """A part of the input, or its end."""
        self._outgoing.append(memoryview(HEADER.pack(STDIN, len(data))))
        if data:
            self._outgoing.append(memoryview(data))

    def _read_source(self, source: int) -> None:
        try:
            data = os.read(source, CHUNKS[self._version])
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._message(data)
        if not data:
            self._source = None

    def _send(self) -> None:
        try:
            sent = os.writev(self._channel.fileno(), self._outgoing)
        except BlockingIOError:
            return
        except OSError:                          # the service is gone; what it sent is still read
            self._outgoing.clear()
            self._source = None
            return
        while self._outgoing and sent >= len(self._outgoing[0]):
            sent -= len(self._outgoing.pop(0))
        if sent:
            self._outgoing[0] = self._outgoing[0][sent:]

    # -- from the service ----------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:                        # a message that is there in part: a chunk fits behind its beginning
            rest = self._buffer[self._start:self._end]
            self._buffer[:len(rest)] = rest
            self._start, self._end = 0, len(rest)
        try:
            size = os.readv(self._channel.fileno(), [memoryview(self._buffer)[self._end:]])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        self._end += size
        if not size:
            self._over = True
            self._source = None
            self._outgoing.clear()

    def _deliver(self) -> None:
        """Whole messages, until an output blocks. Raises ProtocolError."""
        while not any(sink.blocked for sink in self._sinks.values()):
            body = self._start + HEADER.size
            if self._end < body:
                break
            kind, length = HEADER.unpack_from(self._buffer, self._start)
            self._check(kind, length)
            if self._end < body + length:
                break
            self._start = body + length
            self._handle(kind, memoryview(self._buffer)[body:body + length])
        else:
            return
        if self._over:
            self._start = self._end              # the rest of a message that will never be whole

    def _check(self, kind: int, length: int) -> None:
        if not self._version:
            if kind != HELLO or length != NUMBER.size:
                raise ProtocolError
        elif kind not in (STDIN, STDOUT, STDERR, EXIT_CODE) or length > CHUNKS[self._version]:
            raise ProtocolError

    def _handle(self, kind: int, untrusted: memoryview) -> None:
        if kind == HELLO:
            self._version = min(VERSION, NUMBER.unpack(untrusted)[0])
            if self._version not in CHUNKS:
                raise ProtocolError
        elif kind == EXIT_CODE:
            self._exited(STATUS.unpack(untrusted)[0] if len(untrusted) == STATUS.size else LOST)
        else:
            kind = STDOUT if kind == STDIN else kind
            sink = self._sinks.get(kind)
            if sink is not None and untrusted:
                self._put(kind, sink, untrusted)
            elif not untrusted:
                self._output_over(kind)

    def _exited(self, status: int) -> None:
        self._status = status if 0 <= status <= LOST else LOST
        if self._source is not None:
            self._source = None
            self._message(b"")

    def _put(self, kind: int, sink: Sink, untrusted: memoryview) -> None:
        try:
            sink.put(untrusted)
        except (BrokenPipeError, ConnectionResetError):
            self._output_over(kind)

    def _write(self, kind: int, sink: Sink) -> None:
        try:
            sink.flush()
        except (BrokenPipeError, ConnectionResetError):
            self._output_over(kind)

    def _output_over(self, kind: int) -> None:
        """The service has ended that stream, or nobody reads it here any more."""
        if kind == STDOUT:
            self._output_ended = True
        sink = self._sinks.pop(kind, None)
        if sink is not None:
            sink.close()


def run_joined(
    start: Callable[[_socket.socket, _socket.socket, _socket.socket, _socket.socket], int], channel: _socket.socket, stderr: Sink,
    prefix: bytes,
) -> int:
    """A call whose input is what a program of ours writes; the program reads what the service does.

    `start` gets the program's stdin and stdout, and our ends of them; its result is the process id. The service's status, or else
    the program's.
    """
    to_program, program_stdin = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    from_program, program_stdout = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    to_program.setblocking(False)
    from_program.setblocking(False)
    pid = start(program_stdin, program_stdout, to_program, from_program)
    program_stdin.close()
    program_stdout.close()
    status = Caller(channel, from_program.fileno(), Sink(to_program.fileno(), own=True), stderr, prefix).run()
    to_program.close()
    from_program.close()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status or (code if code >= 0 else 128 - code)
