"""The service's end of a data channel: one program, or one connection to a socket service (reference/qrexec.md 7).

A qube's agent, its fork server and the host's daemon all serve calls with it. Back-pressure both ways: a service that doesn't
read keeps its caller's credit; a caller that doesn't read keeps the service's output in the service.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable

from cloison.errors import PeerError
from cloison.qrexec import stderr_log
from cloison.qrexec.lookup import FAILED, CannotStart
from cloison.qrexec.process import Connected, Started
from cloison.runtime.children import when_ended
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.port import Channels
from cloison.wire import qrexec
from cloison.wire.mux import Address

BUSY_AGAIN = 0.02                        # s until a socket service with a full queue is tried again
_CANDIDATE = 0                           # no message's kind: a program's stdin, watched for output (reference/qrexec.md 7.4)

# What a service writes is read here, behind its header, and leaves from here: one thread, and no callback waits.
_frame = bytearray(qrexec.HEADER.size + qrexec.MAX_CHUNK)
_view = memoryview(_frame)

# Programs that may signal that their stdin serves both directions. One process, one signal: which program sent it can't be told
# for sure (it may have ended, signals merge), so each that is running is then watched for bytes on its stdin, which else has none.
_programs: set[Call] = set()
_signalled: list[int] = []
_hearing: list[asyncio.AbstractEventLoop] = []


def _hear_signals(loop: asyncio.AbstractEventLoop) -> None:
    if _hearing == [loop]:
        return
    _hearing[:] = [loop]
    _programs.clear()
    loop.add_signal_handler(signal.SIGUSR1, _one_socket)
    signal.signal(signal.SIGUSR1, _mark)         # runs before the next callback; `_one_socket` is such a callback


def _mark(number: int, _frame: object) -> None:
    _signalled[:] = [number]


def _one_socket() -> None:
    for call in _programs:
        call.may_use_one_socket()


class Call:
    """It opens the data channel as vchan client and says hello; then either `serve` or `refuse`, now or later.

    It ends when the service has ended and so have its outputs, or when the caller is gone; `on_end` is called once then.
    """

    def __init__(
        self, channels: Channels, address: Address, on_end: Callable[[], None], *, log: str = "", send_stderr: bool = True,
        quiet: bool = False,
    ) -> None:
        """`log`: whose stderr this is in this system's log; empty for none. `quiet`: JUST_EXEC, only a status is sent."""
        self._channels, self._on_end, self._quiet = channels, on_end, quiet
        self._log = stderr_log.Log(log) if log else None
        self._send_stderr = send_stderr and not quiet
        self._loop = asyncio.get_running_loop()
        self._decoder = qrexec.Decoder(qrexec.FROM_CALLER)
        self._unsent: deque[bytes | memoryview] = deque()
        self._unconsumed = 0
        self._to_service: deque[memoryview] = deque()
        self._input: socket.socket | None = None     # towards the service
        self._input_ended = False                    # the caller has sent the end of its input
        self._writing_input = False
        self._sources: dict[int, int] = {}           # descriptor of an output -> message kind
        self._reading = False
        self._ready = False                          # the service takes input
        self._started: Started | None = None
        self._connected: Connected | None = None
        self._stream: socket.socket | None = None    # to a socket service
        self._unwatch: Callable[[], None] | None = None      # set while its end is waited for
        self._status: int | None = None              # of the service
        self._exit_sent = False
        self.status: int | None = None               # what the caller is told
        self._over = False
        self._channel: int | None = None
        self._channel = channels.open(address, self)
        self._send(qrexec.hello(qrexec.VERSION))

    # -- what serves it ------------------------------------------------------------------------------------------------

    def serve(self, service: Started | Connected) -> None:
        """Join the caller with what serves it, which belongs to this call from now on."""
        if isinstance(service, Started):
            self._serve_program(service)
        elif self._over:
            if service.stream is not None:
                service.stream.close()
        else:
            self._serve_stream(service)

    def refuse(self, error: CannotStart | PeerError) -> None:
        """Nothing serves it."""
        print(f"call refused: {error}", file=sys.stderr)
        kinds = (qrexec.STDOUT, qrexec.STDERR) if self._send_stderr else (qrexec.STDERR, qrexec.STDOUT)   # as the reference does
        for kind in () if self._quiet else kinds:
            self._send(qrexec.end_of_stream(kind))
        self._exit(error.status if isinstance(error, CannotStart) else FAILED)

    def _serve_program(self, started: Started) -> None:
        self._started = started
        started.stdin.setblocking(False)
        started.stdout.setblocking(False)
        os.set_blocking(started.stderr, False)
        when_ended(started.process.pid, self._exited)
        if self._quiet or self._over:
            started.stdout.close()
            started.stdin.close()
            self._follow_errors(started.stderr)
            self._exit(0)
            return
        self._input, self._ready = started.stdin, True
        _hear_signals(self._loop)
        _programs.add(self)
        self._sources = {started.stdout.fileno(): qrexec.STDOUT, started.stderr: qrexec.STDERR}
        if not self._send_stderr:
            self._send(qrexec.end_of_stream(qrexec.STDERR))
        self._read_sources(True)
        self._write_input()

    def _serve_stream(self, connected: Connected) -> None:
        self._connected = connected
        if connected.greeting:
            self._to_service.appendleft(memoryview(connected.greeting))
        if not self._quiet:
            self._send(qrexec.end_of_stream(qrexec.STDERR))
        if connected.stream is None:
            self._loop.call_later(BUSY_AGAIN, self._connect_again, connected)
        else:
            self._await_connection(connected.stream)

    def _connect_again(self, connected: Connected) -> None:
        if self._over:
            return
        try:
            self._await_connection(connected.connect())
        except BlockingIOError:
            self._loop.call_later(BUSY_AGAIN, self._connect_again, connected)
        except OSError as error:
            self._not_connected(error.errno or 0)

    def _await_connection(self, stream: socket.socket) -> None:
        self._stream = self._input = stream
        self._loop.add_writer(stream, self._connection_made, stream)

    def _connection_made(self, stream: socket.socket) -> None:
        self._loop.remove_writer(stream)
        failure = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            self._not_connected(failure)
            return
        if self._quiet:
            with contextlib.suppress(OSError):
                stream.send(b"".join(self._to_service))      # some hundred bytes into an empty buffer
            self._to_service.clear()
            self._exit(0)
            return
        self._ready = True
        self._sources = {stream.fileno(): qrexec.STDOUT}
        self._read_sources(True)
        self._write_input()

    def _not_connected(self, number: int) -> None:
        print(f"call refused: the service's socket: {os.strerror(number)}", file=sys.stderr)
        if not self._quiet:
            self._send(qrexec.end_of_stream(qrexec.STDOUT))
        self._exit(FAILED)

    # -- from the service ----------------------------------------------------------------------------------------------

    def _read_sources(self, on: bool) -> None:
        if on == self._reading or not self._sources:
            return
        self._reading = on
        for fd, kind in self._sources.items():
            if on:
                self._loop.add_reader(fd, self._readable, fd, kind)
            else:
                self._loop.remove_reader(fd)

    def _readable(self, fd: int, kind: int) -> None:
        if kind == _CANDIDATE:
            self._switch(fd)
        else:
            self._pass(fd, kind)

    def _pass(self, fd: int, kind: int) -> bool:
        """One read of an output, handed on; False when there is nothing now."""
        limit = qrexec.MAX_CHUNK if self._decoder.version > 2 else qrexec.MAX_CHUNK_2     # 0: it has not said yet
        try:
            size = os.readv(fd, [_view[qrexec.HEADER.size:qrexec.HEADER.size + limit]])
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        if not size:
            self._output_ended(fd, kind)
            return True
        end = qrexec.HEADER.size + size
        if kind == qrexec.STDERR:
            if self._log is not None:
                self._log.write(bytes(_view[qrexec.HEADER.size:end]))
            if not self._send_stderr:
                return True
        qrexec.HEADER.pack_into(_frame, 0, kind, size)
        self._send(_view[:end])
        return True

    def _output_ended(self, fd: int, kind: int) -> None:
        if kind == qrexec.STDOUT and self._started is not None and self._one_socket_after(fd):
            return
        self._loop.remove_reader(fd)
        self._sources.pop(fd, None)
        if kind == qrexec.STDERR and self._log is not None:
            self._log.write(b"")
        if kind == qrexec.STDOUT or self._send_stderr:
            self._send(qrexec.end_of_stream(kind))
        if self._stream is not None and not self._input_ended:
            self._unwatch = watch_hangup(self._stream, self._hung_up)
        self._maybe_exit()

    def _hung_up(self) -> None:
        """The socket service reads no more either: nothing of its caller's input is waited for."""
        self._input_ended = True
        self._close_input()
        self._maybe_exit()

    def _exited(self) -> None:
        assert self._started is not None
        code = self._started.process.wait()
        self._status = code if code >= 0 else 128 - code
        if not self._over and not self._exit_sent:
            self._close_input()
            self._maybe_exit()

    def _follow_errors(self, fd: int) -> None:
        """A program that nobody listens to: what it complains of still goes to the log, or nowhere."""
        if self._log is None:
            os.close(fd)
            return
        log = self._log

        def complaint() -> None:
            with contextlib.suppress(BlockingIOError):
                data = os.read(fd, 4096)
                log.write(data)
                if not data:
                    self._loop.remove_reader(fd)
                    os.close(fd)

        self._loop.add_reader(fd, complaint)

    # -- one socket for both directions --------------------------------------------------------------------------------

    def may_use_one_socket(self) -> None:
        """A program, perhaps this one, has signalled that it uses its stdin both ways."""
        if self._started is None or qrexec.STDOUT not in self._sources.values():
            return
        fd = self._started.stdin.fileno()
        if fd not in self._sources:
            self._sources[fd] = _CANDIDATE
            if self._reading:
                self._loop.add_reader(fd, self._readable, fd, _CANDIDATE)

    def _switch(self, fd: int) -> None:
        """The program has written to its stdin, or closed it. What it wrote to its stdout before goes first."""
        if not self._has_written_to_stdin():
            self._loop.remove_reader(fd)
            del self._sources[fd]
            return
        stdout = next((each for each, kind in self._sources.items() if kind == qrexec.STDOUT), None)
        if stdout is not None and self._pass(stdout, qrexec.STDOUT):
            return
        if stdout is not None:
            self._use_one_socket(fd, stdout)

    def _one_socket_after(self, stdout: int) -> bool:
        """Its stdout has ended: does it go on on its stdin? The signal may have come in this very turn of the loop."""
        if _signalled:
            self.may_use_one_socket()
        fd = next((each for each, kind in self._sources.items() if kind == _CANDIDATE), None)
        if fd is None or not self._has_written_to_stdin():
            return False
        self._use_one_socket(fd, stdout)
        return True

    def _has_written_to_stdin(self) -> bool:
        assert self._started is not None
        try:
            return bool(self._started.stdin.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _use_one_socket(self, fd: int, stdout: int) -> None:
        self._loop.remove_reader(stdout)
        del self._sources[stdout]
        self._sources[fd] = qrexec.STDOUT
        if self._reading:
            self._loop.add_reader(fd, self._readable, fd, qrexec.STDOUT)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _maybe_exit(self) -> None:
        if self._exit_sent:
            return
        if self._connected is not None:
            config = self._connected.config
            ended = not self._sources
            if not ended and self._input_ended and not self._to_service and config.exit_on_client_eof:
                self._send(qrexec.end_of_stream(qrexec.STDOUT))
            elif not ended or not (self._input_ended or config.exit_on_service_eof):
                return
            self._exit(0)
        elif self._status is not None and not any(self._sources.values()):
            self._exit(self._status)

    def _exit(self, status: int) -> None:
        self._exit_sent, self.status = True, status
        self._read_sources(False)
        self._sources.clear()
        self._send(qrexec.exit_code(status))

    def _finish_when_sent(self) -> None:
        """Not before the caller has said hello: it may be about to send more, and would meet a closed channel."""
        if self._exit_sent and not self._unsent and not self._over and self._decoder.version:
            self._channels.close(self._handle)
            self._end()

    def _end(self) -> None:
        """The channel is used no longer."""
        self._over = True
        _programs.discard(self)
        self._unsent.clear()
        self._to_service.clear()
        self._read_sources(False)
        self._sources.clear()
        self._close_input()
        if self._started is not None and not self._quiet:
            self._started.close()
        if self._unwatch is not None:
            self._unwatch()
        if self._stream is not None:
            self._loop.remove_writer(self._stream)
            self._stream.close()
        if self._log is not None and not self._quiet:
            self._log.write(b"")
        self._on_end()

    # -- from the caller -----------------------------------------------------------------------------------------------

    @property
    def _handle(self) -> int:
        assert self._channel is not None
        return self._channel

    def _send(self, message: bytes | memoryview) -> None:
        """A memoryview is of `_frame` and good only now."""
        if self._over:
            return
        if self._unsent:
            self._unsent.append(bytes(message))
            return
        sent = self._channels.send(self._handle, message)
        if sent < len(message):
            self._unsent.append(bytes(message[sent:]))
            self._read_sources(False)
        else:
            self._finish_when_sent()

    def writable(self) -> None:
        while self._unsent:
            first = self._unsent[0]
            sent = self._channels.send(self._handle, first)
            if sent < len(first):
                self._unsent[0] = memoryview(first)[sent:]
                return
            self._unsent.popleft()
        self._read_sources(True)
        self._finish_when_sent()

    def data(self, untrusted: bytes) -> None:
        self._unconsumed += len(untrusted)
        self._decoder.feed(untrusted)
        try:
            while (message := self._decoder.next_message()) is not None:
                if isinstance(message, qrexec.Data) and message.kind == qrexec.STDIN:
                    self._to_service.append(memoryview(message.payload))
        except PeerError as error:
            print(f"call dropped: {error}", file=sys.stderr)
            self._channels.close(self._handle)
            self._end()
            return
        if self._ready:
            self._write_input()
        self._finish_when_sent()

    def _write_input(self) -> None:
        while self._to_service:
            chunk = self._to_service[0]
            if not len(chunk):
                self._to_service.popleft()
                self._input_ended = True
                self._close_input()
                self._maybe_exit()
                continue
            if self._input is not None and not self._put(self._input, chunk):
                return
            if self._input is None:
                self._to_service.popleft()
        if not self._over:
            self._channels.consumed(self._handle, self._unconsumed)
            self._unconsumed = 0

    def _put(self, stream: socket.socket, chunk: memoryview) -> bool:
        """False: the service takes no more now."""
        try:
            sent = stream.send(chunk)
        except BlockingIOError:
            if not self._writing_input:
                self._writing_input = True
                self._loop.add_writer(stream, self._input_writable)
            return False
        except OSError:
            self._input_ended = True
            self._close_input()
            self._maybe_exit()
            return True
        if sent < len(chunk):
            self._to_service[0] = chunk[sent:]
        else:
            self._to_service.popleft()
        return True

    def _input_writable(self) -> None:
        assert self._input is not None
        self._loop.remove_writer(self._input)
        self._writing_input = False
        self._write_input()

    def _close_input(self) -> None:
        """The service sees the end; what still comes is read and dropped."""
        if self._input is None:
            return
        if self._writing_input:
            self._loop.remove_writer(self._input)
            self._writing_input = False
        with contextlib.suppress(OSError):
            self._input.shutdown(socket.SHUT_WR)
        self._input = None

    def closed(self) -> None:
        """The caller is gone: the service sees the end of its input and a closed output, and goes on as it likes."""
        if not self._over:
            self._end()
