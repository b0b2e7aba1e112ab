"""The qube's end of qrexec: the control channel, calls into the qube and calls out of it (reference/qrexec.md 4, 7-9).

It runs over either transport (`runtime/port.py`, `runtime/vchan_socket.py`). The host is trusted here; programs of the qube that
use the trigger socket are not.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from cloison.errors import PeerError
from cloison.qrexec import ending, process, service_config
from cloison.qrexec.call import Call
from cloison.qrexec.inheritance import NO_SESSION, Session
from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.qube.sessions import Sessions
from cloison.qrexec.qube.trigger import TriggerSocket
from cloison.qrexec.service_config import Config
from cloison.qrexec.session_waiter import Waiter
from cloison.runtime import unix
from cloison.runtime.port import Channels, Outbox
from cloison.runtime.relay import Relay
from cloison.wire import qrexec
from cloison.wire.mux import Address
from cloison.wire.qrexec import Command

FORK_SERVER = "/var/run/qubes/qrexec-server.%s.sock"
FORK_REQUEST = struct.Struct("=iiiI")    # message type, domain, port, bytes of the command with its NUL
MAX_UNTOLD = qrexec.DATA_PORTS
MAX_ASKED = 1 << 20                      # bytes waiting for the daemon above which calls are refused


class ControlChannel:
    """vchan server on port 512; the host's daemon is its client. A new daemon replaces the former one.

    `gives_descriptors`: data channels of the qube's own programs pass through here, and reach them by descriptor. `on_lost` hears
    why the channel ended: nothing if the daemon hung up, else how it broke the protocol.
    """

    def __init__(
        self, channels: Channels, on_lost: Callable[[str], None], *, xid: int = 0, gives_descriptors: bool = True,
        fork_server: str = FORK_SERVER, on_ready: Callable[[], None] = lambda: None, sessions: Sessions | None = None,
    ) -> None:
        """`fork_server`: its socket, `%s` being the user's name; empty for none. `on_ready`: a daemon has said hello. `sessions`
        None: programs are started without one.
        """
        self.channels, self.xid, self.gives_descriptors = channels, xid, gives_descriptors
        self.triggers = TriggerSocket(self)
        self._on_lost, self._on_ready, self._fork_server = on_lost, on_ready, fork_server
        self._outbox: Outbox | None = None
        self._decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        self._untold: deque[tuple[int, int]] = deque(maxlen=MAX_UNTOLD)
        self._sessions, self._waiter = sessions, Waiter(remember=sessions is not None)
        if sessions is not None:
            sessions.on_lost = self._waiter.forget

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def opened(self, channel: int) -> ControlChannel:
        self._decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        self._outbox = Outbox(self.channels, channel)
        self._outbox.put(qrexec.hello(qrexec.VERSION))
        return self

    def data(self, untrusted: bytes) -> None:
        if self._outbox is None:
            return
        self._decoder.feed(untrusted)
        try:
            while (message := self._decoder.next_message()) is not None:
                self._message(message)
        except PeerError as error:
            self._give_up(f"qrexec control channel: {error}")
            return
        if self._outbox is not None:
            self.channels.consumed(self._outbox.channel, len(untrusted))

    def writable(self) -> None:
        if self._outbox is not None:
            self._outbox.flush()

    def closed(self) -> None:
        self._give_up("")

    def _give_up(self, reason: str) -> None:
        """What was asked gets no answer any more; calls that run go on."""
        if self._outbox is not None:
            self.channels.close(self._outbox.channel)
            self._outbox = None
            self.triggers.daemon_lost()
            self._on_lost(reason)

    def _message(self, message: qrexec.Message) -> None:
        if isinstance(message, qrexec.Hello):
            self._on_ready()
            while self._untold:
                self.terminated(*self._untold.popleft())
        elif isinstance(message, qrexec.Exec):
            self._serve(message)
        elif isinstance(message, qrexec.ServiceConnect):
            self.triggers.connect(message)
        elif isinstance(message, qrexec.ServiceRefused):
            self.triggers.refused(message)

    def terminated(self, domain: int, port: int) -> None:
        """A data channel is used no longer: the daemon may give its port away again."""
        if self._outbox is None:
            self._untold.append((domain, port))
        else:
            self._outbox.put(qrexec.connection_terminated(domain, port))

    def trigger(self, request: qrexec.Trigger) -> bool:
        """Ask the daemon for a call, in the words of its protocol version. False if that can't be."""
        if self._outbox is None or not self._decoder.version or len(self._outbox) > MAX_ASKED:
            return False
        _, target, request_id, service = request
        try:
            if self._decoder.version >= 4:
                message = qrexec.trigger_service4(*request)
            elif request.source:
                return False
            elif self._decoder.version == 3:
                message = qrexec.trigger_service3(target, request_id, service)
            else:
                message = qrexec.trigger_service2(target, request_id, service)
        except ValueError:
            return False
        self._outbox.put(message)
        return True

    # -- calls into the qube -------------------------------------------------------------------------------------------

    def _serve(self, request: qrexec.Exec) -> None:
        try:
            command = qrexec.parse_command(request.command)
            config = service_config.load(command.service, command.argument) if command.service else service_config.DEFAULT
            if config.wait_for_session and not command.nogui:
                self._await_session(request, command, config)
                return
        except (PeerError, CannotStart) as error:
            self._call(request, "").refuse(error)
            return
        self._start(request, command, config)

    def _await_session(self, request: qrexec.Exec, command: Command, config: Config) -> None:
        """Start it when its user has a session and qubes.WaitForSession has nothing more to wait for. Raises CannotStart."""
        user = config.force_user or command.user

        def entered(session: Session | CannotStart) -> None:
            try:
                if isinstance(session, CannotStart):
                    raise session
                self._waiter.wait(user, command.source, lambda: self._start(request, command, config))
            except CannotStart as error:
                self._call(request, "").refuse(error)

        if self._sessions is None:
            entered(NO_SESSION)
        else:
            self._sessions.enter(user, entered)

    def _start(self, request: qrexec.Exec, command: Command, config: Config) -> None:
        if self._fork(request, command, config):
            return
        try:
            if self._sessions is not None and process.needs_user(command):
                self._sessions.enter(
                    config.force_user or command.user, lambda session: self._run(request, command, config, session))
                return
        except CannotStart as error:
            self._call(request, "").refuse(error)
            return
        self._run(request, command, config, NO_SESSION)

    def _run(self, request: qrexec.Exec, command: Command, config: Config, session: Session | CannotStart) -> None:
        """From here; or say why its user has no session."""
        call = self._call(request, f"{command.full_name}-{command.source}" if command.service else "")
        try:
            if isinstance(session, CannotStart):
                raise session
            started = process.start(command, config, session, quiet=request.kind == qrexec.JUST_EXEC)
            call.serve(started, lambda: ending.reach(command, request.domain))
        except CannotStart as error:
            call.refuse(error)

    def _call(self, request: qrexec.Exec, log: str) -> Call:
        return Call(
            self.channels, Address(request.domain, self.xid, request.port), lambda: self.terminated(request.domain, request.port),
            log=log, quiet=request.kind == qrexec.JUST_EXEC)

    def _fork(self, request: qrexec.Exec, command: Command, config: Config) -> bool:
        """Let the server in the user's session do it, if there is one (9.2)."""
        user = config.force_user or command.user
        if not self._fork_server or command.nogui or config.for_streams or "/" in user:
            return False
        try:
            stream = unix.connect(self._fork_server.replace("%s", user), blocking=False)
        except OSError:
            return False
        words = request.command.partition(":")[2].encode("utf-8", "surrogateescape") + b"\0"
        message = FORK_REQUEST.pack(request.kind, request.domain, request.port, len(words)) + words
        if self.gives_descriptors:
            return self._fork_with_descriptor(stream, message, Address(request.domain, self.xid, request.port))
        if not _sent(stream, message, []):
            return False
        _when_closed(stream, lambda: self.terminated(request.domain, request.port))
        return True

    def _fork_with_descriptor(self, stream: socket.socket, message: bytes, address: Address) -> bool:
        ours, theirs = socket.socketpair()
        with theirs:
            if not _sent(stream, message, [theirs.fileno()]):
                ours.close()
                return False
        relay = Relay(self.channels, None, ours, lambda: self.terminated(address.server, address.port))
        relay.bind(self.channels.open(address, relay))
        _when_closed(stream, lambda: None)
        return True


def _sent(stream: socket.socket, message: bytes, fds: list[int]) -> bool:
    """Whole, into an empty buffer; else the stream is closed."""
    with contextlib.suppress(OSError):
        if socket.send_fds(stream, [message], fds) == len(message):
            return True
    stream.close()
    return False


def _when_closed(stream: socket.socket, then: Callable[[], None]) -> None:
    """The server answers nothing; it hangs up when the call is over."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            if os.read(stream.fileno(), 4096):
                return
        loop.remove_reader(stream)
        stream.close()
        then()

    loop.add_reader(stream, readable)
