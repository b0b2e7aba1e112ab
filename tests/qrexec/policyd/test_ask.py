"""How the agent that asks the person is reached, on the host and in a GUI qube: whatever goes wrong is no answer, soon."""
from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.qrexec.policyd import ask
from cloison.qrexec.policyd.ask import Agents, NoAnswer
from cloison.runtime.paths import Paths
from cloison.wire import ask as wire

QUESTION = wire.Question("work", "test.S", "+", ("vault",), "", {})
NOTICE = wire.Notice("deny", "test.S", "+", "work", "vault")


def host(
    folder: Path, answer: bytes | None, talk: Callable[[Agents], Awaitable[None]],
) -> list[bytes]:
    """Be the host's agent; what it heard. `answer` None: it says nothing and stays."""
    heard: list[bytes] = []
    over: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        if answer is None:
            await done.wait()
        else:
            writer.write(answer)
        writer.close()
        over.append(1)
        done.set()

    async def whole() -> None:
        nonlocal done
        done = asyncio.Event()
        paths = Paths(str(folder), str(folder), str(folder))
        async with asyncio.timeout(PATIENCE), await asyncio.start_unix_server(serve, paths.socket(ask.SOCKET)):
            await talk(Agents(paths))
            done.set()

    done: asyncio.Event
    asyncio.run(whole())
    return heard


@pytest.mark.parametrize(("answer", "choice"), [
    (b"allow:vault", "vault"), (b"allow:@dispvm:dvm\n", "@dispvm:dvm"), (b"deny", None),
])
def test_an_answer_of_the_hosts_agent(tmp_path: Path, answer: bytes, choice: str | None) -> None:
    async def talk(agents: Agents) -> None:
        assert await agents.ask("dom0", QUESTION) == choice

    assert host(tmp_path, answer, talk) == [wire.encode_question(QUESTION)]


@pytest.mark.parametrize("answer", [b"", b"yes", b"allow:", b"allow:a b", b"deny" + b" " * wire.MAX_ANSWER, b"x" * (1 << 20)])
def test_what_is_no_answer_of_the_hosts_agent(tmp_path: Path, answer: bytes) -> None:
    async def talk(agents: Agents) -> None:
        with pytest.raises(NoAnswer):
            await agents.ask("dom0", QUESTION)

    host(tmp_path, answer, talk)


def test_a_person_has_so_long(tmp_path: Path) -> None:
    async def talk(agents: Agents) -> None:
        with pytest.raises(NoAnswer, match="in time"):
            await agents.ask("dom0", QUESTION, 0.01)

    assert host(tmp_path, None, talk) == [wire.encode_question(QUESTION)]


@pytest.mark.parametrize("answer", [b"", b"deny", None])
def test_a_message_needs_no_answer_and_its_failure_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None,
) -> None:
    monkeypatch.setattr(ask, "NOTIFY_TIME", 0.01 if answer is None else PATIENCE)

    async def talk(agents: Agents) -> None:
        await agents.notify("dom0", NOTICE)

    assert host(tmp_path, answer, talk) == [wire.encode_notice(NOTICE)]


def test_without_an_agent_there_is_no_answer_and_a_message_is_lost(tmp_path: Path) -> None:
    async def work() -> None:
        agents = Agents(Paths(str(tmp_path), str(tmp_path), str(tmp_path)))
        with pytest.raises(NoAnswer, match="can't be reached"):
            await agents.ask("dom0", QUESTION)
        await agents.notify("dom0", NOTICE)

    asyncio.run(work())


@pytest.mark.parametrize(("script", "choice"), [
    ("cat > {0}/heard; printf allow:vault", "vault"), ("cat > {0}/heard; printf deny", None),
    ("cat > {0}/heard; printf allow:vault; exit 1", NoAnswer), ("exit 125", NoAnswer), ("exec <&-; printf deny; exit 1", NoAnswer),
    ("cat > {0}/heard; printf '%0200d' 1", NoAnswer), ("cat > {0}/heard; printf deny >&2", NoAnswer),
])
def test_an_agent_in_a_gui_qube_is_asked_by_a_call(tmp_path: Path, script: str, choice: str | type[NoAnswer] | None) -> None:
    """It gets the question without the descriptor; a status other than 0 is no answer, whatever was said."""
    called: list[tuple[str, str]] = []

    def call(qube: str, service: str) -> list[str]:
        called.append((qube, service))
        return ["/bin/sh", "-c", script.format(tmp_path)]

    async def work() -> None:
        agents = Agents(Paths(str(tmp_path), str(tmp_path), str(tmp_path)), call)
        async with asyncio.timeout(PATIENCE):
            if choice is NoAnswer:
                with pytest.raises(NoAnswer):
                    await agents.ask("gui", QUESTION)
            else:
                assert await agents.ask("gui", QUESTION) == choice

    asyncio.run(work())
    assert called == [("gui", wire.ASK)]
    heard = tmp_path / "heard"
    assert not heard.exists() or heard.read_bytes() == wire.encode_question(QUESTION).partition(b"\0")[2]


def test_a_call_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    for name in ("never", "pid"):
        os.mkfifo(tmp_path / name)
    pids: list[int] = []

    async def work() -> None:
        agents = Agents(Paths(str(tmp_path), str(tmp_path), str(tmp_path)),
                        lambda _qube, _service: ["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec cat {tmp_path}/never"])
        asking = asyncio.ensure_future(agents.ask("gui", QUESTION, PATIENCE))
        pids.append(int(await asyncio.to_thread((tmp_path / "pid").read_text)))
        asking.cancel()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([asking])

    asyncio.run(work())
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
