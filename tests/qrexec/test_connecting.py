"""Waiting until a socket service takes a connection: made or failed, once, and neither after `stop`."""
from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import pytest
from tests.runtime.ports import News

from cloison.qrexec import connecting
from cloison.qrexec.connecting import Connecting
from cloison.qrexec.process import Connected
from cloison.qrexec.service_config import DEFAULT


class Heard(News):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[socket.socket] = []
        self.failed: list[int] = []

    def is_made(self, stream: socket.socket) -> None:
        self.made.append(stream)
        self.tell()

    def has_failed(self, number: int) -> None:
        self.failed.append(number)
        self.tell()

    def connecting(self, stream: socket.socket | None, connect: Callable[[], socket.socket]) -> Connecting:
        return Connecting(Connected(stream, b"", DEFAULT, connect), self.is_made, self.has_failed)


def never() -> socket.socket:
    raise AssertionError("there is a stream already")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "BUSY_AGAIN", 0.0)


def test_a_stream_that_is_there_is_made_once_and_is_not_watched_any_more() -> None:
    async def work() -> None:
        heard = Heard()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            waiting = heard.connecting(ours, never)
            assert heard.made == []                      # in a turn of its own
            await heard.until(lambda: heard.made == [ours])
            assert not asyncio.get_running_loop().remove_writer(ours)
            waiting.stop()
            theirs.send(b"x")
            assert ours.recv(1) == b"x"                  # it is the caller's
        assert heard.made == [ours] and heard.failed == []

    asyncio.run(work())


def test_one_that_is_refused_later_fails_with_its_number_and_is_closed() -> None:
    async def work() -> None:
        heard = Heard()
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            stream = socket.socket()
            stream.setblocking(False)
            assert stream.connect_ex(nobody.getsockname()) in (errno.EINPROGRESS, errno.ECONNREFUSED)
            heard.connecting(stream, never)
            await heard.until(lambda: bool(heard.failed or heard.made))
        assert heard.failed == [errno.ECONNREFUSED] and heard.made == [] and stream.fileno() < 0

    asyncio.run(work())


def test_a_busy_service_is_tried_until_it_takes_one() -> None:
    async def work() -> None:
        heard, tries = Heard(), list[int]()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            def connect() -> socket.socket:
                tries.append(1)
                if len(tries) < 4:
                    raise BlockingIOError
                return ours

            heard.connecting(None, connect)
            assert tries == []
            await heard.until(lambda: heard.made == [ours])
        assert len(tries) == 4 and heard.failed == []

    asyncio.run(work())


@pytest.mark.parametrize(("error", "number"), [(OSError(errno.ENOENT, "gone"), errno.ENOENT), (OSError("no number"), 0)])
def test_one_that_goes_while_it_is_busy_fails(error: OSError, number: int) -> None:
    async def work() -> None:
        heard = Heard()

        def connect() -> socket.socket:
            raise error

        heard.connecting(None, connect)
        await heard.until(lambda: heard.failed == [number])
        assert heard.made == []

    asyncio.run(work())


@pytest.mark.parametrize("busy", [True, False])
def test_after_stop_nothing_is_heard(busy: bool) -> None:
    async def work() -> None:
        heard, tries = Heard(), list[int]()
        ours, theirs = socket.socketpair()

        def connect() -> socket.socket:
            tries.append(1)
            raise BlockingIOError

        with ours, theirs:
            waiting = heard.connecting(None if busy else ours, connect if busy else never)
            waiting.stop()
            waiting.stop()
            assert busy or ours.fileno() < 0
            loop = asyncio.get_running_loop()
            passed = loop.create_future()
            loop.call_later(0.001, passed.set_result, None)
            await passed
        assert heard.made == [] == heard.failed and tries == []

    asyncio.run(work())
