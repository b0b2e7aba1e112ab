"""A warden's door: answers in order, every event to everyone, and no caller that could spoil it for another."""
from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.runtime.ports import Hostile

from cloison.errors import MachineError
from cloison.warden.control import MAX_UNREAD, ControlServer
from cloison.wire.warden import MAX_LINE, encode


class Door:
    """A server on a path, what it was told to do, and connections to it."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "warden.sock")
        self.done: list[str] = []
        self.server = ControlServer(self.path, self._do, lambda: {"state": "running"})

    async def _do(self, order: str, _request: dict[str, object]) -> None:
        if order == "fail":
            raise MachineError("it can't")
        self.done.append(order)

    async def connect(self) -> Hostile:
        stream = socket.socket(socket.AF_UNIX)
        stream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stream, self.path)
        return Hostile(stream)


def with_door(work: Callable[[Door], Awaitable[None]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="cloison-") as folder:
            door = Door(folder)
            door.server.listen()
            await work(door)
            await door.server.close()
            assert os.listdir(folder) == []

    asyncio.run(run())


async def answered(peer: Hostile, *answers: dict[str, object]) -> None:
    expected = b"".join(map(encode, answers))
    await peer.until(lambda: len(peer.got) >= len(expected) or peer.hung_up)
    assert peer.got == expected


def test_an_order_that_nobody_waits_for_any_more_is_not_carried_out() -> None:
    async def work(door: Door) -> None:
        peer = await door.connect()
        now = time.monotonic()
        for number, before in enumerate((now - 1, now + 1000, None), 1):
            peer.stream.send(encode({"id": number, "do": f"order{number}", "before": before}))
        late = {"id": 1, "error": "the order came too late: nobody waits for it"}
        await answered(peer, late, *({"id": number, "ok": True, "state": "running"} for number in (2, 3)))
        assert door.done == ["order2", "order3"]
        peer.close()

    with_door(work)


def test_orders_are_answered_in_turn() -> None:
    async def work(door: Door) -> None:
        peer = await door.connect()
        orders: list[dict[str, object]] = [{"id": 1, "do": "status"}, {"id": 2, "do": "pause"}, {"id": 3, "do": "fail"}, {}]
        await peer.send(b"".join(map(encode, orders)))
        await answered(peer, {"id": 1, "ok": True, "state": "running"}, {"id": 2, "ok": True, "state": "running"},
                       {"id": 3, "error": "it can't"}, {"id": None, "ok": True, "state": "running"})
        assert door.done == ["pause", "None"]

    with_door(work)


def test_events_go_to_everyone_until_the_close() -> None:
    async def work(door: Door) -> None:
        peers = [await door.connect() for _ in range(3)]
        for number, peer in enumerate(peers):
            await peer.send(encode({"id": number, "do": "status"}))
            await answered(peer, {"id": number, "ok": True, "state": "running"})
            peer.got.clear()
        peers[0].close()
        door.server.event({"event": "stopped"})
        await door.server.close()
        for peer in peers[1:]:
            await peer.gone()
            assert peer.got == encode({"event": "stopped"})

    with_door(work)


@pytest.mark.parametrize("sent", [b"no json\n", b"[]\n", b"5\n", b"\xff\n", b"x" * (MAX_LINE + 2), b"[" * 100_000 + b"\n"],
                         ids=["text", "list", "number", "bytes", "long", "deep"])
def test_nonsense_is_hung_up_on_alone(sent: bytes) -> None:
    async def work(door: Door) -> None:
        bad, good = await door.connect(), await door.connect()
        sending = asyncio.ensure_future(bad.send(sent))
        await bad.until(lambda: bad.hung_up)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await good.send(encode({"id": 1, "do": "status"}))
        await answered(good, {"id": 1, "ok": True, "state": "running"})

    with_door(work)


def test_adopted_connection_hears_what_happens_at_once_and_its_loss_is_told() -> None:
    async def work(door: Door) -> None:
        ours, theirs = socket.socketpair()
        lost = asyncio.Event()
        await door.server.adopt(theirs, lost.set)
        door.server.event({"event": "failed"})
        peer = Hostile(ours)
        await answered(peer, {"event": "failed"})
        peer.close()
        await asyncio.wait_for(lost.wait(), PATIENCE)

    with_door(work)


def test_socket_left_by_a_killed_warden_is_replaced() -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="cloison-") as folder:
            door = Door(folder)
            Path(door.path).write_text("")
            door.server.listen()
            (await door.connect()).close()
            await door.server.close()

    asyncio.run(run())


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_what_one_has_not_read_may_come_to_the_bound_and_no_further(monkeypatch: pytest.MonkeyPatch, beyond: int) -> None:
    async def work(door: Door) -> None:
        ours, theirs = socket.socketpair()
        await door.server.adopt(theirs)
        event: dict[str, object] = {"event": "qdb-change"}
        writer, = door.server._writers
        waits = MAX_UNREAD - len(encode(event)) + beyond
        monkeypatch.setattr(writer.transport, "get_write_buffer_size", lambda: waits)
        door.server.event(event)
        assert writer.is_closing() is (beyond > 0)
        writer.transport.abort()
        ours.close()

    with_door(work)


def test_a_connection_that_reads_no_events_is_hung_up_on_and_no_other() -> None:
    async def work(door: Door) -> None:
        stuck = socket.socket(socket.AF_UNIX)
        stuck.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stuck, door.path)
        reader = await door.connect()
        await reader.send(encode({"id": 1, "do": "status"}))
        await reader.until(lambda: bool(reader.got))
        sent = 0
        while len(door.server._writers) == 2:
            door.server.event({"event": "qdb-change", "path": f"/{sent:050}"})
            sent += 1
            await reader.until(lambda last=sent - 1: reader.got.endswith(f'/{last:050}"}}\n'.encode()))
            assert sent < 20_000
        await reader.send(encode({"id": 2, "do": "status"}))
        await reader.until(lambda: b'"id": 2' in reader.got or b'"id":2' in reader.got)
        stuck.close()

    with_door(work)
