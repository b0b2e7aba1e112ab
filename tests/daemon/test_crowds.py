"""Many callers at once, and hostile ones: nothing is lost, nothing grows without bound, the next honest caller is served."""
from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.daemon.sockets import listener, request, served
from tests.daemon.test_crash import call, daemon

from cloison.admin.methods import SOCKETS
from cloison.daemon import server as server_module
from cloison.daemon.app import App
from cloison.daemon.server import Server
from cloison.wire.admin import EventDecoder, Failure, parse_reply

LISTENERS, WRITERS, TIMES = 1000, 50, 4
HONEST = b"admin.label.Index+red dom0 name dom0\0"


@contextmanager
def many_descriptors() -> Iterator[int]:
    """As many as the hard limit allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def hear(path: str, wanted: int, ready: asyncio.Semaphore) -> list[tuple[str, str]]:
    """The first `wanted` feature changes, as (feature, value)."""
    reader, writer = await listener(path)
    ready.release()
    decoder = EventDecoder()
    heard: list[tuple[str, str]] = []
    while len(heard) < wanted:
        while (event := decoder.next_event()) is not None:
            if event.event.startswith("domain-feature-set:"):
                pairs = dict(event.pairs)
                heard.append((pairs["feature"], pairs["value"]))
        if len(heard) < wanted:
            data = await reader.read(1 << 20)
            assert data, "a listener was dropped"
            decoder.feed(data)
    writer.close()
    return heard


async def write(path: str, number: int) -> None:
    for value in range(TIMES):
        assert await request(path, b"admin.vm.feature.Set+w%d dom0 name dom0\0%d" % (number, value)) == b"0\0"


def test_a_thousand_listeners_and_fifty_writers_lose_nothing(tmp_path: Path) -> None:
    """All hear every change, in the same order, each writer's in its own order."""

    async def scenario(_: App, path: str) -> None:
        ready = asyncio.Semaphore(0)
        hearing = [asyncio.create_task(hear(path, WRITERS * TIMES, ready)) for _number in range(LISTENERS)]
        for _number in range(LISTENERS):
            await ready.acquire()
        await asyncio.gather(*(write(path, number) for number in range(WRITERS)))
        first, *rest = await asyncio.gather(*hearing)
        assert all(heard == first for heard in rest)
        for number in range(WRITERS):
            assert [value for name, value in first if name == f"w{number}"] == [str(value) for value in range(TIMES)]

    with many_descriptors():
        served(tmp_path, scenario)


def test_ten_thousand_idle_connections(tmp_path: Path) -> None:
    """Most of them to a daemon of its own process; an honest caller is answered before, among and after them."""
    with many_descriptors() as most, daemon(tmp_path) as process:
        idle = []
        for number in range(min(10_000, most - 500)):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(tmp_path / "run" / "qubesd.sock"))
            client.sendall(b"admin.vm.List+ dom0")
            idle.append(client)
            if number % 2500 == 0:
                assert call(tmp_path, "admin.label.Index+red", "dom0") == "1"
        assert call(tmp_path, "admin.label.Index+red", "dom0") == "1"
        held = len(os.listdir(f"/proc/{process.pid}/fd"))
        assert server_module.MAX_UNFINISHED // 2 < held < server_module.MAX_UNFINISHED + 100, "as many as may be, and no more"
        for client in idle:
            client.close()
        assert call(tmp_path, "admin.label.Index+red", "dom0") == "1"


