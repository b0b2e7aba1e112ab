"""The agent's end of qrexec: the control channel, and one `Call` for each program that the host starts (reference/qrexec.md 4, 7).

Back-pressure both ways: a program that doesn't read keeps its caller's credit; a caller that doesn't read keeps the
program's output in the program.
"""
from __future__ import annotations

import asyncio
import os
import sys
from collections import deque

from cloison.errors import PeerError
from cloison.guest import process
from cloison.runtime.port import Outbox, Port
from cloison.wire import qrexec
from cloison.wire.mux import Address

READ = 65536


class ControlChannel:
    """vchan server on port 512; the host's daemon is its client. A new daemon replaces the former one."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._outbox: Outbox | None = None
        self._decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        self.xid = 0

    def opened(self, channel: int) -> ControlChannel:
        self._decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        self._outbox = Outbox(self._port, channel)
        self._outbox.put(qrexec.hello(qrexec.VERSION))
        return self

    def data(self, untrusted: bytes) -> None:
        if self._outbox is None:
            return
        self._decoder.feed(untrusted)
        try:
            while (message := self._decoder.next_message()) is not None:
                if isinstance(message, qrexec.Exec):
                    Call(self._port, self, message).start()
        except PeerError as error:
            sys.exit(f"qrexec control channel: {error}")
        self._port.consumed(self._outbox.channel, len(untrusted))

    def writable(self) -> None:
        if self._outbox is not None:
            self._outbox.flush()

    def closed(self) -> None:
        self._outbox = None

    def terminated(self, domain: int, port: int) -> None:
        """A data channel is used no longer: the daemon may give its port away again."""
        if self._outbox is not None:
            self._outbox.put(qrexec.connection_terminated(domain, port))


class Call:
    """One program and its data channel. It ends when the program has exited and its outputs have ended, or the caller is gone."""

    def __init__(self, port: Port, control: ControlChannel, request: qrexec.Exec) -> None:
        self._port, self._control, self._request = port, control, request
        self._loop = asyncio.get_running_loop()
        self._decoder = qrexec.Decoder(qrexec.FROM_CALLER)
        self._channel = 0
        self._started: process.Started | None = None
        self._unsent: deque[bytes | memoryview] = deque()
        self._stdin: deque[memoryview] = deque()
        self._unconsumed = 0
        self._open_outputs: dict[int, int] = {}      # descriptor -> message kind
        self._reading = False
        self._status: int | None = None
        self._exit_sent = False
        self._stdin_open = False
        self._writing_stdin = False

    def start(self) -> None:
        request = self._request
        self._channel = self._port.open(Address(request.domain, self._control.xid, request.port), self)
        self._send(qrexec.hello(qrexec.VERSION))
        quiet = request.kind == qrexec.JUST_EXEC
        try:
            self._started = process.start(qrexec.parse_command(request.command), quiet=quiet)
        except (process.CannotStart, PeerError) as error:
            print(f"call refused: {error}", file=sys.stderr)
            self._end(getattr(error, "status", process.FAILED), streams=not quiet)
            return
        if quiet:
            self._reap_later(self._started)
            self._started = None
            self._end(0, streams=False)
        else:
            self._follow(self._started)

    # -- the program's side --------------------------------------------------------------------------------------------

    def _follow(self, started: process.Started) -> None:
        started.stdin.setblocking(False)
        started.stdout.setblocking(False)
        os.set_blocking(started.stderr, False)
        self._stdin_open = True
        self._open_outputs = {started.stdout.fileno(): qrexec.STDOUT, started.stderr: qrexec.STDERR}
        self._read_outputs(True)
        pidfd = os.pidfd_open(started.process.pid)
        self._loop.add_reader(pidfd, self._exited, pidfd)

    def _reap_later(self, started: process.Started) -> None:
        started.close()
        pidfd = os.pidfd_open(started.process.pid)

        def reap() -> None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            started.process.wait()

        self._loop.add_reader(pidfd, reap)

    def _read_outputs(self, on: bool) -> None:
        if on == self._reading or not self._open_outputs:
            return
        self._reading = on
        for fd, kind in self._open_outputs.items():
            if on:
                self._loop.add_reader(fd, self._output, fd, kind)
            else:
                self._loop.remove_reader(fd)

    def _output(self, fd: int, kind: int) -> None:
        try:
            data = os.read(fd, READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            for message in qrexec.data(kind, data, self._version):
                self._send(message)
            return
        self._loop.remove_reader(fd)
        del self._open_outputs[fd]
        self._send(qrexec.end_of_stream(kind))
        self._maybe_end()

    def _exited(self, pidfd: int) -> None:
        assert self._started is not None
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        code = self._started.process.wait()
        self._status = code if code >= 0 else 128 - code
        self._close_stdin()
        self._maybe_end()

    def _maybe_end(self) -> None:
        if self._status is not None and not self._open_outputs:
            self._end(self._status, streams=False)

    def _end(self, status: int, *, streams: bool) -> None:
        if streams:
            self._send(qrexec.end_of_stream(qrexec.STDOUT))
            self._send(qrexec.end_of_stream(qrexec.STDERR))
        self._exit_sent = True
        self._send(qrexec.exit_code(status))

    def _finish_when_sent(self) -> None:
        if not self._exit_sent or self._unsent or not self._channel:
            return
        self._forget()
        self._port.close(self._channel)
        self._channel = 0
        self._control.terminated(self._request.domain, self._request.port)

    def _forget(self) -> None:
        """Drop what is open towards the program."""
        self._close_stdin()
        self._read_outputs(False)
        self._open_outputs.clear()
        if self._started is not None:
            self._started.stdout.close()
            if self._started.stderr >= 0:
                os.close(self._started.stderr)
                self._started = self._started._replace(stderr=-1)

    # -- the caller's side ---------------------------------------------------------------------------------------------

    @property
    def _version(self) -> int:
        return self._decoder.version or qrexec.VERSION

    def _send(self, message: bytes) -> None:
        self._unsent.append(message)
        self.writable()

    def writable(self) -> None:
        while self._unsent:
            first = self._unsent[0]
            sent = self._port.send(self._channel, first)
            if sent < len(first):
                self._unsent[0] = memoryview(first)[sent:]
                self._read_outputs(False)
                return
            self._unsent.popleft()
        self._read_outputs(True)
        self._finish_when_sent()

    def data(self, untrusted: bytes) -> None:
        self._unconsumed += len(untrusted)
        self._decoder.feed(untrusted)
        try:
            while (message := self._decoder.next_message()) is not None:
                if isinstance(message, qrexec.Data) and message.kind == qrexec.STDIN:
                    self._stdin.append(memoryview(message.payload))
        except PeerError as error:
            print(f"call dropped: {error}", file=sys.stderr)
            self._port.close(self._channel)
            self.closed()
            return
        self._write_stdin()

    def _write_stdin(self) -> None:
        while self._stdin:
            chunk = self._stdin[0]
            if not len(chunk):
                self._stdin.popleft()
                self._close_stdin()
                continue
            if self._stdin_open and not self._put_stdin(chunk):
                return
            if not self._stdin_open:
                self._stdin.popleft()
        self._port.consumed(self._channel, self._unconsumed)
        self._unconsumed = 0

    def _put_stdin(self, chunk: memoryview) -> bool:
        """False: the program takes no more now."""
        assert self._started is not None
        try:
            sent = self._started.stdin.send(chunk)
        except BlockingIOError:
            if not self._writing_stdin:
                self._writing_stdin = True
                self._loop.add_writer(self._started.stdin, self._stdin_writable)
            return False
        except OSError:
            self._close_stdin()
            return True
        if sent < len(chunk):
            self._stdin[0] = chunk[sent:]
        else:
            self._stdin.popleft()
        return True

    def _stdin_writable(self) -> None:
        assert self._started is not None
        self._loop.remove_writer(self._started.stdin)
        self._writing_stdin = False
        self._write_stdin()

    def _close_stdin(self) -> None:
        """The program sees the end; what still comes is read and dropped."""
        if not self._stdin_open or self._started is None:
            return
        self._stdin_open = False
        if self._writing_stdin:
            self._loop.remove_writer(self._started.stdin)
            self._writing_stdin = False
        self._started.stdin.close()

    def closed(self) -> None:
        """The caller is gone: the program sees the end of its input and a closed output, and goes on as it likes."""
        self._channel = 0
        self._unsent.clear()
        self._stdin.clear()
        self._forget()
        self._control.terminated(self._request.domain, self._request.port)


