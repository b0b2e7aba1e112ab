"""A multiplexer on a socket: who hears what, back-pressure, and ends of every kind."""
from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
from tests.runtime.ports import Hostile, Recorder, Side, Wire, at_rest

from cloison.runtime.held import UNBOUNDED
from cloison.runtime.port import Channels, Outbox
from cloison.wire.mux import CLOSE, CONTROL, HEADER, HOST, MAX_BODY, MAX_CHANNELS, MAX_QUEUED, OPEN, WINDOW, Address

ADDRESS = Address(0, 7, 600)
MEGABYTE = 1 << 20


def test_control_open_data_and_close_arrive_in_order() -> None:
    async def run() -> None:
        with Wire() as (host, guest):
            made: dict[int, Recorder] = {}
            guest.record_all(made)
            host.port.control(b"hello")
            ours = host.recorder(ADDRESS)
            ours.send(b"question")
            await guest.until(lambda: 600 in made)
            await made[600].until(lambda: made[600].got == b"question")
            assert guest.controls == [b"hello"] and guest.opened == [(2, ADDRESS)]
            made[600].send(b"answer")
            made[600].port.close(made[600].channel)
            await ours.until_ended()
            assert ours.got == b"answer"
            assert not made[600].ended, "who closes is not told"

    asyncio.run(run())


def test_an_unwanted_channel_is_closed_at_once() -> None:
    async def run() -> None:
        with Wire() as (host, guest):
            refused = guest.recorder(ADDRESS)
            refused.send(b"into nothing")
            await refused.until_ended()
            assert host.opened == [(1, ADDRESS)]

    asyncio.run(run())


def test_megabytes_both_ways_on_many_channels() -> None:
    async def run() -> None:
        with Wire() as (host, guest):
            made: dict[int, Recorder] = {}
            guest.record_all(made)
            ours = {port: host.recorder(Address(7, 0, port)) for port in range(600, 640)}
            await guest.until(lambda: len(made) == 40)
            for port, own in ours.items():
                own.send(bytes([port % 251]) * MEGABYTE)
                made[port].send(bytes([port % 241]) * MEGABYTE)
            for port, own in ours.items():
                await made[port].heard(MEGABYTE)
                await own.heard(MEGABYTE)
                assert made[port].got == bytes([port % 251]) * MEGABYTE and own.got == bytes([port % 241]) * MEGABYTE

    asyncio.run(run())


def test_a_stuck_handler_holds_one_window_and_stops_nobody() -> None:
    async def run() -> None:
        with Wire() as (host, guest):
            made: dict[int, Recorder] = {}
            guest.record_all(made)
            stuck, other = host.recorder(Address(7, 0, 600)), host.recorder(Address(7, 0, 601))
            await guest.until(lambda: len(made) == 2)
            made[600].stuck = True
            stuck.send(bytes(10 * MEGABYTE))
            other.send(bytes(10 * MEGABYTE))
            await made[601].until(lambda: len(made[601].got) == 10 * MEGABYTE)
            assert len(made[600].got) == WINDOW and len(stuck.to_send) == 10 * MEGABYTE - WINDOW
            made[600].stuck = False
            made[600].port.consumed(made[600].channel, WINDOW)
            await made[600].until(lambda: len(made[600].got) == 10 * MEGABYTE)

    asyncio.run(run())


def test_a_transport_that_is_full_takes_only_so_much_and_goes_on_later() -> None:
    """The other end reads nothing: what piles up here is bounded, however many channels want to send."""
    async def run() -> None:
        ours, theirs = socket.socketpair()
        side = Side(ours, HOST)
        senders = [side.recorder(Address(7, 0, port)) for port in range(100)]
        for sender in senders:
            sender.send(bytes(WINDOW))
        waiting = sum(len(sender.to_send) for sender in senders)
        assert waiting > 100 * WINDOW - 4 * MEGABYTE
        reader = Hostile(theirs)
        await reader.until(lambda: len(reader.got) > 100 * WINDOW)
        assert not any(sender.to_send for sender in senders)
        await at_rest()
        side.port.end("over")
        ours.close()
        reader.close()

    asyncio.run(run())


@pytest.mark.parametrize("poison", [
    HEADER.pack(9, 0, 0, 0), HEADER.pack(CONTROL, 1, 0, 0), HEADER.pack(CLOSE, 0, 0, 5), HEADER.pack(OPEN, 0, 12, 2) + bytes(12),
])
def test_a_peer_that_breaks_the_protocol_ends_the_port(poison: bytes) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        side = Side(ours, HOST)
        ear = side.recorder(ADDRESS)
        with theirs:
            theirs.sendall(poison + HEADER.pack(CONTROL, 0, 2, 0) + b"hi")
            await side.until(lambda: bool(side.reasons))
            assert "broke the protocol" in side.reasons[0] and len(side.reasons) == 1
            assert ear.ended and side.controls == []
            side.port.end("again")
            assert len(side.reasons) == 1
        ours.close()

    asyncio.run(run())


