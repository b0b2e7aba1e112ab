"""Bytes between a channel and a socket: all of them, in order, never more than a window in hand, and every kind of end."""
from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest
from tests.runtime.ports import Hostile, Recorder, Side, Wire, at_rest

from cloison.runtime.held import Held
from cloison.runtime.port import Handler
from cloison.runtime.relay import READ, Relay
from cloison.wire.mux import WINDOW, Address

MEGABYTE = 1 << 20


class Ends(Hostile):
    """The socket's other end, and the guest's end of the channel that a relay on the host joins it with."""

    def __init__(self, host: Side, guest: Side, port: int, made: dict[int, Recorder]) -> None:
        inner, outer = socket.socketpair()
        super().__init__(outer)
        self._made, self._port = made, port
        self.relay_ended = False
        self.inner = inner
        channel = host.port.open(Address(7, 0, port), self)
        self.relay = Relay(host.port, channel, inner, self._ended)

    def _ended(self) -> None:
        self.relay_ended = True
        self.tell()

    # Handler: what the port says goes to the relay
    def data(self, untrusted: bytes) -> None:
        self.relay.data(untrusted)
        self.tell()

    def writable(self) -> None:
        self.relay.writable()

    def closed(self) -> None:
        self.relay.closed()
        self.tell()

    @property
    def guest(self) -> Recorder:
        return self._made[self._port]


@contextlib.asynccontextmanager
async def relays(*ports: int) -> AsyncIterator[list[Ends]]:
    with Wire() as (host, guest):
        made: dict[int, Recorder] = {}
        guest.record_all(made)
        ends = [Ends(host, guest, port, made) for port in ports]
        await guest.until(lambda: len(made) == len(ports))
        try:
            yield ends
        finally:
            for end in ends:
                end.close()
                end.relay.closed()
                end.inner.close()


def test_both_ways_at_once_in_order() -> None:
    async def run() -> None:
        async with relays(600) as (end,):
            data = os.urandom(3 * MEGABYTE)
            end.guest.send(data)
            await end.send(data[::-1])
            await end.guest.until(lambda: end.guest.got == data[::-1])
            await end.until(lambda: end.got == data)

    asyncio.run(run())


def test_many_at_once() -> None:
    async def run() -> None:
        async with relays(*range(600, 680)) as ends:
            for number, end in enumerate(ends):
                end.guest.send(bytes([number]) * 100_000)
            await asyncio.gather(*(end.send(bytes([number]) * 100_000) for number, end in enumerate(ends)))
            for number, end in enumerate(ends):
                await end.heard(100_000)
                await end.guest.heard(100_000)
                assert end.got == end.guest.got == bytes([number]) * 100_000

    asyncio.run(run())


def test_a_stuck_guest_stops_the_socket_and_no_other() -> None:
    async def run() -> None:
        async with relays(600, 601) as (stuck, other):
            stuck.guest.stuck = True
            sending = asyncio.ensure_future(stuck.send(bytes(8 * MEGABYTE)))
            await other.send(bytes(8 * MEGABYTE))
            await other.guest.until(lambda: len(other.guest.got) == 8 * MEGABYTE)
            assert not sending.done() and len(stuck.guest.got) <= WINDOW
            stuck.guest.stuck = False
            stuck.guest.port.consumed(stuck.guest.channel, len(stuck.guest.got))
            await sending
            await stuck.guest.until(lambda: len(stuck.guest.got) == 8 * MEGABYTE)

    asyncio.run(run())


def test_a_stuck_socket_stops_the_guest_and_no_other() -> None:
    async def run() -> None:
        async with relays(600, 601) as (stuck, other):
            asyncio.get_running_loop().remove_reader(stuck.stream)
            stuck.guest.send(bytes(8 * MEGABYTE))
            other.guest.send(bytes(8 * MEGABYTE))
            await other.until(lambda: len(other.got) == 8 * MEGABYTE)
            assert len(stuck.guest.to_send) >= 7 * MEGABYTE
            asyncio.get_running_loop().add_reader(stuck.stream, stuck._readable)
            await stuck.until(lambda: len(stuck.got) == 8 * MEGABYTE)
            await at_rest()

    asyncio.run(run())


def test_memory_stays_flat() -> None:
    """64 MiB through a relay, with what arrives thrown away: what is held at any time is a few windows."""
    async def run() -> None:
        async with relays(600) as (end,):
            lump = bytes(MEGABYTE)
            await end.send(lump)
            await end.guest.until(lambda: len(end.guest.got) == MEGABYTE)
            gc.collect()
            tracemalloc.start()
            for _ in range(64):
                end.guest.got.clear()
                await end.send(lump)
                await end.guest.until(lambda: len(end.guest.got) == MEGABYTE)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 12 * MEGABYTE

    asyncio.run(run())


