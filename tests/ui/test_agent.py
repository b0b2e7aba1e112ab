"""The agent's socket: questions one after another, withdrawal, refusals; and what puts them: windows, a terminal."""
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloison.cli import ask_agent
from cloison.client.connection import Connection
from cloison.errors import HostError, PeerError
from cloison.runtime.paths import Paths
from cloison.ui.agent import MAX_CALLERS, Agent, take_lock
from cloison.ui.colours import UNKNOWN, colours
from cloison.ui.terminal import Terminal
from cloison.ui.windows import Windows
from cloison.wire import ask as wire

QUESTION = wire.Question("work", "qubes.Filecopy", "+", ("net", "vault"), "", {"work": "appvm-red", "net": "appvm-blue"})


class Person:
    """An `Asker` that answers as it is told, and notes what it saw."""

    def __init__(self, answer: Callable[[wire.Question], Awaitable[str | None]]) -> None:
        self._answer = answer
        self.told: list[wire.Notice] = []
        self.open = 0
        self.most = 0

    async def ask(self, question: wire.Question) -> str | None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            return await self._answer(question)
        finally:
            self.open -= 1

    async def tell(self, notice: wire.Notice) -> None:
        self.told.append(notice)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
    paths.ensure()
    return paths


@asynccontextmanager
async def serving(paths: Paths, asker: Any) -> AsyncIterator[Agent]:
    agent = Agent(paths, asker)
    agent.listen()
    try:
        yield agent
    finally:
        await agent.close()


