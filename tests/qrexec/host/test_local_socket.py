"""The daemon's local socket alone: who is let in, what a caller may send, which descriptors are whose, and what close leaves."""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.qrexec.host import local_socket
from cloison.qrexec.host.local_socket import MAX_FDS, Client, LocalSocket
from cloison.wire import qrexec

HELLO = qrexec.hello(qrexec.SOCKET_VERSION)
REQUEST = qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, 0, "user:true")
ANSWER = qrexec.allocated(qrexec.EXEC_CMDLINE, 7, 513)


class Owner:
    """A daemon that answers `self.answer` to all, or refuses; it keeps the streams that it got."""

    def __init__(self, folder: Path, answer: bytes | None = ANSWER) -> None:
        self.folder, self.answer = folder, answer
        self.asked: list[qrexec.Message] = []
        self.streams: list[socket.socket | None] = []
        self.clients: list[Client] = []
        self.local = LocalSocket(str(folder), ("7", "work", "uuid:x"), self._request)

    def _request(self, client: Client, message: qrexec.Message, stream: socket.socket | None) -> bytes:
        self.asked.append(message)
        if self.answer is None:
            raise PeerError("not now")
        self.clients.append(client)
        self.streams.append(stream)
        return self.answer

    def close(self) -> None:
        self.local.close()
        for stream in self.streams:
            if stream is not None:
                stream.close()


def run(folder: Path, talk: Callable[[Owner], Awaitable[None]], answer: bytes | None = ANSWER) -> Owner:
    """What a test leaves open at its end, when the owner is closed, is a leak."""
    async def whole() -> Owner:
        before = open_descriptors()
        owner = Owner(folder, answer)
        owner.local.listen()
        try:
            async with asyncio.timeout(PATIENCE):
                await talk(owner)
        finally:
            owner.close()
        assert open_descriptors() == before
        return owner

    return asyncio.run(whole())


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def caller(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(folder / "qrexec.work"))
        stream.setblocking(False)
        yield stream


async def heard(stream: socket.socket, size: int) -> bytes:
    """So many bytes, less where the daemon hung up."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while len(got) < size and (data := await asyncio.get_running_loop().sock_recv(stream, size - len(got))):
            got += data
    return got


def sends(stream: socket.socket, data: bytes, *fds: int) -> None:
    socket.send_fds(stream, [data], fds)


def test_a_request_byte_by_byte_is_answered_once(tmp_path: Path) -> None:
    async def talk(owner: Owner) -> None:
        with caller(tmp_path) as stream:
            assert await heard(stream, len(HELLO)) == HELLO
            for byte in HELLO + REQUEST:
                sends(stream, bytes([byte]))
            assert await heard(stream, len(ANSWER)) == ANSWER
            assert owner.streams == [None] and len(owner.asked) == 1
            owner.clients[0].close()                     # the call is over
            assert await heard(stream, 1) == b""

    run(tmp_path, talk)


def test_the_first_descriptor_is_the_channel_and_the_others_are_let_go_of(tmp_path: Path) -> None:
    async def talk(owner: Owner) -> None:
        ours, theirs = socket.socketpair()
        other, far = socket.socketpair()
        with ours, theirs, other, far, caller(tmp_path) as stream:
            sends(stream, HELLO + REQUEST, theirs.fileno(), far.fileno())
            assert await heard(stream, len(HELLO + ANSWER)) == HELLO + ANSWER
            theirs.close()
            far.close()
            channel = owner.streams[0]
            assert channel is not None
            channel.send(b"here")
            assert ours.recv(4) == b"here"
            stream.close()
            other.setblocking(False)
            assert await heard(other, 1) == b""          # the daemon holds it no longer

    run(tmp_path, talk)


@pytest.mark.parametrize("count", [MAX_FDS, MAX_FDS + 1])
def test_so_many_descriptors_come_along_and_not_one_more(tmp_path: Path, count: int) -> None:
    """Also in two messages."""
    async def talk(owner: Owner) -> None:
        ends = [socket.socketpair() for _ in range(count)]
        with caller(tmp_path) as stream:
            sends(stream, HELLO, *(theirs.fileno() for _, theirs in ends[:2]))
            assert await heard(stream, len(HELLO)) == HELLO
            sends(stream, REQUEST, *(theirs.fileno() for _, theirs in ends[2:]))
            assert await heard(stream, len(ANSWER)) == (ANSWER if count == MAX_FDS else b"")
            assert len(owner.asked) == (1 if count == MAX_FDS else 0)
        for ours, theirs in ends:
            ours.close()
            theirs.close()

    run(tmp_path, talk)


@pytest.mark.parametrize("way", ["refused", "a second request", "not a socket", "gone"])
def test_who_is_hung_up_on_leaves_no_descriptor_and_no_place(tmp_path: Path, way: str) -> None:
    async def talk(owner: Owner) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, os.fdopen(os.open(os.devnull, os.O_RDONLY)) as null, caller(tmp_path) as stream:
            sends(stream, HELLO, null.fileno() if way == "not a socket" else theirs.fileno(), null.fileno())
            assert await heard(stream, len(HELLO)) == HELLO
            theirs.close()
            if way == "gone":
                stream.shutdown(socket.SHUT_WR)
            else:
                sends(stream, REQUEST)
            if way == "a second request":
                assert await heard(stream, len(ANSWER)) == ANSWER
                sends(stream, REQUEST)
            assert await heard(stream, 1) == b""
            assert len(owner.asked) == (1 if way in ("refused", "a second request") else 0)
            assert not owner.local._clients
            if way != "a second request":                # else it is the call's
                ours.setblocking(False)
                assert await heard(ours, 1) == b""

    run(tmp_path, talk, None if way == "refused" else ANSWER)


def test_so_many_callers_and_not_one_more_until_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "MAX_CLIENTS", 3)

    async def talk(_owner: Owner) -> None:
        with contextlib.ExitStack() as stack:
            callers = [stack.enter_context(caller(tmp_path)) for _ in range(3)]
            for stream in callers:
                assert await heard(stream, len(HELLO)) == HELLO
            with caller(tmp_path) as beyond:
                assert await heard(beyond, 1) == b""
            sends(callers[0], HELLO + HELLO)             # out of the protocol
            assert await heard(callers[0], 1) == b""
            with caller(tmp_path) as next_one:
                assert await heard(next_one, len(HELLO)) == HELLO

    run(tmp_path, talk)


def test_close_hangs_up_and_takes_the_names_along_and_listen_makes_them_anew(tmp_path: Path) -> None:
    async def talk(owner: Owner) -> None:
        for _ in range(2):
            assert sorted(os.listdir(tmp_path)) == ["qrexec.7", "qrexec.uuid:x", "qrexec.work"] and owner.local.listening
            with caller(tmp_path) as stream:
                assert await heard(stream, len(HELLO)) == HELLO
                owner.local.close()
                owner.local.close()
                assert await heard(stream, 1) == b""
                assert os.listdir(tmp_path) == [] and not owner.local.listening and not owner.local._clients
            (tmp_path / "qrexec.work").symlink_to("nowhere")     # of a killed daemon
            owner.local.listen()

    run(tmp_path, talk)


def test_a_caller_that_is_gone_before_its_answer_is_no_trouble(tmp_path: Path) -> None:
    async def talk(owner: Owner) -> None:
        with caller(tmp_path) as stream:
            sends(stream, HELLO + REQUEST)
        with caller(tmp_path) as stream:
            sends(stream, HELLO + REQUEST)
            assert await heard(stream, len(HELLO + ANSWER)) == HELLO + ANSWER
        assert len(owner.asked) == 2

    run(tmp_path, talk)
