"""Bytes between a channel and a socket: all of them, in order, never more than a window in hand, and every kind of end."""
from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator

from tests.runtime.ports import Hostile, Recorder, Side, Wire

from cloison.runtime.held import Held
from cloison.runtime.relay import Relay
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