def test_a_sender_of_one_byte_at_a_time_delays_nobody(tmp_path: Path) -> None:
    async def scenario(_: App, path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        for byte in HONEST:
            writer.write(bytes([byte]))
            assert await request(path, HONEST) == b"0\x001"
        writer.write_eof()
        assert await reader.read() == b"0\x001"
        writer.close()

    served(tmp_path, scenario)


def test_requests_under_way_have_a_bound_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_BUFFERED", 300_000)

    async def scenario(_: App, path: str) -> None:
        fat = [await asyncio.open_unix_connection(path) for _ in range(10)]
        for pair in fat:
            pair[1].write(b"x" * 60_000)
            assert await request(path, HONEST) == b"0\x001"
        assert [await pair[0].read() for pair in fat[:5]] == [b""] * 5
        for pair in fat:
            pair[1].close()

    served(tmp_path, scenario)


def test_callers_that_do_not_take_their_reply_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_UNREAD", 3)

    notes = b"n" * 250_000                      # more than a socket holds

    async def scenario(_: App, path: str) -> None:
        await request(path, b"admin.vm.Create.TemplateVM+ dom0 name dom0\0name=tpl label=red")
        assert await request(path, b"admin.vm.notes.Set+ dom0 name tpl\0" + notes) == b"0\0"
        deaf = []
        for _number in range(6):
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            client.sendall(b"admin.vm.notes.Get+ dom0 name tpl\0")
            client.shutdown(socket.SHUT_WR)
            deaf.append(client)
            assert await request(path, HONEST) == b"0\x001"
        taken = await asyncio.gather(*(asyncio.to_thread(_read_all, client) for client in deaf))
        whole = [size == len(notes) + 2 for size in taken]
        assert whole == sorted(whole), "the oldest go first"
        assert 1 <= sum(whole) <= 3

    served(tmp_path, scenario)


def _read_all(client: socket.socket) -> int:
    with client:
        return sum(len(data) for data in iter(lambda: client.recv(1 << 16), b""))


def test_too_many_calls_under_way_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CALLS", 2)

    async def scenario(_: App, path: str) -> None:
        ears = [await listener(path) for _number in range(2)]
        refused = parse_reply(await request(path, b"admin.Events+ dom0 name dom0\0"))
        assert isinstance(refused, Failure)
        assert refused.class_name == "QubesException"
        ears[0][1].close()
        while not (await request(path, HONEST)).startswith(b"0\0"):
            continue
        ears[1][1].close()

    served(tmp_path, scenario)


def test_closing_hangs_up_on_listeners(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        other = Server(app, app.parts.paths, SOCKETS)
        await other.listen()                    # takes the paths over
        reader, writer = await listener(path)
        await other.close()
        assert await reader.read() == b""
        assert not app.events.listeners
        writer.close()

    served(tmp_path, scenario)


def test_a_listener_hears_its_qube_only(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        await request(path, b"admin.vm.Create.TemplateVM+ dom0 name dom0\0name=tpl label=red")
        reader, writer = await listener(path, f"uuid:{app.system.qube('tpl').uuid}")
        await request(path, b"admin.vm.tag.Set+a dom0 name dom0\0")
        await request(path, b"admin.vm.tag.Set+b dom0 name tpl\0")
        assert await reader.readuntil(b"\0\0") == b"1\0tpl\0domain-tag-add:b\0tag\0b\0\0"
        writer.close()

    served(tmp_path, scenario)


HEADERS = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda words: b" ".join(words) + b"\0", st.lists(st.binary(max_size=40), min_size=3, max_size=5)),
    st.builds(lambda method, rest, dest, payload: b"%b+%b dom0 name %b\0%b" % (method.encode(), rest, dest, payload),
              st.sampled_from([name for name in SOCKETS["qubesd.sock"] if name not in ("admin.Events", "admin.vm.Stats")]),
              st.binary(max_size=64), st.sampled_from([b"dom0", b"tpl", b"rem", b"x" * 32]), st.binary(max_size=256)),
)


GOOD = b"admin.vm.feature.Set+key dom0 name tpl\0value"


async def one_reply(path: str, data: bytes) -> bytes:
    """What the request gets: a whole reply of the protocol, and no failure of ours."""
    reply = await request(path, data)
    answer = parse_reply(reply) if data else b""
    assert not (isinstance(answer, Failure) and "its log says why" in answer.message), (data, answer)
    return reply


def test_every_byte_in_every_place_of_a_request(tmp_path: Path) -> None:
    async def scenario(_: App, path: str) -> None:
        await request(path, b"admin.vm.Create.TemplateVM+ dom0 name dom0\0name=tpl label=red")
        good = 0
        for place in range(len(GOOD)):
            for byte in range(256):
                good += await one_reply(path, GOOD[:place] + bytes([byte]) + GOOD[place + 1:]) == b"0\0"
        # What may be another: the key's three letters of 65, the value's five bytes of 95, and else what is there already.
        assert good == len(GOOD) - 8 + 3 * 65 + 5 * 95, good
        assert await request(path, HONEST) == b"0\x001"

    served(tmp_path, scenario)


def test_every_length_of_a_request(tmp_path: Path) -> None:
    """Each beginning of a good one, and each length around the limit."""
    async def scenario(_: App, path: str) -> None:
        await request(path, b"admin.vm.Create.TemplateVM+ dom0 name dom0\0name=tpl label=red")
        for length in range(len(GOOD) + 1):
            reply = await one_reply(path, GOOD[:length])
            assert reply == b"0\0" if length > GOOD.index(b"\0") else reply[:1] != b"0"
        for length in range(65530, 65540):
            reply = await one_reply(path, GOOD + b"x" * (length - len(GOOD)))
            assert reply == b"0\0" if length <= 65536 else reply.startswith(b"2\0ProtocolError\0")
        assert await request(path, HONEST) == b"0\x001"

    served(tmp_path, scenario)


def test_any_bytes_get_an_answer_or_a_refusal(tmp_path: Path) -> None:
    """Every call with hostile arguments and payloads: one reply in the protocol, no failure of ours, and life goes on."""

    async def scenario(app: App, path: str) -> None:
        await request(path, b"admin.vm.Create.TemplateVM+ dom0 name dom0\0name=tpl label=red")
        await request(path, b"admin.vm.Create.RemoteVM+ dom0 name dom0\0name=rem label=red")

        async def ask(data: bytes) -> None:
            reply = await request(path, data)
            if reply.startswith(b"1\0"):
                return
            answer = parse_reply(reply) if data else b""
            assert not (isinstance(answer, Failure) and "its log says why" in answer.message), (data, answer)

        requests: list[bytes] = []

        @settings(max_examples=400)
        @given(HEADERS)
        def collect(data: bytes) -> None:
            requests.append(data)

        collect()
        for data in requests:
            await ask(data)
        assert await request(path, HONEST) == b"0\x001"

    served(tmp_path, scenario)
