"""What a bare guest's agent is asked while its answer is timed, each a small conversation without sockets.

What the guest says is not trusted: it decides nothing but when the clock stops.
"""
from __future__ import annotations

import secrets
import time
import uuid
from typing import Protocol

from cloison.errors import MachineError
from cloison.hypervisor.qemu import warm
from cloison.wire import agent, qrexec
from cloison.wire.mux import Address, Control, Data, Event, Mux, Opened, Writable

_XID = 1
_PORT = qrexec.FIRST_DATA_PORT


class Question(Protocol):
    """What is asked of a guest's agent: `begin` asks, `answered` is True for the event that ends the wait."""

    def begin(self, mux: Mux) -> None: ...
    def answered(self, mux: Mux, event: Event) -> bool: ...


class Ping:
    """Are you there?"""

    def begin(self, mux: Mux) -> None:
        mux.control(agent.ping())

    def answered(self, mux: Mux, event: Event) -> bool:
        return isinstance(event, Control)


class Become:
    """Be a qube, with all its own: answered when it says so."""

    def begin(self, mux: Mux) -> None:
        mux.control(agent.become(agent.Identity(
            xid=_XID, time=time.time_ns(), entropy=secrets.token_hex(64), machine_id=uuid.uuid4().hex, boot_id=str(uuid.uuid4()),
            qubesdb={"/name": "bench", "/qubes-vm-type": "AppVM", "/qubes-vm-persistence": "rw-only"},
            private_size=warm.MADE_SIZES["private"], private_blank=True)))

    def answered(self, mux: Mux, event: Event) -> bool:
        if not isinstance(event, Control):
            return False
        report = agent.parse_report(event.untrusted)
        if report.word != "running":
            raise MachineError(f"the bare guest did not become a qube: {report.word} {report.text}")
        return True


class Call:
    """One call of a program, right with the agent; `message` gets what the program's side says."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.channel = 0
        self._decoder = qrexec.Decoder(qrexec.FROM_SERVICE)

    def begin(self, mux: Mux) -> None:
        request = qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, _PORT, f"user:{self.command}")
        mux.send(mux.open(Address(_XID, 0, qrexec.CONTROL_PORT)), qrexec.hello(qrexec.VERSION) + request)

    def answered(self, mux: Mux, event: Event) -> bool:
        if isinstance(event, Opened) and event.address.port == _PORT:
            self.channel = event.channel
            mux.send(event.channel, qrexec.hello(qrexec.VERSION))
        elif isinstance(event, Data) and event.channel == self.channel:
            self._decoder.feed(event.untrusted)
            mux.consumed(event.channel, len(event.untrusted))
            while (message := self._decoder.next_message()) is not None:
                if self.message(mux, message):
                    return True
        return False

    def message(self, mux: Mux, message: qrexec.Message) -> bool:
        """True ends the conversation."""
        return isinstance(message, qrexec.Exit)


class Run(Call):
    """Run a command: answered with the first byte it puts out."""

    def message(self, mux: Mux, message: qrexec.Message) -> bool:
        if isinstance(message, qrexec.Exit):
            raise MachineError(f"{self.command!r} in a bare guest put nothing out and ended with {message.status}")
        return isinstance(message, qrexec.Data) and message.kind == qrexec.STDOUT


class Stream(Call):
    """Send zeros to a command, from its first output byte on, and read all it puts out, to its end."""

    def __init__(self, command: str, stdin: int) -> None:
        super().__init__(command)
        self._unsent = memoryview(b"".join(qrexec.data(qrexec.STDIN, bytes(stdin))) + qrexec.end_of_stream(qrexec.STDIN))
        self.begun = self.ended = 0.0

    def answered(self, mux: Mux, event: Event) -> bool:
        if isinstance(event, Writable) and event.channel == self.channel:
            self._send(mux)
        return super().answered(mux, event)

    def message(self, mux: Mux, message: qrexec.Message) -> bool:
        if not self.begun and isinstance(message, qrexec.Data) and message.kind == qrexec.STDOUT:
            self.begun = time.perf_counter()
            self._send(mux)
        self.ended = time.perf_counter()
        return super().message(mux, message)

    def _send(self, mux: Mux) -> None:
        self._unsent = self._unsent[mux.send(self.channel, self._unsent):]