def test_guest_closes_and_the_socket_still_gets_all() -> None:
    async def run() -> None:
        async with relays(600) as (end,):
            asyncio.get_running_loop().remove_reader(end.stream)
            end.guest.send(bytes(WINDOW))
            end.guest.port.close(end.guest.channel)
            asyncio.get_running_loop().add_reader(end.stream, end._readable)
            await end.until(lambda: end.hung_up)
            assert len(end.got) == WINDOW and end.relay_ended

    asyncio.run(run())


def test_what_waits_for_a_slow_socket_when_the_guest_closes_still_gets_there() -> None:
    """More than the kernel takes at once: the relay is not over before the last of it has left."""
    async def run() -> None:
        async with relays(600) as (end,):
            asyncio.get_running_loop().remove_reader(end.stream)
            end.inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            data = os.urandom(WINDOW)
            end.guest.send(data)
            await end.until(lambda: len(end.relay._to_stream) > WINDOW // 2)
            end.guest.port.close(end.guest.channel)
            await end.until(lambda: end.relay._peer_closed)
            assert not end.relay_ended
            asyncio.get_running_loop().add_reader(end.stream, end._readable)
            await end.until(lambda: end.hung_up)
            assert end.got == data and end.relay_ended
            await at_rest()

    asyncio.run(run())


def test_socket_closes_and_the_guest_still_gets_all() -> None:
    async def run() -> None:
        async with relays(600) as (end,):
            await end.send(bytes(WINDOW // 2))
            end.close()
            await end.guest.until_ended()
            assert len(end.guest.got) == WINDOW // 2 and end.relay_ended

    asyncio.run(run())


def test_socket_hangs_up_while_the_guest_takes_no_more() -> None:
    """The caller is killed and the program never reads: the channel must not stay for ever."""
    async def run() -> None:
        async with relays(600) as (end,):
            end.guest.stuck = True
            sending = asyncio.ensure_future(end.send(bytes(8 * MEGABYTE)))
            await end.guest.until(lambda: len(end.guest.got) == WINDOW)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            end.close()
            await end.guest.until_ended()
            assert end.relay_ended

    asyncio.run(run())


def test_a_socket_that_hangs_up_when_the_guest_takes_more_again_is_heard_to_its_end() -> None:
    """Only while the channel takes nothing is a hang-up the end at once; that watch is over when it goes on."""
    async def run() -> None:
        async with relays(600) as (end,):
            end.guest.stuck = True
            sending = asyncio.ensure_future(end.send(bytes(2 * WINDOW)))
            await end.guest.until(lambda: len(end.guest.got) == WINDOW)
            end.guest.stuck = False
            end.guest.port.consumed(end.guest.channel, WINDOW)
            await sending
            await end.guest.heard(2 * WINDOW)
            for _ in range(3):               # what the kernel holds, more than one read takes
                assert end.stream.send(bytes(READ)) == READ
            end.close()
            await end.guest.until_ended()
            assert len(end.guest.got) == 2 * WINDOW + 3 * READ and end.relay_ended

    asyncio.run(run())


class Silent:
    """Channels that write down what is asked of them, and take so many bytes."""

    def __init__(self) -> None:
        self.held = Held(1 << 30)
        self.room = 1 << 30
        self.sent = bytearray()
        self.took: list[tuple[int, int]] = []
        self.shut: list[int] = []
        self.later: socket.socket | None = None      # the relay's, for `attach`

    def open(self, address: Address, handler: Handler) -> int:
        raise AssertionError

    def listen(self, address: Address, accept: Callable[[int], Handler]) -> None:
        raise AssertionError

    def unlisten(self, address: Address) -> None:
        raise AssertionError

    def send(self, channel: int, data: bytes | memoryview) -> int:
        taken = data[:self.room]
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def consumed(self, channel: int, count: int) -> None:
        self.took.append((channel, count))

    def close(self, channel: int) -> None:
        self.shut.append(channel)


@contextlib.asynccontextmanager
async def alone(*, bound: bool = True, attached: bool = True) -> AsyncIterator[tuple[Silent, Relay, socket.socket, list[str]]]:
    """A relay over channels that are none; its socket's far end, and its end."""
    port, ends = Silent(), list[str]()
    inner, outer = socket.socketpair()
    outer.setblocking(False)
    with outer, inner:
        relay = Relay(port, 5 if bound else None, inner if attached else None, lambda: ends.append("over"))
        port.later = inner
        yield port, relay, outer, ends
        relay.end()


def later(port: Silent) -> socket.socket:
    assert port.later is not None
    return port.later


async def turns() -> None:
    """Whatever is ready has its turn."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("bound", [True, False])
def test_what_comes_before_the_other_side_waits_and_is_taken_only_when_both_are_there(bound: bool) -> None:
    async def run() -> None:
        async with alone(bound=bound, attached=not bound) as (port, relay, outer, ends):
            if bound:
                relay.data(b"before the socket")
                assert port.took == [] and port.held.total == 17
                relay.attach(later(port))
                assert outer.recv(100) == b"before the socket" and port.took == [(5, 17)]
            else:
                outer.send(b"before the channel")
                await turns()
                assert not port.sent
                relay.bind(5)
                await turns()
                assert port.sent == b"before the channel"
            assert port.held.total == 0 and not ends

    asyncio.run(run())


def test_a_channel_that_closed_before_the_socket_came_ends_when_it_has_all() -> None:
    async def run() -> None:
        async with alone(attached=False) as (port, relay, outer, ends):
            relay.data(b"all of it")
            relay.closed()
            assert not ends
            relay.attach(later(port))
            assert outer.recv(100) == b"all of it" and outer.recv(100) == b"" and ends == ["over"]
            assert port.shut == [], "it has closed by itself"

    asyncio.run(run())


def test_after_the_end_nothing_is_taken_and_a_socket_that_comes_is_closed() -> None:
    async def run() -> None:
        async with alone(attached=False) as (port, relay, outer, ends):
            relay.data(b"kept")
            relay.end()
            relay.end()
            relay.data(b"after it")
            relay.writable()
            relay.closed()
            assert ends == ["over"] and port.shut == [5] and port.held.total == 0 and port.took == []
            relay.attach(later(port))
            assert outer.recv(100) == b""

    asyncio.run(run())


@pytest.mark.parametrize("side", ["hangs up", "breaks"])
def test_the_channel_is_closed_once_when_the_socket_ends(side: str) -> None:
    async def run() -> None:
        async with alone() as (port, relay, outer, ends):
            if side == "breaks":
                outer.close()
                relay.data(b"for nobody")
            else:
                outer.shutdown(socket.SHUT_WR)
                await turns()
            assert ends == ["over"] and port.shut == [5] and port.took == []

    asyncio.run(run())


def test_what_the_channel_did_not_take_is_counted_and_goes_first() -> None:
    async def run() -> None:
        async with alone() as (port, relay, outer, _ends):
            port.room = 4
            outer.send(b"abcdefgh")
            await turns()
            assert port.sent == b"abcd" and port.held.total == 4
            await at_rest()
            outer.send(b"later")
            await turns()
            assert port.sent == b"abcd", "nothing is read while it takes no more"
            port.room = 2
            relay.writable()
            await turns()
            assert port.sent == b"abcdef" and port.held.total == 2, "not yet either"
            port.room = 100
            relay.writable()
            assert port.held.total == 0
            await turns()
            assert port.sent == b"abcdefghlater"

    asyncio.run(run())


def test_socket_breaks_while_the_guest_writes() -> None:
    async def run() -> None:
        async with relays(600) as (end,):
            asyncio.get_running_loop().remove_reader(end.stream)
            end.guest.send(bytes(8 * MEGABYTE))
            end.close()
            await end.guest.until_ended()
            assert end.relay_ended

    asyncio.run(run())


def test_port_ends_under_a_relay() -> None:
    async def run() -> None:
        with Wire() as (host, guest):
            made: dict[int, Recorder] = {}
            guest.record_all(made)
            end = Ends(host, guest, 600, made)
            host.port.end("test")
            await end.until(lambda: end.hung_up)
            assert end.relay_ended

    asyncio.run(run())


def test_frames_of_one_byte_cost_no_more_than_what_they_carry() -> None:
    async def run() -> None:
        async with relays(600) as (end,):
            asyncio.get_running_loop().remove_reader(end.stream)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(WINDOW):              # the socket takes some hundred of them, then none
                end.relay.data(b"x")
            held = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert held < WINDOW * 1.25
            asyncio.get_running_loop().add_reader(end.stream, end._readable)
            await end.until(lambda: len(end.got) == WINDOW)

    asyncio.run(run())


def test_who_holds_most_is_ended_when_all_hold_too_much() -> None:
    async def run() -> None:
        with Wire() as (host, guest):
            host.port.held = Held(2 * WINDOW)
            made: dict[int, Recorder] = {}
            guest.record_all(made)
            ends = [Ends(host, guest, port, made) for port in range(600, 605)]
            await guest.until(lambda: len(made) == len(ends))
            small, *others = ends
            for end in ends:
                asyncio.get_running_loop().remove_reader(end.stream)
                end.inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            small.guest.send(bytes(WINDOW // 4))
            for end in others:
                end.guest.send(bytes(2 * WINDOW))
            waits = [asyncio.ensure_future(end.guest.until_ended()) for end in others]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            assert host.port.held.total <= 2 * WINDOW
            assert not small.relay_ended and not small.guest.ended, "a small one goes on"
            asyncio.get_running_loop().add_reader(small.stream, small._readable)
            await small.heard(WINDOW // 4)
            host.port.end("done")
            assert host.port.held.total == sum(end.relay._share.count for end in ends)
            for end in ends:
                end.relay.end()
                end.close()
            assert host.port.held.total == 0
            for wait in waits:
                wait.cancel()

    asyncio.run(run())