async def send(paths: Paths, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(paths.socket("policy-agent.sock"))
    writer.write(request)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


def always(answer: str | None) -> Callable[[wire.Question], Coroutine[Any, Any, str | None]]:
    async def say(_: wire.Question) -> str | None:
        return answer

    return say


@pytest.mark.parametrize(("chosen", "answer"), [("net", b"allow:net"), (None, b"deny"), ("dom0", b"deny"), ("", b"deny")])
def test_an_answer(paths: Paths, chosen: str | None, answer: bytes) -> None:
    async def conversation() -> None:
        async with serving(paths, Person(always(chosen))):
            assert await send(paths, wire.encode_question(QUESTION)) == answer

    asyncio.run(conversation())


def test_a_notice(paths: Paths) -> None:
    notice = wire.Notice("deny", "qubes.Filecopy", "+x", "work", "@default")

    async def conversation() -> None:
        person = Person(always(None))
        async with serving(paths, person):
            assert await send(paths, wire.encode_notice(notice)) == b""
        assert person.told == [notice]

    asyncio.run(conversation())


def changed(**fields: object) -> bytes:
    _, _, body = wire.encode_question(QUESTION).partition(b"\0")
    return b"policy.Ask dom0\0" + json.dumps({**json.loads(body), **fields}).encode()


@pytest.mark.parametrize("request_", [
    b"\0", b"policy.Ask dom0\0", b"policy.Ask\0{}", b"policy.Other dom0\0{}", b"policy.Ask dom0\0[]",
    b"policy.Ask dom0\0" + b"[" * 99_999, b"policy.Ask dom0\0\xff",
    changed(source="<b>work</b>"), changed(source=""), changed(source="a" * 100), changed(source=1),
    changed(service="a b"), changed(service=""), changed(service="a\x1b[2J"), changed(argument="x"), changed(argument="+\u202e"),
    changed(targets=[]), changed(targets="net"), changed(targets=["net", "a b"]), changed(targets=[None]),
    changed(targets=["net\n"]),
    changed(default_target="dom0"), changed(default_target=None), changed(icons=[]), changed(icons={"work": "../x"}),
    changed(icons={"a b": "x"}), b"policy.Notify dom0\0{}", b'policy.Notify dom0\0{"resolution": "maybe"}',
])
def test_qsb_038_what_is_no_question_is_refused_and_not_shown(paths: Paths, request_: bytes) -> None:
    """Names are checked against what names can hold before anyone sees them; what was shown is what is answered."""
    async def conversation() -> None:
        person = Person(always("net"))
        async with serving(paths, person):
            assert await send(paths, request_) == b"deny"
        assert person.most == 0 and person.told == []

    asyncio.run(conversation())


def test_who_only_looks_whether_it_is_there_is_let_go(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> None:
        async with serving(paths, Person(always("net"))):
            assert await send(paths, b"") == b""

    asyncio.run(conversation())
    assert not caplog.records


def test_questions_wait_for_their_turn(paths: Paths) -> None:
    async def conversation() -> None:
        person = Person(always("net"))
        async with serving(paths, person):
            answers = await asyncio.gather(*(send(paths, wire.encode_question(QUESTION)) for _ in range(20)))
        assert set(answers) == {b"allow:net"}
        assert person.most == 1

    asyncio.run(conversation())


def test_a_caller_that_goes_away_withdraws_its_question_and_the_next_one_is_asked(paths: Paths) -> None:
    async def conversation() -> None:
        asked, withdrawn = asyncio.Event(), asyncio.Event()

        async def answer(question: wire.Question) -> str | None:
            if question.argument == "+second":
                return "vault"
            asked.set()
            try:
                return await asyncio.get_running_loop().create_future()
            finally:
                withdrawn.set()

        async with serving(paths, Person(answer)):
            _, writer = await asyncio.open_unix_connection(paths.socket("policy-agent.sock"))
            writer.write(wire.encode_question(QUESTION))
            writer.write_eof()
            await asked.wait()
            second = asyncio.create_task(send(paths, wire.encode_question(QUESTION._replace(argument="+second"))))
            writer.close()
            await withdrawn.wait()
            assert await second == b"allow:vault"

    asyncio.run(conversation())


def test_an_asker_that_fails_refuses(paths: Paths) -> None:
    async def fail(_: wire.Question) -> str | None:
        raise PeerError("broken")

    async def conversation() -> None:
        async with serving(paths, Person(fail)):
            assert await send(paths, wire.encode_question(QUESTION)) == b"deny"

    asyncio.run(conversation())


def test_the_agents_end_answers_nobody_yes(paths: Paths) -> None:
    async def conversation() -> None:
        asked = asyncio.Event()

        async def never(_: wire.Question) -> str | None:
            asked.set()
            return await asyncio.get_running_loop().create_future()

        async with serving(paths, Person(never)):
            waiting = asyncio.create_task(send(paths, wire.encode_question(QUESTION)))
            await asked.wait()
        assert await waiting == b""
        assert not os.path.exists(paths.socket("policy-agent.sock"))

    asyncio.run(conversation())


def test_callers_without_end_are_dropped(paths: Paths) -> None:
    async def conversation() -> None:
        async with serving(paths, Person(always("net"))):
            idle = [await asyncio.open_unix_connection(paths.socket("policy-agent.sock")) for _ in range(MAX_CALLERS + 5)]
            assert await idle[-1][0].read() == b""
            for _, writer in idle:
                writer.close()
            answer = b""
            while answer != b"allow:net":                    # until it has noticed that they have gone
                with contextlib.suppress(ConnectionError):
                    answer = await send(paths, wire.encode_question(QUESTION))

    asyncio.run(conversation())


def test_there_is_one_agent(paths: Paths) -> None:
    held = take_lock(paths)
    with pytest.raises(HostError, match="already"):
        take_lock(paths)
    os.close(held)


# -- windows -------------------------------------------------------------------------------------------------------------


def dialog(code: str) -> list[str]:
    return [sys.executable, "-I", "-c", f"import json, os, sys\norder = json.loads(sys.stdin.readline())\n{code}"]


def test_a_dialog_is_a_process_that_is_given_the_question(paths: Paths) -> None:
    code = ("right = order['colours']['net'] == '#3465a4' and 'qubes.Filecopy' in order['request']\n"
            "print('allow:vault' if right else 'deny', end='')")
    assert asyncio.run(_ask(Windows(Connection(paths), dialog(code)))) == "vault"


async def _ask(asker: Windows | Terminal) -> str | None:
    return await asker.ask(QUESTION)


@pytest.mark.parametrize("code", ["sys.exit(1)", "print('allow:net', end=''); sys.stdout.flush(); sys.exit(3)", "print('yes')",
                                  "os.abort()", "print('allow:' + 'x' * 10000)", "pass"])
def test_a_dialog_that_fails_refuses(paths: Paths, code: str) -> None:
    with pytest.raises(PeerError):
        asyncio.run(_ask(Windows(Connection(paths), dialog(code))))


def test_a_withdrawn_dialog_is_ended(paths: Paths, tmp_path: Path) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)

    async def conversation() -> int:
        code = f"open({str(pipe)!r}, 'w').write(str(os.getpid()))\nsys.stdin.read()"
        task = asyncio.create_task(_ask(Windows(Connection(paths), dialog(code))))
        pid = int(await asyncio.to_thread(pipe.read_text))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    pid = asyncio.run(conversation())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_notices_go_to_the_desktop_or_the_log(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, seen = tmp_path / "notify-send", tmp_path / "seen"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    asyncio.run(Windows(Connection(paths)).tell(wire.Notice("deny", "qubes.Filecopy", "+", "work", "vault")))
    assert seen.read_text().splitlines() == ["--app-name=Cloison", "--", "Call denied", "work to vault: qubes.Filecopy"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    asyncio.run(Windows(Connection(paths)).tell(wire.Notice("deny", "qubes.Filecopy", "+", "work", "vault")))


def test_colours_come_from_qubesd_or_from_the_icons(paths: Paths) -> None:
    icons = {"work": "appvm-red", "@dispvm:dvm": "dispvm-orange", "odd": "appvm-mauve", "bare": ""}
    assert colours(icons, Connection(paths)) == {"work": "#cc0000", "@dispvm:dvm": "#f57900", "odd": UNKNOWN, "bare": UNKNOWN}


# -- terminal ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "chosen"), [
    (b"1\n", "net"), (b"2\n", "vault"), (b"vault\n", "vault"), (b"\n", None), (b"0\n", None), (b"3\n", None), (b"y\n", None),
    (b"-1\n", None), (b"\x04", None), (b"9" * 200 + b"\n", None), ("²\n".encode(), None),
])
def test_a_terminal_asks(paths: Paths, typed: bytes, chosen: str | None) -> None:
    ours, theirs = pty.openpty()

    async def conversation() -> str | None:
        os.write(ours, b"1\n")                               # before the question: no answer to it
        task = asyncio.create_task(_ask(Terminal(theirs, Connection(paths))))
        shown = b""
        while b"(Enter: no): " not in shown:
            shown += await asyncio.to_thread(os.read, ours, 4096)
        assert b"wants to call qubes.Filecopy in:" in shown
        assert b"\x1b[48;2;204;0;0m  \x1b[0m work" in shown
        os.write(ours, typed)
        return await task

    try:
        assert asyncio.run(conversation()) == chosen
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_lists_targets_as_the_window_does(paths: Paths) -> None:
    """Qubes, disposables, the host; numbers are those of that list, and a name may be typed as policy has it."""
    targets = ("@dispvm:dvm", "dom0", "vault", "work")
    question = QUESTION._replace(targets=targets)
    for typed, chosen in ((b"1\n", "vault"), (b"3\n", "@dispvm:dvm"), (b"4\n", "dom0"), (b"@dispvm:dvm\n", "@dispvm:dvm")):
        ours, theirs = pty.openpty()

        async def conversation(ours: int = ours, theirs: int = theirs, typed: bytes = typed) -> tuple[bytes, str | None]:
            async def ask() -> str | None:
                return await Terminal(theirs, Connection(paths)).ask(question)

            task, seen = asyncio.create_task(ask()), b""
            while b"(Enter: no): " not in seen:
                seen += await asyncio.to_thread(os.read, ours, 4096)
            os.write(ours, typed)
            return seen, await task

        seen, answer = asyncio.run(conversation())
        assert answer == chosen
        places = [seen.index(name) for name in (b"vault", b" work\r", b"new disposable of dvm", b"dom0 (this computer)")]
        assert places == sorted(places)
        os.close(ours)
        os.close(theirs)


def test_the_agent_of_a_terminal_as_a_process(paths: Paths) -> None:
    """From the question on the socket to the answer, on a terminal that is the program's own."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "CLOISON_ROOT": os.path.dirname(paths.run)}
    command = ["setsid", "--ctty", "--wait", sys.executable, "-P", "-m", "cloison.cli.main", "ask-agent", "--terminal"]
    process = subprocess.Popen(command, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)

    async def conversation() -> bytes:
        asking = asyncio.create_task(send(paths, wire.encode_question(QUESTION)))
        shown = b""
        while b"(Enter: no): " not in shown:
            shown += await asyncio.to_thread(os.read, ours, 4096)
        os.write(ours, b"net\n")
        return await asking

    try:
        while not os.path.exists(paths.socket("policy-agent.sock")):
            assert process.poll() is None
        assert asyncio.run(conversation()) == b"allow:net"
        os.write(ours, b"\x03")                              # Ctrl-C
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_nowhere_to_ask(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not ask_agent.has_windows()
    monkeypatch.setenv("DISPLAY", ":1")
    assert ask_agent.has_windows()
