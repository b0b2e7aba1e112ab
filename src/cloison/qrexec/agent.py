"""The qube's end of qrexec: the control channel, calls into the qube and calls out of it (reference/qrexec.md 4, 7-9).

It runs over either transport (`runtime/port.py`, `runtime/vchan_socket.py`). The host is trusted here; programs of the qube that
use the trigger socket are not.
"""
from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable

from cloison.errors import PeerError
from cloison.qrexec import process, service_config
from cloison.qrexec.call import Call
from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.service_config import Config
from cloison.runtime.port import Channels, Outbox
from cloison.wire import qrexec
from cloison.wire.mux import Address
from cloison.wire.qrexec import Command

MAX_UNTOLD = qrexec.DATA_PORTS


class ControlChannel:
    """vchan server on port 512; the host's daemon is its client. A new daemon replaces the former one.

    `on_lost` hears why the channel ended when the daemon hung up or broke the protocol.
    """

    def __init__(self, channels: Channels, on_lost: Callable[[str], None]) -> None:
        self._channels, self._on_lost = channels, on_lost
        self._outbox: Outbox | None = None
        self._decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        self._calls: set[Call] = set()
        self._untold: deque[tuple[int, int]] = deque(maxlen=MAX_UNTOLD)
        self._hears_signals = False
        self.xid = 0

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def opened(self, channel: int) -> ControlChannel:
        self._decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        self._outbox = Outbox(self._channels, channel)
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
            self._on_lost(f"qrexec control channel: {error}")
            return
        if self._outbox is not None:
            self._channels.consumed(self._outbox.channel, len(untrusted))

    def writable(self) -> None:
        if self._outbox is not None:
            self._outbox.flush()

    def closed(self) -> None:
        self._outbox = None
        self._on_lost("")

    def _message(self, message: qrexec.Message) -> None:
        if isinstance(message, qrexec.Hello):
            while self._untold:
                self.terminated(*self._untold.popleft())
        elif isinstance(message, qrexec.Exec):
            self._serve(message)

    def terminated(self, domain: int, port: int) -> None:
        """A data channel is used no longer: the daemon may give its port away again."""
        if self._outbox is None:
            self._untold.append((domain, port))
        else:
            self._outbox.put(qrexec.connection_terminated(domain, port))

    # -- calls into the qube -------------------------------------------------------------------------------------------

    def _serve(self, request: qrexec.Exec) -> None:
        try:
            command = qrexec.parse_command(request.command)
            config = service_config.load(command.service, command.argument) if command.service else service_config.DEFAULT
        except (PeerError, CannotStart) as error:
            self._call(request, "").refuse(error)
            return
        call = self._call(request, f"{command.full_name}-{command.source}" if command.service else "")
        self._start(call, command, config, quiet=request.kind == qrexec.JUST_EXEC)

    def _call(self, request: qrexec.Exec, log: str) -> Call:
        def ended() -> None:
            if calls:
                self._calls.discard(calls[0])
            self.terminated(request.domain, request.port)

        calls: list[Call] = []
        address = Address(request.domain, self.xid, request.port)
        call = Call(self._channels, address, ended, log=log, quiet=request.kind == qrexec.JUST_EXEC)
        calls.append(call)
        self._calls.add(call)
        return call

    def _start(self, call: Call, command: Command, config: Config, *, quiet: bool) -> None:
        if not self._hears_signals:
            self._hears_signals = True
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._one_socket)
        try:
            call.serve(process.start(command, config, quiet=quiet))
        except CannotStart as error:
            call.refuse(error)

    def _one_socket(self) -> None:
        for call in self._calls:
            call.may_use_one_socket()
