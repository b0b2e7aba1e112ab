"""A caller's input on its way to a service: joined, in order, and its end exactly once."""
from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Callable, Coroutine

import pytest

from cloison.qrexec.feed import Feed


class Place:
    """A feed, what its owner has heard, and the service's end of its socket."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.feed = Feed(lambda: self.heard.append("drained"), lambda: self.heard.append("end"))
        self.service, self.stream = socket.socketpair()
        self.stream.setblocking(False)

    async def all(self) -> bytes:
        """What the service reads until the end of its input."""
        self.service.setblocking(False)
        got, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while data := await loop.sock_recv(self.service, 1 << 16):
                got += data
        return got


def played(play: Callable[[Place], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        place = Place()
        with place.service, place.stream:
            await play(place)
            place.feed.close()

    asyncio.run(main())


def test_pieces_wait_for_the_service_and_come_in_order() -> None:
    async def play(place: Place) -> None:
        data = bytes(range(256)) * 4000
        for start in range(0, len(data), 7):
            place.feed.put(data[start:start + 7])
        place.feed.write()
        assert len(place.feed) == len(data) and not place.heard, "nothing goes before the service is there"
        place.feed.put(b"")
        place.feed.put_first(b"greeting ")
        place.feed.attach(place.stream)
        place.feed.write()
        assert not place.feed.empty and not place.feed.ended
        assert await place.all() == b"greeting " + data
        assert place.feed.empty and place.feed.ended and place.heard == ["end", "drained"]

    played(play)


def test_a_feed_that_is_closed_while_its_service_is_full_watches_it_no_more() -> None:
    async def play(place: Place) -> None:
        place.feed.attach(place.stream)
        place.feed.put(bytes(10_000_000))
        place.feed.write()
        assert place.heard == [] and len(place.feed)
        place.feed.close()
        place.feed.close()
        assert not asyncio.get_running_loop().remove_writer(place.stream)
        assert set(await place.all()) == {0} and place.heard == []       # what it had taken, and the end

    played(play)


def test_what_comes_after_the_end_is_nobodys() -> None:
    async def play(place: Place) -> None:
        place.feed.put(b"first")
        place.feed.put(b"")
        place.feed.put(b"late")
        place.feed.attach(place.stream)
        place.feed.write()
        place.feed.put(b"later")
        assert place.feed.empty and await place.all() == b"first"

    played(play)


def test_service_that_reads_no_more_drops_what_waits() -> None:
    async def play(place: Place) -> None:
        place.feed.attach(place.stream)
        place.service.close()
        place.feed.put(b"x" * 100)
        place.feed.write()
        assert place.feed.empty and place.feed.ended and len(place.feed) == 0
        assert place.heard == ["end", "drained"]

    played(play)


def test_pieces_of_one_byte_cost_what_they_are() -> None:
    async def play(place: Place) -> None:
        place.feed.attach(place.stream)
        tracemalloc.start()
        for _ in range(1 << 16):
            place.feed.put(b"x")
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert used < (1 << 16) * 1.5
        place.feed.put(b"")
        place.feed.write()
        assert await place.all() == b"x" * (1 << 16)

    played(play)


@pytest.mark.parametrize("ended", [False, True])
def test_taken_whole(ended: bool) -> None:
    async def play(place: Place) -> None:
        place.feed.put(b"a")
        place.feed.put(b"bc")
        if ended:
            place.feed.put(b"")
        assert place.feed.take() == b"abc" and place.feed.empty and place.feed.take() == b""

    played(play)