def test_a_peer_that_never_reads_its_answers_ends_the_port() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        side = Side(ours, HOST)

        def answer(_channel: int, _address: Address) -> None:
            side.port.control(bytes(MAX_BODY))

        def answered(number: int) -> bool:
            return bool(side.reasons) or len(side.opened) > number

        side.accept = answer
        with theirs:
            for number in range(MAX_QUEUED // MAX_BODY * 2):
                theirs.sendall(HEADER.pack(OPEN, 0, 12, 2 * number + 1) + bytes(12))
                await side.until(partial(answered, number))
                if side.reasons:
                    break
        assert "not read" in side.reasons[0]
        ours.close()

    asyncio.run(run())


def test_hang_up_ends_the_port_and_tells_every_handler() -> None:
    async def run() -> None:
        with Wire() as (host, guest):
            ears = [host.recorder(Address(7, 0, port)) for port in range(5)]
            guest.stream.shutdown(socket.SHUT_RDWR)
            await host.until(lambda: bool(host.reasons))
            assert all(ear.ended for ear in ears)
            assert len(host.reasons) == 1
            host.port.control(b"to nobody")
            assert ears[0].port.send(ears[0].channel, b"x") == 1

    asyncio.run(run())


def test_write_failure_ends_the_port() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        side = Side(ours, HOST)
        theirs.close()
        side.port.control(b"x")
        assert len(side.reasons) == 1
        ours.close()

    asyncio.run(run())


def test_outbox_keeps_what_the_channel_does_not_take() -> None:
    async def run() -> None:
        with Wire() as (host, guest):
            made: dict[int, Recorder] = {}
            guest.record_all(made, stuck=True)
            ear = host.recorder(ADDRESS)
            outbox = Outbox(host.port, ear.channel)
            outbox.put(bytes(WINDOW))
            assert len(outbox) == 0 and outbox.flush()
            outbox.put(b"rest")
            assert len(outbox) == 4 and not outbox.flush()
            await guest.until(lambda: 600 in made)
            await made[600].until(lambda: len(made[600].got) == WINDOW)
            made[600].port.consumed(made[600].channel, WINDOW)
            await ear.until(outbox.flush)
            await made[600].until(lambda: made[600].got.endswith(b"rest"))

    asyncio.run(run())


class Narrow:
    """A channel that takes so many bytes; whatever is called, it may put more."""

    def __init__(self) -> None:
        self.held, self.room, self.sent = UNBOUNDED, 0, b""

    def send(self, channel: int, data: bytes | memoryview) -> int:
        taken = bytes(data[:self.room])
        self.room -= len(taken)
        self.sent += taken
        return len(taken)


def test_what_comes_after_a_message_comes_when_all_of_it_is_taken_and_no_sooner() -> None:
    channel, said = Narrow(), list[str]()
    outbox = Outbox(cast(Channels, channel), 1)

    def then(word: str) -> Callable[[], None]:
        return lambda: said.append(f"{word} after {len(channel.sent)}")

    outbox.put(b"", then("nothing"))
    outbox.put(b"abc", then("first"))
    outbox.put(b"de")
    outbox.put(b"f", then("second"))
    steps = []
    for room in (0, 2, 1, 2, 1, 5):
        channel.room = room
        steps.append((outbox.flush(), len(outbox), list(said)))
    assert steps == [
        (False, 6, ["nothing after 0"]), (False, 4, ["nothing after 0"]), (False, 3, ["nothing after 0", "first after 3"]),
        (False, 1, ["nothing after 0", "first after 3"]),
        (True, 0, ["nothing after 0", "first after 3", "second after 6"]),
        (True, 0, ["nothing after 0", "first after 3", "second after 6"])]
    assert channel.sent == b"abcdef"


def test_who_hears_that_the_port_ends_may_close_and_end_it_again() -> None:
    """Each handler is told once, and the owner after all of them, once."""
    async def run() -> None:
        with Wire() as (host, guest):
            told: list[int] = []

            class Told(Recorder):
                def closed(self) -> None:
                    assert not host.reasons
                    told.append(self.channel)
                    host.port.close(self.channel)
                    host.port.end("once more")

            for number in range(3):
                recorder = Told(host.port)
                recorder.channel = host.port.open(Address(7, 0, 600 + number), recorder)
            await guest.until(lambda: len(guest.opened) == 3)
            host.port.end("the first reason")
            host.port.end("another")
            assert len(told) == len(set(told)) == 3 and host.reasons == ["the first reason"]
            await at_rest()
            guest.port.control(b"into nothing")
            await at_rest()
            assert host.controls == []

    asyncio.run(run())


def test_a_port_that_has_ended_keeps_nobody() -> None:
    """It may be kept itself for a while: a handler has sockets and bytes."""
    class Plain:
        def data(self, untrusted: bytes) -> None: ...
        def writable(self) -> None: ...
        def closed(self) -> None: ...

    async def run() -> None:
        with Wire() as (host, _guest):
            handler = Plain()
            kept = weakref.ref(handler)
            host.port.open(ADDRESS, handler)
            host.port.end("over")
            del handler
            assert kept() is None

    asyncio.run(run())


def test_listen_takes_the_one_channel_that_is_expected() -> None:
    async def work() -> None:
        with Wire() as (host, guest):
            expected, made = Address(7, 0, 513), []

            def accept(channel: int) -> Recorder:
                made.append(Recorder(guest.port, channel))
                guest.tell()
                return made[0]

            guest.port.listen(expected, accept)
            guest.port.listen(Address(7, 0, 514), accept)
            guest.port.unlisten(Address(7, 0, 514))
            first, second, other = (host.recorder(address) for address in (expected, expected, Address(7, 0, 514)))
            first.send(b"x")
            await guest.until(lambda: bool(made))
            await made[0].heard(1)
            await second.until_ended()
            await other.until_ended()
            assert (len(made), first.ended) == (1, False)

    asyncio.run(work())


def test_channels_that_the_peer_has_closed_are_closed_and_free_for_others() -> None:
    """Many more of them than there may be at a time."""
    async def run() -> None:
        with Wire() as (host, guest):
            made: dict[int, Recorder] = {}
            guest.record_all(made)
            for port in range(2 * MAX_CHANNELS):
                ours = host.recorder(Address(7, 0, 600 + port))
                await guest.until(lambda port=port: 600 + port in made)
                guest.port.close(made[600 + port].channel)
                await ours.until_ended()
            assert not host.reasons and not guest.reasons

    asyncio.run(run())
