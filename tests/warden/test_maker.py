"""A warm image in the making: what is said when it is made, and why it isn't when its machine stops by itself."""
from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.ports import Side
from tests.warden.test_main import Place

from cloison.hypervisor.base import MachineSpec, MachineState
from cloison.hypervisor.fake import FakeMachine, silent
from cloison.hypervisor.qemu import warm
from cloison.runtime import life
from cloison.warden import maker
from cloison.wire import agent
from cloison.wire.mux import GUEST
from cloison.wire.warden import Kernel, Lines

Boot = Callable[[FakeMachine, socket.socket], None]


@pytest.fixture
def place() -> Iterator[Place]:
    """With a kernel, so that an image has a name."""
    with tempfile.TemporaryDirectory(prefix="cloison-") as folder:
        place = Place(Path(folder))
        parts = [str(Path(folder, name)) for name in ("vmlinuz", "initramfs", "modules")]
        for part in parts:
            Path(part).write_bytes(bytes(512))
        place.launch = dataclasses.replace(place.launch, kernel=Kernel("6.1", *parts))
        yield place


def said_by_maker(place: Place, boot: Boot) -> list[dict[str, object]]:
    async def run() -> list[dict[str, object]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            async with asyncio.timeout(30):
                await maker.make(place.paths, place.launch, theirs, lambda spec: machine(spec, boot))
            return Lines().feed(ours.recv(65536))

    def machine(spec: MachineSpec, boot: Boot) -> FakeMachine:
        place.machines.append(FakeMachine(spec, boot))
        return place.machines[-1]

    return asyncio.run(run())


class Ready(Side):
    """A guest that is nobody, and gets ready when it is told to."""

    def _control(self, message: bytes) -> None:
        super()._control(message)
        self.port.control(agent.report({"ping": "pong", "seal": "sealed"}[agent.parse_order(message)[0]]))


def test_an_image_is_made_and_its_folder_is_said(place: Place) -> None:
    guests: list[Ready] = []
    said = said_by_maker(place, lambda _machine, port: guests.append(Ready(port, GUEST)))
    made = said[-1]["made"]
    assert made == warm.folder(place.paths.warm, warm.key(place.launch)) and made is not None
    assert [each["progress"] for each in said[:-1]] == ["booting", "settling", "saving"]
    assert len(os.listdir(place.paths.warm)) == 1 and os.listdir(place.paths.qubes) == []
    warm.check(str(made))
    assert place.machines[0].spec.ram_shared and os.path.getsize(os.path.join(str(made), warm.RAM)) == place.launch.memory << 20


def test_the_machine_is_gone_and_its_port_is_closed_before_the_image_counts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that still writes would change an image whose digests have been taken."""
    steps: list[str] = []
    kill, wait, finish = FakeMachine.kill, FakeMachine.wait, warm.finish

    async def waited(machine: FakeMachine) -> int:
        status = await wait(machine)
        steps.append("gone")
        return status

    def killed(machine: FakeMachine) -> None:
        steps.append("killed")
        kill(machine)

    def finished(*arguments: Any) -> str:
        steps.append("finished")
        return finish(*arguments)

    monkeypatch.setattr(FakeMachine, "kill", killed)
    monkeypatch.setattr(FakeMachine, "wait", waited)
    monkeypatch.setattr(warm, "finish", finished)
    guests: list[Ready] = []
    assert "made" in said_by_maker(place, lambda _machine, port: guests.append(Ready(port, GUEST)))[-1]
    assert steps == ["killed", "gone", "finished"]


def test_a_guest_that_never_answers_is_given_up_with_its_last_words(place: Place) -> None:
    place.launch = dataclasses.replace(place.launch, start_timeout=0)
    said = said_by_maker(place, lambda machine, _port: machine.print(b"panic\x1b"))
    assert said[-1] == {"error": "the guest did not get ready in 0 s; last on its console: panic"}
    assert os.listdir(place.paths.warm) == [] and os.listdir(place.paths.qubes) == []


def test_nobody_makes_the_same_image_twice_at_a_time(place: Place) -> None:
    """The other one's work folder and lock stay as they are."""
    held = life.take(place.paths.qubes, warm.making(place.launch))
    try:
        assert "unavailable" in str(said_by_maker(place, silent)[-1]["error"]) and place.machines == []
        assert os.listdir(place.paths.qubes) == [f"life.{warm.making(place.launch)}"]
    finally:
        os.close(held)


@pytest.mark.parametrize("half", [True, False])
def test_who_wants_it_no_longer_ends_it_and_nothing_is_left(place: Place, half: bool) -> None:
    """It hangs up only then."""
    async def run() -> None:
        ours, theirs = socket.socketpair()
        machines: list[FakeMachine] = []

        def boot(machine: FakeMachine, _port: socket.socket) -> None:
            machines.append(machine)
            ours.shutdown(socket.SHUT_WR) if half else ours.close()

        with ours, theirs:
            async with asyncio.timeout(30):
                await maker.make(place.paths, place.launch, theirs, lambda spec: FakeMachine(spec, boot))
            assert [machine.state for machine in machines] == [MachineState.GONE]
            if half:
                assert [each.get("progress") for each in Lines().feed(ours.recv(65536))] == ["booting"]

    asyncio.run(run())
    assert os.listdir(place.paths.warm) == [] and os.listdir(place.paths.qubes) == []


def test_a_guest_that_says_something_else_gives_no_image(place: Place) -> None:
    class Contrary(Side):
        def _control(self, message: bytes) -> None:
            super()._control(message)
            self.port.control(agent.report("halting"))

    guests: list[Contrary] = []
    said = said_by_maker(place, lambda _machine, port: guests.append(Contrary(port, GUEST)))
    assert "said 'halting' instead of 'pong'" in str(said[-1]["error"])
    assert os.listdir(place.paths.warm) == []


@pytest.mark.parametrize(("why", "sentence"), [
    ("io-error", "no warm image was made: {warm} is full"),
    ("internal-error", "no warm image was made: its machine stopped: internal-error"),
])
def test_a_machine_that_stops_by_itself(place: Place, why: str, sentence: str) -> None:
    said = said_by_maker(place, lambda machine, _port: machine.write(why))
    assert said[-1] == {"error": sentence.format(warm=place.paths.warm)}
    assert os.listdir(place.paths.warm) == []


@pytest.mark.parametrize(("answers", "asked", "error"), [
    ({"ping": "sealed"}, ["ping"], "said 'sealed' instead of 'pong'"),
    ({"ping": "hang up"}, ["ping"], "hung up"),
    ({"ping": "pong", "seal": "pong"}, ["ping", "seal"], "said 'pong' instead of 'sealed'"),
    ({"ping": "pong", "seal": "hang up"}, ["ping", "seal"], "hung up"),
    ({"ping": "pong", "seal": "no word of ours"}, ["ping", "seal"], "instead of 'sealed'"),
])
def test_a_guest_is_saved_only_when_it_has_answered_both_questions(
    place: Place, answers: dict[str, str], asked: list[str], error: str,
) -> None:
    orders: list[str] = []

    class Answering(Side):
        def _control(self, message: bytes) -> None:
            orders.append(agent.parse_order(message)[0])
            word = answers[orders[-1]]
            if word == "hang up":
                self.port.end("it has had enough")
                self.stream.close()
            else:
                self.port.control(agent.report(word))

    guests: list[Answering] = []
    said = said_by_maker(place, lambda _machine, port: guests.append(Answering(port, GUEST)))
    assert error in str(said[-1]["error"]) and orders == asked
    assert [each["progress"] for each in said[:-1]] == ["booting", "settling"][:len(asked)]
    assert place.machines[0].state is MachineState.GONE
    assert os.listdir(place.paths.warm) == [] and os.listdir(place.paths.qubes) == []
