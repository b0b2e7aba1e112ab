"""What the policy daemon keeps of qubesd's facts, and for how long: never past an event, never without qubesd."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE
from tests.policy.support import entry, system_info
from tests.runtime.ports import News

from cloison.policy.facts import BadFacts
from cloison.qrexec.policyd import system_info as module
from cloison.qrexec.policyd.system_info import NoFacts, SystemInfo, snapshot
from cloison.runtime.paths import Paths

EVENT = b"1\0\0domain-add\0\0"


class Qubesd(News):
    """Answers with `self.system`, and tells of events to who has subscribed. `before` is awaited before each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.system: dict[str, Any] = system_info()
        self.first = b"1\0\0connection-established\0\0"
        self.asked = 0
        self.before: Callable[[], Awaitable[object]] | None = None
        self.subscribers: list[asyncio.StreamWriter] = []
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving[asyncio.ensure_future(self._serve(reader, writer))] = writer

    async def close(self) -> None:
        for task, writer in self._serving.items():
            task.cancel()
            writer.close()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.gather(*(writer.wait_closed() for writer in self._serving.values()), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read()
        if request.startswith(b"admin.Events"):
            self.subscribers.append(writer)
            writer.write(self.first)
            self.tell()
        else:
            assert request == b"internal.GetSystemInfo+ dom0 name dom0\0"
            self.asked += 1
            answer = b"0\0" + json.dumps(self.system).encode()
            self.tell()
            if self.before is not None:
                await self.before()
            writer.write(answer)
            writer.close()

    async def event(self) -> None:
        for writer in self.subscribers:
            writer.write(EVENT)
            await writer.drain()

    def end(self) -> None:
        for writer in self.subscribers:
            writer.close()
        self.subscribers.clear()


def run(folder: Path, talk: Callable[[SystemInfo, Qubesd], Awaitable[None]]) -> None:
    async def whole() -> None:
        paths, qubesd = Paths(str(folder), str(folder), str(folder)), Qubesd()
        async with asyncio.timeout(PATIENCE):
            servers = [await asyncio.start_unix_server(qubesd.accept, paths.socket(name))
                       for name in ("qubesd.sock", "qubesd.internal.sock")]
            system = SystemInfo(paths)
            try:
                await talk(system, qubesd)
            finally:
                system.close()
                system.close()
                for server in servers:
                    server.close()
                await qubesd.close()

    asyncio.run(whole())


def test_facts_are_kept_until_an_event(tmp_path: Path) -> None:
    async def talk(system: SystemInfo, qubesd: Qubesd) -> None:
        assert system.current() is None
        found = await system.fetch()
        assert system.current() is found is system.current() and "work" in found.facts.names
        assert qubesd.asked == 1 and len(qubesd.subscribers) == 1
        qubesd.system["domains"]["new"] = entry(50)
        await qubesd.event()
        assert system.current() is None
        again = await system.fetch()
        assert "new" in again.facts.names and system.current() is again
        assert qubesd.asked == 2 and len(qubesd.subscribers) == 1        # the subscription goes on

    run(tmp_path, talk)


def test_many_who_wait_ask_once(tmp_path: Path) -> None:
    async def talk(system: SystemInfo, qubesd: Qubesd) -> None:
        found = await asyncio.gather(*(system.fetch() for _ in range(20)))
        assert qubesd.asked == 1 and all(each is found[0] for each in found)

    run(tmp_path, talk)


def test_who_gives_up_costs_the_others_nothing(tmp_path: Path) -> None:
    async def talk(system: SystemInfo, qubesd: Qubesd) -> None:
        go = asyncio.Event()
        qubesd.before = go.wait
        first, second = asyncio.ensure_future(system.fetch()), asyncio.ensure_future(system.fetch())
        await qubesd.until(lambda: qubesd.asked == 1)
        first.cancel()
        await asyncio.wait([first])
        go.set()
        assert "work" in (await second).facts.names and qubesd.asked == 1

    run(tmp_path, talk)


def test_a_fetch_that_an_event_overtook_is_not_kept_and_nobody_later_joins_it(tmp_path: Path) -> None:
    async def talk(system: SystemInfo, qubesd: Qubesd) -> None:
        await system.fetch()
        await qubesd.event()
        go = asyncio.Event()
        qubesd.before = go.wait
        former = asyncio.ensure_future(system.fetch())
        await qubesd.until(lambda: qubesd.asked == 2)
        qubesd.system["domains"]["new"] = entry(50)
        await qubesd.event()
        later = asyncio.ensure_future(system.fetch())
        await qubesd.until(lambda: qubesd.asked == 3)
        go.set()
        assert "new" not in (await former).facts.names           # it was asked before
        assert "new" in (await later).facts.names
        kept = system.current()
        assert kept is None or "new" in kept.facts.names

    run(tmp_path, talk)


def test_an_event_during_the_only_fetch_makes_the_next_one_ask_again(tmp_path: Path) -> None:
    async def talk(system: SystemInfo, qubesd: Qubesd) -> None:
        qubesd.before = qubesd.event
        await system.fetch()
        qubesd.before = None
        assert system.current() is None
        await system.fetch()
        assert qubesd.asked == 2 and system.current() is not None

    run(tmp_path, talk)


def test_nothing_is_kept_of_a_qubesd_that_has_ended(tmp_path: Path) -> None:
    async def talk(system: SystemInfo, qubesd: Qubesd) -> None:
        await system.fetch()
        qubesd.end()
        await asyncio.sleep(0)
        assert system.current() is None and system._events is None
        assert "work" in (await system.fetch()).facts.names
        assert qubesd.asked == 2 and len(qubesd.subscribers) == 1        # with a subscription of its own
        await qubesd.event()
        assert system.current() is None

    run(tmp_path, talk)


@pytest.mark.parametrize("first", [b"", b"2\0QubesException\0\0no\0", b"0\0"])
def test_facts_that_can_not_be_watched_are_none(tmp_path: Path, first: bytes) -> None:
    async def talk(system: SystemInfo, qubesd: Qubesd) -> None:
        qubesd.first = first
        fetching = asyncio.ensure_future(system.fetch())
        if not first:
            await qubesd.until(lambda: bool(qubesd.subscribers))
            qubesd.end()
        with pytest.raises(NoFacts, match="does not tell of changes"):
            await fetching
        assert qubesd.asked == 0 and system.current() is None and system._fetching is None

    run(tmp_path, talk)


@pytest.mark.parametrize("silent", ["qubesd.sock", "qubesd.internal.sock"])
def test_a_qubesd_that_does_not_answer_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: str,
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.01 if silent == "qubesd.sock" else 0.2)

    async def talk(system: SystemInfo, qubesd: Qubesd) -> None:
        if silent == "qubesd.sock":
            qubesd.first = b""
        else:
            qubesd.before = asyncio.Event().wait
        with pytest.raises(NoFacts, match="does not answer"):
            await system.fetch()

    run(tmp_path, talk)


