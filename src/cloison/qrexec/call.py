"""The service's end of a data channel: one program, or one connection to a socket service (reference/qrexec.md 7).

A qube's agent, its fork server and the host's daemon all serve calls with it. Back-pressure both ways: a service that doesn't
read keeps its caller's credit; a caller that doesn't read keeps the service's output in the service.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from cloison.errors import PeerError
from cloison.qrexec import one_socket, stderr_log
from cloison.qrexec.connecting import Connecting
from cloison.qrexec.ending import Group, Reach, nothing
from cloison.qrexec.feed import Feed
from cloison.qrexec.lookup import FAILED, CannotStart
from cloison.qrexec.process import Connected, Started
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.held import Backlog
from cloison.runtime.port import Channels
from cloison.runtime.say import say
from cloison.wire import qrexec
from cloison.wire.mux import Address

_CANDIDATE = 0                           # no message's kind: a program's stdin, watched for output (reference/qrexec.md 7.4)

# What a service writes is read here, behind its header, and leaves from here: one thread, and no callback waits.
_frame = bytearray(qrexec.HEADER.size + qrexec.MAX_CHUNK)
_view = memoryview(_frame)

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
        self._unsent = Backlog()                     # of what the service writes
        self._share = channels.held.share(self._drop)
        self._unconsumed = 0
        self._feed = Feed(self._input_drained, self._input_over)
        self._sources: dict[int, int] = {}           # descriptor of an output -> message kind
        self._reading = False
        self._started: Started | None = None
        self._group: Group | None = None             # of the program
        self._connected: Connected | None = None
        self._connecting: Connecting | None = None
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

    def serve(self, service: Started | Connected, reach: Callable[[], Reach] = nothing) -> None:
        """Join the caller with what serves it, which belongs to this call from now on. `reach`: what the caller can do to it."""
        if isinstance(service, Started):
            self._serve_program(service, reach)
        elif self._over:
            if service.stream is not None:
                service.stream.close()
        else:
            self._serve_stream(service)

    def refuse(self, error: CannotStart | PeerError) -> None:
        """Nothing serves it."""
        kinds = (qrexec.STDOUT, qrexec.STDERR) if self._send_stderr else (qrexec.STDERR, qrexec.STDOUT)   # as the reference does
        for kind in () if self._quiet else kinds:
            self._send(qrexec.end_of_stream(kind))
        self._exit(error.status if isinstance(error, CannotStart) else FAILED)
        say(f"call refused: {error}")

    def _serve_program(self, started: Started, reach: Callable[[], Reach]) -> None:
        self._started = started
        started.stdin.setblocking(False)
        started.stdout.setblocking(False)
        os.set_blocking(started.stderr, False)
        self._group = Group(started.process, self._exited, reach)
        if self._quiet or self._over:
            (self._group.release if self._quiet else self._group.hung_up)()
            started.stdout.close()
            started.stdin.close()
            stderr_log.follow(started.stderr, self._log)
            self._exit(0)
            return
        self._feed.attach(started.stdin)
        one_socket.begin(self)
        self._sources = {started.stdout.fileno(): qrexec.STDOUT, started.stderr: qrexec.STDERR}
        if not self._send_stderr:
            self._send(qrexec.end_of_stream(qrexec.STDERR))
        self._read_sources(True)
        self._feed.write()

    def _serve_stream(self, connected: Connected) -> None:
        self._connected = connected
        if connected.greeting:
            self._feed.put_first(connected.greeting)
        if not self._quiet:
            self._send(qrexec.end_of_stream(qrexec.STDERR))
        self._connecting = Connecting(connected, self._connection_made, self._not_connected)

    def _connection_made(self, stream: socket.socket) -> None:
        self._stream = stream
        if self._quiet:
            with contextlib.suppress(OSError):
                stream.send(self._feed.take())       # some hundred bytes into an empty buffer
            self._exit(0)
            return
        self._feed.attach(stream)
        self._sources = {stream.fileno(): qrexec.STDOUT}
        self._read_sources(True)
        self._feed.write()

    def _not_connected(self, number: int) -> None:
        if not self._quiet:
            self._send(qrexec.end_of_stream(qrexec.STDOUT))
        self._exit(FAILED)
        say(f"call refused: the service's socket: {os.strerror(number)}")

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
        if self._stream is not None and not self._feed.ended:
            # If it reads no more either, nothing of its caller's input is waited for.
            self._unwatch = watch_hangup(self._stream, self._feed.end)
        self._maybe_exit()

    def _exited(self, status: int) -> None:
        self._status = status
        if not self._over and not self._exit_sent:
            self._feed.close()
            self._maybe_exit()

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
        if one_socket.signalled():
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
            if not ended and self._feed.ended and self._feed.empty and config.exit_on_client_eof:
                self._send(qrexec.end_of_stream(qrexec.STDOUT))
            elif not ended or not (self._feed.ended or config.exit_on_service_eof):
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

    def _end(self, *, hung_up: bool = False) -> None:
        """The channel is used no longer."""
        self._over = True
        if self._group is not None:
            (self._group.hung_up if hung_up and not self._exit_sent else self._group.release)()
        one_socket.end(self)
        self._unsent.clear()
        self._feed.take()
        self._share.now(0)
        self._read_sources(False)
        self._sources.clear()
        self._feed.close()
        if self._connecting is not None:
            self._connecting.stop()
        if self._started is not None and not self._quiet:
            self._started.close()
        if self._unwatch is not None:
            self._unwatch()
        if self._stream is not None:
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
            self._unsent.put(message)
            return
        sent = self._channels.send(self._handle, message)
        if sent < len(message):
            self._unsent.put(message[sent:])
            self._read_sources(False)
            self._count()
        else:
            self._finish_when_sent()

    def writable(self) -> None:
        while self._unsent:
            first = bytes(self._unsent.first())          # a copy: what is called from `send` may put more
            sent = self._channels.send(self._handle, first)
            self._unsent.left(sent)
            if sent < len(first):
                self._count()
                return
        self._count()
        self._read_sources(True)
        self._finish_when_sent()

    def data(self, untrusted: bytes) -> None:
        self._unconsumed += len(untrusted)
        self._decoder.feed(untrusted)
        try:
            while (message := self._decoder.next_message()) is not None:
                if isinstance(message, qrexec.Data) and message.kind == qrexec.STDIN:
                    self._feed.put(message.payload)
                elif isinstance(message, qrexec.Exit) and self._group is not None:
                    self._group.caller_says(message.status)
        except PeerError as error:
            self._drop()
            say(f"call dropped: {error}")
            return
        self._feed.write()
        self._count()
        self._finish_when_sent()

    def _drop(self) -> None:
        """The caller has broken the protocol, or holds more here than may be: nothing more of it, either way."""
        if not self._over:
            self._channels.close(self._handle)
            self._end(hung_up=True)

    def _count(self) -> None:
        if not self._over:
            self._share.now(len(self._feed) + len(self._unsent) + len(self._decoder))

    def _input_drained(self) -> None:
        if not self._over:
            self._channels.consumed(self._handle, self._unconsumed)
            self._unconsumed = 0
            self._count()

    def _input_over(self) -> None:
        if not self._over:
            self._maybe_exit()

    def closed(self) -> None:
        """The caller is gone: the service sees the end of its input and a closed output (and see `ending`)."""
        if not self._over:
            self._end(hung_up=True)
