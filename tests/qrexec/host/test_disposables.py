"""How many disposables a qube's calls have at once: the others wait in turn, and nobody's end or failure keeps a place."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.runtime.ports import PATIENCE, News

from cloison.errors import CloisonError
from cloison.qrexec.host.disposables import MAX_WAITING, STARTING, Disposables
from cloison.qrexec.host.policy_client import Denied
from cloison.wire import admin


class Qubesd(News):
    """Gives disposables by lease, each when `ready` is set; or refuses them all."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)
        self.ready = asyncio.Event()
        self.ready.set()
        self.refuses = False
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        self.asked += 1
        self.tell()
        await self.ready.wait()
        if self.refuses:
            writer.write(admin.exception("QubesException", "no"))
        else:
            writer.write(admin.event("disp1", "disposable-ready", [("name", "disp1")]))
        await writer.drain()
        writer.close()


class Calls(News):
    """Calls that have a disposable each until `over` is set."""

    def __init__(self, disposables: Disposables, qubesd: Qubesd) -> None:
        super().__init__()
        self._disposables, self._qubesd = disposables, qubesd
        self.over = asyncio.Event()
        self.inside = self.most = self.waits = self.denied = self.failed = 0

    async def one(self) -> None:
        try:
            async with self._disposables.one(self._qubesd.path, "template", self._wait) as disposable:
                assert disposable.target == "disp1"
                self.inside += 1
                self.most = max(self.most, self.inside)
                self.tell()
                await self.over.wait()
                self.inside -= 1
        except Denied:
            self.denied += 1
        except CloisonError:
            self.failed += 1
        self.tell()

    def _wait(self) -> None:
        self.waits += 1


def run(folder: Path, most: int, talk: Callable[[Calls, Qubesd], Awaitable[None]]) -> None:
    async def whole() -> None:
        qubesd = Qubesd(folder / "qubesd.sock")
        async with asyncio.timeout(PATIENCE), await asyncio.start_unix_server(qubesd.serve, qubesd.path):
            await talk(Calls(Disposables(most), qubesd), qubesd)

    asyncio.run(whole())


def test_those_beyond_wait_their_turn(tmp_path: Path) -> None:
    async def talk(calls: Calls, qubesd: Qubesd) -> None:
        tasks = [asyncio.create_task(calls.one()) for _ in range(10)]
        await calls.until(lambda: calls.inside == 3)
        assert qubesd.asked == 3 and calls.waits == 7
        calls.over.set()
        await asyncio.gather(*tasks)
        assert qubesd.asked == 10 and calls.most == 3 and not calls.denied

    run(tmp_path, 3, talk)


def test_few_start_at_a_time(tmp_path: Path) -> None:
    async def talk(calls: Calls, qubesd: Qubesd) -> None:
        qubesd.ready.clear()
        tasks = [asyncio.create_task(calls.one()) for _ in range(10)]
        await qubesd.until(lambda: qubesd.asked == STARTING)
        assert calls.inside == 0 and calls.waits == 0
        qubesd.ready.set()
        await calls.until(lambda: calls.inside == 10)
        calls.over.set()
        await asyncio.gather(*tasks)

    run(tmp_path, 10, talk)


def test_a_thousand_calls_and_the_line_has_an_end(tmp_path: Path) -> None:
    """A flood: what neither has a disposable nor a place in line is refused at once."""
    async def talk(calls: Calls, qubesd: Qubesd) -> None:
        tasks = [asyncio.create_task(calls.one()) for _ in range(1000)]
        await calls.until(lambda: calls.inside == 2 and calls.denied == 1000 - 2 - MAX_WAITING)
        assert qubesd.asked == 2
        calls.over.set()
        await asyncio.gather(*tasks)
        assert qubesd.asked == 2 + MAX_WAITING and calls.most == 2

    run(tmp_path, 2, talk)


def test_none_at_all(tmp_path: Path) -> None:
    async def talk(calls: Calls, qubesd: Qubesd) -> None:
        await calls.one()
        assert calls.denied == 1 and qubesd.asked == 0

    run(tmp_path, 0, talk)


@pytest.mark.parametrize("where", ["inside", "in line", "starting"])
def test_a_call_that_is_given_up_keeps_no_place(tmp_path: Path, where: str) -> None:
    async def talk(calls: Calls, qubesd: Qubesd) -> None:
        if where == "starting":
            qubesd.ready.clear()
        first, second, third = (asyncio.create_task(calls.one()) for _ in range(3))
        if where == "starting":
            await qubesd.until(lambda: qubesd.asked == 1)
        else:
            await calls.until(lambda: calls.inside == 1)
        given_up = second if where == "in line" else first
        given_up.cancel()
        await asyncio.wait([given_up])
        qubesd.ready.set()
        calls.over.set()
        await asyncio.gather(*({first, second, third} - {given_up}))
        assert qubesd.asked == (2 if where == "in line" else 3) and not calls.denied and not calls.failed

    run(tmp_path, 1, talk)


def test_starts_that_fail_keep_no_place(tmp_path: Path) -> None:
    async def talk(calls: Calls, qubesd: Qubesd) -> None:
        qubesd.refuses = True
        for _ in range(5):
            await calls.one()
        assert calls.failed == 5
        qubesd.refuses = False
        calls.over.set()
        await calls.one()
        assert calls.failed == 5 and qubesd.asked == 6

    run(tmp_path, 1, talk)
