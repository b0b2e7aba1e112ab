"""QubesDB of the host and of the guest kept equal over one channel, programs of the guest on its socket, and a hostile guest."""
from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
from tests.runtime.ports import Hostile, News, Recorder, Side

from cloison.guest.qubesdb import MAX_CLIENTS, QubesDb
from cloison.qdb.server import MAX_WAITING, Server
from cloison.qdb.tree import MAX_BYTES, MAX_ENTRIES
from cloison.runtime.port import Handler
from cloison.wire import qdb
from cloison.wire.mux import GUEST, HOST, Address

XID = 7
START = {"/name": "work", "/qubes-vm-type": "AppVM", "/type": "AppVM"}


class Pair(News):
    """Both ends in one loop. `scripted`: the guest's end is a recorder, `self.guest_end`."""

    def __init__(self, folder: Path, entries: Mapping[str, str], *, scripted: bool = False) -> None:
        super().__init__()
        ours, theirs = socket.socketpair()
        self.host, self.guest = Side(ours, HOST), Side(theirs, GUEST)
        self.changes: list[str] = []
        self.violations: list[str] = []
        self.guest_end: Recorder | None = None
        self.database = QubesDb(self.guest.port)
        self.path = str(folder / "qubesdb.sock")
        self.guest.accept = self._scripted if scripted else self._real
        self.server = Server(self.host.port, XID, self._changed, self._violation)
        self.server.fill(entries)
        self.server.connect()

    def close(self) -> None:
        for side in (self.host, self.guest):
            side.port.end("the test is over")
            side.stream.close()
        self.database.close()

    def _real(self, channel: int, address: Address) -> Handler:
        assert address == Address(XID, 0, qdb.PORT)
        return self.database.opened(channel)

    def _scripted(self, channel: int, _address: Address) -> Handler:
        self.guest_end = Recorder(self.guest.port, channel)
        self.guest.tell()
        return self.guest_end

    def _changed(self, path: str) -> None:
        self.changes.append(path)
        self.tell()

    def _violation(self, reason: str) -> None:
        self.violations.append(reason)
        self.host.port.end(reason)

    async def scripted_end(self) -> Recorder:
        await self.guest.until(lambda: self.guest_end is not None)
        assert self.guest_end is not None
        return self.guest_end

    async def client(self) -> Program:
        self.database.serve(self.path)
        program = Program()
        await asyncio.get_running_loop().sock_connect(program.stream, self.path)
        return program


class Program(Hostile):
    """A program in the qube, on the local socket."""

    def __init__(self) -> None:
        super().__init__(socket.socket(socket.AF_UNIX))
        self._taken = 0

    async def ask(self, kind: int, path: str = "", value: bytes = b"", *, until: int | None = None) -> list[qdb.Message]:
        """The answers, up to and with the first one; or up to the one without a path, of that kind."""
        await self.send(qdb.encode(kind, path, value))
        decoder, answers = qdb.Decoder(qdb.TO_CLIENT), []
        await self.until(lambda: self.hung_up or len(self.got) >= qdb.HEADER.size)
        while True:
            decoder.feed(bytes(self.got))
            self.got.clear()
            while (message := decoder.next_message()) is not None:
                answers.append(message)
            if self.hung_up or (answers and (until is None or answers[-1] == qdb.Message(until))):
                return answers
            await self.until(lambda: self.hung_up or bool(self.got))


def with_pair(work: Callable[[Pair], Awaitable[None]], entries: Mapping[str, str] = START, *, scripted: bool = False) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="cloison-") as folder:
            pair = Pair(Path(folder), entries, scripted=scripted)
            try:
                await work(pair)
            finally:
                pair.close()

    asyncio.run(run())


def one(kind: int, path: str, value: bytes = b"") -> list[qdb.Message]:
    return [qdb.Message(kind, path, value)]


