"""How a caller ends what serves it: by hanging up, by a signal. Who may, and what is left alone."""
from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.qrexec.agents import Host, Stream, host, service

from cloison.qrexec import ending
from cloison.qrexec.ending import Reach, reach
from cloison.wire import qrexec
from cloison.wire.qrexec import STDOUT, Command, Data, Exit


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rpc", "config"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path / "rpc"))
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path / "config"))


def run(folder: Path, talk: Callable[[Host], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with host(folder) as place:
            await talk(place)

    asyncio.run(whole())


@pytest.fixture(autouse=True)
def as_a_session_has_it() -> Iterator[None]:
    """Whoever runs the tests may ignore SIGHUP, and programs inherit that."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


async def said(stream: Stream, lines: int = 1) -> bytes:
    """That many lines, which may come in one message or in several."""
    text = b""
    while text.count(b"\n") < lines:
        message = await stream.next()
        assert isinstance(message, Data) and message.kind == STDOUT
        text += message.payload
    return text


async def ended(pid: int) -> None:
    """Until that process is gone, or a zombie that nobody has reaped yet."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    over = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(pidfd, over.cancel)
    try:
        done, _ = await asyncio.wait([over], timeout=PATIENCE)
        assert done, f"process {pid} goes on"
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


async def text_of(fifo: Path) -> str:
    """What the first who opens it writes to it."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(reader, readable.cancel)
    try:
        done, _ = await asyncio.wait([readable], timeout=PATIENCE)
        assert done, "nobody has written"
        return os.read(reader, 4096).decode()
    finally:
        loop.remove_reader(reader)
        os.close(reader)


def kill_it_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "GRACE", 0.01)


@pytest.mark.parametrize("command", [
    "sleep 1000 & echo $!; wait", "QUBESRPC qubes.VMShell work", "QUBESRPC qubes.VMExec+sh+-2Dc+sleep--1000 work",
])
def test_a_program_of_the_callers_words_and_its_children_end_with_the_caller(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill_it_is_no_waiting(monkeypatch)
    service(tmp_path, "qubes.VMShell", "sleep 1000 & echo $!; wait")
    service(tmp_path, "qubes.VMExec", "sleep 1000 & echo $!; wait")

    async def talk(place: Host) -> None:
        stream = await place.call(command)
        child = int(await said(stream))
        stream.close()
        assert await place.terminated()
        await ended(child)

    run(tmp_path, talk)


def test_the_children_of_a_program_that_has_ended_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is not over while they hold its output; the group's number is nobody else's meanwhile."""
    kill_it_is_no_waiting(monkeypatch)

    async def talk(place: Host) -> None:
        stream = await place.call("sleep 1000 & echo $!")
        child = int(await said(stream))
        group = os.getpgid(child)
        await ended(group)               # a zombie: nobody reaps it before its call is over
        stream.close()
        assert await place.terminated()
        await ended(child)

    run(tmp_path, talk)


def test_hang_up_is_sighup_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that tidies has its time. (`wait`: a shell that is about to fork may lose a trap.)"""
    monkeypatch.setattr(ending, "GRACE", 5.0)

    async def talk(place: Host) -> None:
        done = tmp_path / "done"
        stream = await place.call(f"trap 'echo tidied > {done}; exit' HUP; echo $$; sleep 1000 & wait")
        program = int(await said(stream))
        stream.close()
        await ended(program)
        assert done.read_text() == "tidied\n"

    run(tmp_path, talk)


@pytest.mark.parametrize("stubborn", ["trap '' HUP TERM INT", "kill -STOP $$"])
def test_who_ignores_it_is_killed(tmp_path: Path, stubborn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_it_is_no_waiting(monkeypatch)

    async def talk(place: Host) -> None:
        stream = await place.call(f"echo $$; {stubborn}; while :; do sleep 1000; done")
        program = int(await said(stream))
        stream.close()
        await ended(program)

    run(tmp_path, talk)


def test_a_group_of_its_own_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_it_is_no_waiting(monkeypatch)

    async def talk(place: Host) -> None:
        gate, done = tmp_path / "gate", tmp_path / "done"
        os.mkfifo(gate)
        os.mkfifo(done)
        stream = await place.call(f"setsid sh -c 'echo up; read x < {gate}; echo lives > {done}' & echo $$; wait")
        pid, up = sorted((await said(stream, 2)).splitlines())
        assert up == b"up"
        stream.close()
        await ended(int(pid))
        go = os.open(gate, os.O_RDWR)        # waits for no reader
        os.write(go, b"\n")
        assert await text_of(done) == "lives\n"
        os.close(go)

    run(tmp_path, talk)


def test_what_is_left_after_the_calls_end_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_it_is_no_waiting(monkeypatch)

    async def talk(place: Host) -> None:
        gate, done = tmp_path / "gate", tmp_path / "done"
        os.mkfifo(gate)
        os.mkfifo(done)
        stream = await place.call(f"(read x < {gate}; echo lives > {done}) >/dev/null 2>&1 & exit 0")
        assert (await stream.rest())[-1] == Exit(0)
        stream.close()
        assert await place.terminated()
        go = os.open(gate, os.O_RDWR)        # waits for no reader
        os.write(go, b"\n")
        assert await text_of(done) == "lives\n"
        os.close(go)

    run(tmp_path, talk)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR2])
def test_a_signal_of_the_callers(tmp_path: Path, number: int) -> None:
    """It reaches the whole group, and its status says so."""
    async def talk(place: Host) -> None:
        stream = await place.call("sleep 1000 & echo $!; wait; wait")
        child = int(await said(stream))
        await stream.send(qrexec.exit_code(128 + number))
        assert (await stream.rest())[-1] == Exit(128 + number)
        await ended(child)

    run(tmp_path, talk)


@pytest.mark.parametrize("status", [0, 1, 127, 128, 128 + 65, 255, -1, 2**31 - 1])
def test_what_names_no_signal_is_dropped(tmp_path: Path, status: int) -> None:
    async def talk(place: Host) -> None:
        stream = await place.call("read x; echo $x")
        await stream.send(qrexec.exit_code(status))
        await stream.say(b"on\n")
        assert Data(STDOUT, b"on\n") in await stream.rest()

    run(tmp_path, talk)


def test_another_qube_signals_no_service(tmp_path: Path) -> None:
    service(tmp_path, "test.S", "read x; echo $x")

    async def talk(place: Host) -> None:
        stream = await place.call("QUBESRPC test.S work")
        await stream.send(qrexec.exit_code(128 + signal.SIGKILL))
        await stream.say(b"on\n")
        assert Data(STDOUT, b"on\n") in await stream.rest()

    run(tmp_path, talk)


def test_who_reaches_what() -> None:
    everything = Reach.SIGNAL | Reach.HANG_UP
    line = Command("user", command="sleep 1")
    service = Command("user", service="qubes.Filecopy", argument="", source="work")
    for domain in (0, 7):
        assert reach(line, domain) == everything
        for name in ("Shell", "RootShell", "Exec", "RootExec", "ExecGUI"):
            assert reach(service._replace(service=f"qubes.VM{name}"), domain) == everything
    assert reach(service, 0) == Reach.SIGNAL
    assert reach(service, 7) == ending.nothing() == Reach.NOTHING