def test_without_qubesd_there_are_no_facts(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path), str(tmp_path), str(tmp_path))
    with pytest.raises(NoFacts, match="can't be asked"):
        asyncio.run(SystemInfo(paths).fetch())
    with pytest.raises(NoFacts, match="can't be asked"):
        asyncio.run(module.fetch(paths))


def test_an_answer_that_does_not_end_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REPLY", 1000)

    async def talk(system: SystemInfo, _qubesd: Qubesd) -> None:
        with pytest.raises(NoFacts, match="does not end"):
            await system.fetch()

    run(tmp_path, talk)


def test_what_a_snapshot_says() -> None:
    system = system_info()
    system["domains"]["vault"] |= {"guivm": None, "icon": ""}
    system["domains"]["work"] |= {"guivm": "gui", "icon": "appvm-blue"}
    found = snapshot(b"0\0" + json.dumps(system).encode())
    assert found.guivms["work"] == "gui" and found.guivms["dvm"] == "dom0" and "vault" not in found.guivms
    assert found.icons["work"] == "appvm-blue" and "vault" not in found.icons
    assert found.icons["@dispvm:dvm"] == "dispvm-red" and found.icons["dvm"] == "appvm-red" and "@dispvm:work" not in found.icons
    alias = "uuid:00000000-0000-0000-0000-000000000003"
    assert found.identity("dvm") == found.identity("@dispvm:dvm") == alias and found.identity("none") is None


@pytest.mark.parametrize(("reply", "error"), [
    (b"2\0QubesException\0\0no\0", NoFacts), (b"0\0not json", BadFacts), (b"0\0{}", BadFacts), (b"0\0" + b"[" * 100_000, BadFacts),
])
def test_what_is_no_snapshot(reply: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        snapshot(reply)