def test_guest_gets_a_copy_and_every_later_change() -> None:
    async def work(pair: Pair) -> None:
        program = await pair.client()
        assert await program.ask(qdb.WATCH, "/new") == one(qdb.RESP_OK, "/new")
        pair.server.write({"/new": "1", "/name": None})
        await program.until(lambda: bool(program.got))
        program.got.clear()
        assert await program.ask(qdb.READ, "/new") == one(qdb.RESP_READ, "/new", b"1")
        assert await program.ask(qdb.READ, "/name") == one(qdb.RESP_ERROR_NOENT, "/name")
        assert await program.ask(qdb.READ, "/type") == one(qdb.RESP_READ, "/type", b"AppVM")
        listed = await program.ask(qdb.LIST, "/", until=qdb.RESP_LIST)
        assert [message.path for message in listed] == ["/new", "/qubes-vm-type", "/type", ""]
        program.close()

    with_pair(work)


def full_share() -> dict[str, bytes]:
    """As much as a guest may store: so many bytes, in so many entries that their headers count too."""
    left, entries = MAX_BYTES, {}
    for number in range(MAX_ENTRIES):
        path = f"/share/{number}"
        value = b"v" * min(MAX_BYTES // MAX_ENTRIES - len(path), left - len(path))
        entries[path] = value
        left -= len(path) + len(value)
    return entries


def test_a_full_share_is_copied_to_a_new_agent_and_to_a_program_and_is_no_violation() -> None:
    async def work(pair: Pair) -> None:
        for path, value in full_share().items():
            assert pair.server.tree.store(path, value, by_guest=True)
        program = await pair.client()
        while await program.ask(qdb.READ, "/name") == one(qdb.RESP_ERROR_NOENT, "/name"):
            assert pair.violations == []                 # it is the last one of the copy
        listed = await program.ask(qdb.MULTIREAD, "/share/", until=qdb.RESP_MULTIREAD)
        assert {message.path: message.value for message in listed if message.path} == full_share()
        assert pair.violations == []
        program.close()

    with_pair(work)


def test_a_guest_that_reads_no_answers_beside_its_copy_is_hostile() -> None:
    async def work(pair: Pair) -> None:
        for path, value in full_share().items():
            pair.server.tree.store(path, value, by_guest=True)
        guest = await pair.scripted_end()
        guest.stuck = True
        guest.send(qdb.encode(qdb.MULTIREAD))
        answers = MAX_WAITING // qdb.HEADER.size
        for _ in range(10):
            guest.send(qdb.encode(qdb.RM, "/nothing-there") * (answers // 10))
        await guest.until(lambda: not guest.to_send or bool(pair.violations))
        assert pair.violations == []
        guest.send(qdb.encode(qdb.RM, "/nothing-there") * answers)
        await pair.host.until(lambda: bool(pair.violations))
        assert pair.violations == ["answers are not read"]

    with_pair(work, scripted=True)


def test_host_gets_what_the_guest_writes_and_hears_what_it_watches() -> None:
    async def work(pair: Pair) -> None:
        pair.server.tree.watch("host", "/watched/")
        program = await pair.client()
        assert await program.ask(qdb.READ, "/name")
        assert await program.ask(qdb.WRITE, "/unwatched", b"x") == one(qdb.RESP_OK, "/unwatched")
        assert await program.ask(qdb.WRITE, "/watched/a", b"y") == one(qdb.RESP_OK, "/watched/a")
        await pair.until(lambda: bool(pair.changes))
        assert await program.ask(qdb.RM, "/watched/a") == one(qdb.RESP_OK, "/watched/a")
        await pair.until(lambda: len(pair.changes) == 2)
        assert pair.changes == ["/watched/a"] * 2 and pair.violations == []
        assert pair.server.tree.read("/unwatched") == b"x" and pair.server.tree.read("/watched/a") is None
        program.close()

    with_pair(work)


def test_text_that_is_not_ascii_is_replaced() -> None:
    async def work(pair: Pair) -> None:
        assert pair.server.tree.read("/keyboard") == b"d?"

    with_pair(work, {"/keyboard": "dé"})


@pytest.mark.parametrize("entries", [{"relative": "x"}, {"/a b": "x"}, {"/" + "x" * 70: "x"}, {"/x": "y" * (qdb.MAX_VALUE + 1)}])
def test_host_can_not_write_what_can_not_be_sent(entries: dict[str, str | None]) -> None:
    async def work(pair: Pair) -> None:
        with pytest.raises(ValueError):
            pair.server.write(entries)
        assert [path for path, _ in pair.server.tree.entries()] == sorted(START)

    with_pair(work)


# -- programs in the guest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("untrusted", [
    b"\xff" * 200, qdb.encode(qdb.RESP_OK, "/x"), qdb.HEADER.pack(qdb.READ, b"/x", 1), qdb.HEADER.pack(qdb.WRITE, b"/x", 1 << 31),
])
def test_program_that_breaks_the_protocol_is_hung_up_on_alone(untrusted: bytes) -> None:
    async def work(pair: Pair) -> None:
        good, bad = await pair.client(), await pair.client()
        await good.ask(qdb.READ, "/name")
        await bad.send(untrusted)
        await bad.until(lambda: bad.hung_up)
        assert await good.ask(qdb.READ, "/none") == one(qdb.RESP_ERROR_NOENT, "/none")
        good.close()

    with_pair(work)


def test_many_programs_and_one_too_many() -> None:
    async def work(pair: Pair) -> None:
        programs = []
        for _ in range(MAX_CLIENTS):
            programs.append(await pair.client())
            await programs[-1].ask(qdb.READ, "/none")
        late = await pair.client()
        await late.until(lambda: late.hung_up)
        for program in programs:
            program.close()

    with_pair(work)


def test_program_that_never_reads_is_hung_up_on() -> None:
    async def work(pair: Pair) -> None:
        await pair.guest.until(lambda: bool(pair.guest.opened))
        stuck, other = await pair.client(), await pair.client()
        await other.ask(qdb.WRITE, "/big", b"x" * qdb.MAX_VALUE)
        loop = asyncio.get_running_loop()
        loop.remove_reader(stuck.stream)
        question = qdb.encode(qdb.READ, "/big") * 1000
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(50):
                await loop.sock_sendall(stuck.stream, question)
        assert await other.ask(qdb.READ, "/none") == one(qdb.RESP_ERROR_NOENT, "/none")
        stuck.close()
        other.close()

    with_pair(work)


def test_socket_is_for_every_program_of_the_qube() -> None:
    async def work(pair: Pair) -> None:
        program = await pair.client()
        assert os.stat(pair.path).st_mode & 0o777 == 0o666
        pair.database.serve(pair.path)
        await program.ask(qdb.READ, "/name")
        program.close()

    with_pair(work)


# -- a hostile guest ---------------------------------------------------------------------------------------------------------------


def test_guest_is_sent_everything_it_asks_for_once() -> None:
    async def work(pair: Pair) -> None:
        end = await pair.scripted_end()
        end.send(qdb.encode(qdb.MULTIREAD))
        await end.until(lambda: end.got.endswith(qdb.encode(qdb.RESP_MULTIREAD)))
        decoder, found = qdb.Decoder(qdb.VCHAN), {}
        decoder.feed(bytes(end.got))
        while (message := decoder.next_message()) is not None:
            found[message.path] = message.value.decode()
        assert found == {**START, "": ""}
        end.send(qdb.encode(qdb.MULTIREAD))
        await pair.host.until(lambda: bool(pair.violations))

    with_pair(work, scripted=True)


def messages(data: bytes) -> list[qdb.Message]:
    decoder = qdb.Decoder(qdb.VCHAN)
    decoder.feed(data)
    return list(iter(decoder.next_message, None))


@pytest.mark.parametrize("half", [b"", qdb.encode(qdb.WRITE, "/half", b"123456")[:-3]], ids=["", "in the middle of a message"])
def test_a_new_agent_gets_a_copy_of_its_own_and_nothing_that_was_for_the_former(half: bytes) -> None:
    async def work(pair: Pair) -> None:
        former = await pair.scripted_end()
        former.send(qdb.encode(qdb.MULTIREAD))
        await former.until(lambda: former.got.endswith(qdb.encode(qdb.RESP_MULTIREAD)))
        pair.server.write({"/a": "1"})
        await former.until(lambda: former.got.endswith(qdb.encode(qdb.WRITE, "/a", b"1")))
        former.send(half)
        pair.guest.port.close(former.channel)
        pair.guest.port.control(b"closed")
        await pair.host.until(lambda: bool(pair.host.controls))
        pair.server.write({"/b": "2", "/a": None})
        pair.server.reconnect(pair.host.port)
        await pair.guest.until(lambda: pair.guest_end is not former)
        end = await pair.scripted_end()
        pair.server.write({"/c": "3"})
        end.send(qdb.encode(qdb.MULTIREAD))
        await end.until(lambda: end.got.endswith(qdb.encode(qdb.RESP_MULTIREAD)))
        copied = {"/b": b"2", "/c": b"3", **{path: value.encode() for path, value in START.items()}}
        assert sorted(messages(bytes(end.got))) == sorted(
            [qdb.Message(qdb.RESP_MULTIREAD, path, value) for path, value in copied.items()] + [qdb.Message(qdb.RESP_MULTIREAD)])
        pair.server.write({"/d": "4"})
        await end.until(lambda: end.got.endswith(qdb.encode(qdb.WRITE, "/d", b"4")))
        assert pair.violations == []

    with_pair(work, scripted=True)


@pytest.mark.parametrize("untrusted", [
    b"\xff" * 200, qdb.encode(qdb.READ, "/name"), qdb.encode(qdb.LIST), qdb.encode(qdb.WATCH, "/x"),
    qdb.encode(qdb.RESP_MULTIREAD, "/x", b"1"),
    qdb.encode(qdb.MULTIREAD, "/x"), qdb.HEADER.pack(qdb.WRITE, b"/x", qdb.MAX_VALUE + 1), qdb.HEADER.pack(qdb.WRITE, b"x", 0),
    qdb.HEADER.pack(qdb.WRITE, b"/" + b"x" * 63, 0),
], ids=["garbage", "read", "list", "watch", "copy unasked", "part", "long value", "relative", "no NUL"])
def test_guest_that_breaks_the_protocol_loses_its_channels(untrusted: bytes) -> None:
    async def work(pair: Pair) -> None:
        end = await pair.scripted_end()
        end.send(untrusted)
        await pair.host.until(lambda: bool(pair.host.reasons))
        assert len(pair.violations) == 1
        pair.server.write({"/still": "here"})        # goes nowhere, and breaks nothing
        assert dict(pair.server.tree.entries())["/still"] == b"here"

    with_pair(work, scripted=True)


def test_guest_that_asks_and_never_reads_answers() -> None:
    async def work(pair: Pair) -> None:
        end = await pair.scripted_end()
        end.stuck = True
        end.send(qdb.encode(qdb.RM, "/none") * (3 * MAX_WAITING // qdb.HEADER.size))
        await pair.host.until(lambda: bool(pair.host.reasons))
        assert pair.violations == ["answers are not read"]

    with_pair(work, scripted=True)


def test_guest_that_stores_without_end_is_refused() -> None:
    async def work(pair: Pair) -> None:
        end = await pair.scripted_end()
        end.send(b"".join(qdb.encode(qdb.WRITE, f"/flood/{number}", b"x" * qdb.MAX_VALUE) for number in range(3000)))
        await end.until(lambda: qdb.encode(qdb.RESP_ERROR, "/flood/2999") in end.got)
        held = sum(len(value) for _, value in pair.server.tree.entries())
        assert held < 4 << 20 and pair.server.tree.read("/name") == b"work"

    with_pair(work, scripted=True)
