"""The fake machine keeps the promises of a real one, and lets a scripted guest in."""
from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from tests.contracts.machine import MachineContract, Make, ended, started, tiny

from cloison.errors import MachineError
from cloison.hypervisor.base import MachineState
from cloison.hypervisor.fake import SAVED, FakeMachine


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


@pytest.mark.parametrize(("state", "runs"), [(SAVED, True), (SAVED[:-1], False), (b"", False), (SAVED + b"x", False)])
def test_only_from_a_whole_state_that_is_at_its_beginning_it_runs(tmp_path: Path, state: bytes, runs: bool) -> None:
    (tmp_path / "state").write_bytes(state)
    booted: list[FakeMachine] = []
    spec = tiny(tmp_path, state_fd=os.open(tmp_path / "state", os.O_RDONLY))
    machine = FakeMachine(spec, lambda each, _port: booted.append(each))

    async def work(_stream: socket.socket) -> None:
        assert bool(booted) is runs
        if runs:
            await machine.pause()
        else:
            with pytest.raises(MachineError, match="state"):
                await machine.pause()

    started(machine, work)
