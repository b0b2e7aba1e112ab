"""A guest that is nobody's machine: the real agent over a FakeMachine."""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from tests.runtime.ports import News

from cloison.guest import devices
from cloison.guest.agent import Agent, System
from cloison.hypervisor.fake import FakeMachine
from cloison.wire import agent, rejoin


class _Agent(Agent):
    def stop(self) -> None:
        """Its guest is no more: what a kernel would close is closed."""
        self._port.end("the machine is gone")


class Guest(System, News):
    """What happens to the guest that the real agent runs in: written down. `fault`: why it can't become a qube."""

    def __init__(self, folder: Path, fault: Exception | None = None) -> None:
        News.__init__(self)
        self.qubesdb_socket = str(folder / "qubesdb.sock")
        self.trigger_socket = str(folder / "qrexec-agent")
        self._fault = fault
        self.who: agent.Identity | None = None
        self.clocks: list[int] = []
        self.problems: list[str] = []
        self.machine: FakeMachine | None = None

    def boot(self, machine: FakeMachine, port: socket.socket) -> None:
        self.machine = machine
        machine.on_end = _Agent(port.fileno(), self, self._ended).stop

    async def agent_is_replaced(self, port: socket.socket, *, told: bool = True) -> None:
        """It is killed in the middle of something, and another one takes the guest up, as `main` of the real one does.

        `told`: QEMU has seen that the former one closed its port; what a guest's kernel says of that is the guest's to choose.
        """
        assert self.machine is not None
        self.machine.on_end()
        if told:
            self.machine.left.set()
        loop, side, last = asyncio.get_running_loop(), rejoin.AgentSide(os.urandom(rejoin.NONCE)), b""
        await loop.sock_sendall(port, b"half a frame")
        while not last:                      # the host may take an announcement for bytes of the former agent's
            await loop.sock_sendall(port, side.announcement)
            with contextlib.suppress(TimeoutError):
                last = side.feed(await asyncio.wait_for(loop.sock_recv(port, 1 << 16), 0.1))
        await loop.sock_sendall(port, last)
        self.machine.left.clear()
        self.machine.on_end = _Agent(port.fileno(), self, self._ended).stop

    def _ended(self, _reason: str) -> None:
        self.tell()

    def become(self, who: agent.Identity) -> list[str]:
        if self._fault is not None:
            raise self._fault
        self.who = who
        return list(self.problems)

    def set_clock(self, now: int) -> None:
        self.clocks.append(now)
        self.tell()

    def sessions(self) -> None:
        """Its programs are this machine's user's."""

    def when_booted(self, then: Callable[[], None]) -> None:
        then()

    def when_quiet(self, then: Callable[[], None]) -> None:
        then()

    def rehearse(self) -> None:
        self.tell()

    def power_off(self) -> None:
        assert self.machine is not None
        asyncio.get_running_loop().call_soon(self.machine.end)

    def settle(self, who: agent.Identity) -> None:
        self.tell()

    def follow_devices(self, publish: devices.Publish) -> None:
        """This machine's own devices are nobody's business."""
