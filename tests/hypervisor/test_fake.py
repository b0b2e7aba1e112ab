"""The fake machine keeps the promises of a real one, and lets a scripted guest in."""
from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from tests.contracts.machine import MachineContract, Make, ended, started, tiny

from cloison.hypervisor.base import MachineState
from cloison.hypervisor.fake import FakeMachine


class TestFakeMachine(MachineContract):
    @pytest.fixture
    def make(self) -> Make:
        return FakeMachine


def test_guest_speaks_prints_and_powers_off(tmp_path: Path) -> None:
    def boot(machine: FakeMachine, port: socket.socket) -> None:
        port.send(b"hello")
        machine.print(b"login:")
        machine.on_power_button = machine.end

    machine = FakeMachine(tiny(tmp_path), boot)

    async def work(stream: socket.socket) -> None:
        assert await asyncio.get_running_loop().sock_recv(stream, 100) == b"hello"
        assert await machine.console() == b"login:"
        await machine.power_button()
        assert await machine.wait() == 0
        assert machine.state is MachineState.GONE
        await ended(stream)

    started(machine, work)
