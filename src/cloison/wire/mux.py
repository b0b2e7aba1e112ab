"""Many vchans over one ordered byte stream (a virtio-serial port), with credit: a stuck reader stops its writer and nobody else.

A frame is 8 bytes of header (u8 kind, u8 zero, u16 body length, u32 channel; little endian) and a body:

    CONTROL  channel 0     any bytes: host and agent about the qube itself (wire/agent.py)
    OPEN     new channel   u32 server domain, u32 client domain, u32 port: the sender is the vchan client
    DATA     open channel  bytes, never more than the receiver's credit
    CREDIT   open channel  u32: that many more bytes may be sent
    CLOSE    open channel  nothing: what was sent before it is still read; each side sends exactly one

The host's channels have even ids from 2, the guest's odd ones from 1. Every new channel starts with WINDOW bytes of credit
each way, so the opener sends at once, without a round trip. A violation raises PeerError: the whole multiplexer is dropped
then, because after it no length can be trusted. No I/O here: bytes in, events out; `output` is what the transport must write.
"""
from __future__ import annotations

import struct
from collections import deque
from typing import Final, NamedTuple

from cloison.errors import PeerError

HEADER: Final = struct.Struct("<BBHI")
ADDRESS: Final = struct.Struct("<III")
NUMBER: Final = struct.Struct("<I")
CONTROL, OPEN, DATA, CREDIT, CLOSE = range(1, 6)

MAX_BODY: Final = 32768 - HEADER.size    # one write of a guest's virtio port
WINDOW: Final = 256 * 1024
MAX_CHANNELS: Final = 600                # 256 data ports, their successors while they close, and the fixed ones
MAX_CLOSING: Final = 2048                # channels closed here that the peer has not closed; one that closes none is hostile
HIGH_WATER: Final = 1024 * 1024          # bytes waiting for the transport above which no channel may add more
MAX_QUEUED: Final = 2 * HIGH_WATER       # with CREDIT, CLOSE and CONTROL; a peer that causes so many and reads none is hostile
MAX_NUMBER: Final = 0xFFFFFFFF

HOST: Final = 0
GUEST: Final = 1


class Address(NamedTuple):
    """Where a vchan goes: domain ids as of the running qubes (0 = host), and a port."""

    server: int
    client: int
    port: int


class Opened(NamedTuple):
    """The peer opened a channel to us, as vchan client."""

    channel: int
    address: Address


class Data(NamedTuple):
    """Bytes for a channel; call `consumed` as they leave, or the peer stops."""

    channel: int
    untrusted: bytes


class Writable(NamedTuple):
    """A channel whose `send` took less than all may try again."""

    channel: int


class Closed(NamedTuple):
    """The peer will send nothing more on this channel."""

    channel: int


class Control(NamedTuple):
    """A message about the qube itself."""

    untrusted: bytes


Event = Opened | Data | Writable | Closed | Control


class _Channel:
    __slots__ = ("closed_here", "closed_there", "credit", "starved", "taken", "unread")

    def __init__(self) -> None:
        self.credit = WINDOW          # what we may still send
        self.unread = 0               # what the peer sent and we have not given credit for
        self.taken = 0                # consumed, credit not yet sent
        self.starved = False          # a send took less than all
        self.closed_here = False
        self.closed_there = False


class Mux:
    """One end. `side` is HOST or GUEST."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._next = 2 if side == HOST else 1
        self._channels: dict[int, _Channel] = {}
        self._buffer = b""
        self._output = bytearray()
        self._closing = 0                     # channels that only the peer still has to close
        self._waiting: deque[int] = deque()   # starved only by HIGH_WATER

    # -- what the caller does ------------------------------------------------------------------------------------------

    def control(self, message: bytes) -> None:
        """Send a control message, at most MAX_BODY bytes."""
        if len(message) > MAX_BODY:
            raise ValueError("control message too long")
        self._put(CONTROL, 0, message)

    def open(self, address: Address) -> int:
        """Open a channel as vchan client; its id. Bytes may be sent at once."""
        channel = self._next
        while channel in self._channels:
            channel = self._after(channel)
        self._next = self._after(channel)
        self._channels[channel] = _Channel()
        self._put(OPEN, channel, ADDRESS.pack(*address))
        return channel

    def send(self, channel: int, data: bytes | memoryview) -> int:
        """Queue as much as credit and the output's high-water mark allow; how much that was.

        After less than all, a Writable event for this channel follows. A closed channel swallows everything.
        """
        state = self._channels.get(channel)
        if state is None or state.closed_here:
            return len(data)
        room = min(state.credit, HIGH_WATER - len(self._output), len(data))
        sent = 0
        while sent < room:
            body = data[sent:min(sent + MAX_BODY, room)]
            self._put(DATA, channel, body)
            sent += len(body)
        state.credit -= sent
        if sent < len(data):
            state.starved = True
            if state.credit:
                self._waiting.append(channel)
        return sent

    def consumed(self, channel: int, count: int) -> None:
        """`count` bytes of this channel have left; credit is returned in lumps of half a window."""
        state = self._channels.get(channel)
        if state is None or state.closed_here or state.closed_there:
            return
        state.taken += count
        if state.taken * 2 >= WINDOW:
            self._put(CREDIT, channel, NUMBER.pack(state.taken))
            state.unread -= state.taken
            state.taken = 0

    def close(self, channel: int) -> None:
        """Send nothing more and want nothing more. Closing twice is fine."""
        state = self._channels.get(channel)
        if state is None or state.closed_here:
            return
        state.closed_here = True
        self._put(CLOSE, channel, b"")
        if state.closed_there:
            del self._channels[channel]
        else:
            self._closing += 1

    def take_output(self) -> bytearray:
        """All bytes that wait for the transport. Then ask `drained` who may send again."""
        data, self._output = self._output, bytearray()
        return data

    def drained(self) -> list[Event]:
        """Writable events of channels that the high-water mark had stopped. Call when the transport has written."""
        events: list[Event] = []
        for _ in range(len(self._waiting)):
            channel = self._waiting.popleft()
            state = self._channels.get(channel)
            if state is not None and state.starved and not state.closed_here:
                state.starved = False
                events.append(Writable(channel))
        return events

    @property
    def has_output(self) -> bool:
        return bool(self._output)

    # -- what the peer does --------------------------------------------------------------------------------------------

    def receive(self, untrusted: bytes) -> list[Event]:
        """Bytes from the transport, split anywhere; what they mean. Raises PeerError once, then must not be used."""
        buffer = self._buffer + untrusted if self._buffer else untrusted
        position, end = 0, len(buffer)
        events: list[Event] = []
        while end - position >= HEADER.size:
            kind, zero, length, channel = HEADER.unpack_from(buffer, position)
            if zero or length > MAX_BODY:
                raise PeerError("mux frame header out of range", kind, zero, length)
            if end - position - HEADER.size < length:
                break
            position += HEADER.size
            self._frame(kind, channel, buffer[position:position + length], events)
            position += length
        self._buffer = buffer[position:] if position < end else b""
        if len(self._output) > MAX_QUEUED:
            raise PeerError("mux answers are not read", len(self._output))
        if self._closing > MAX_CLOSING:
            raise PeerError("mux channels are never closed", self._closing)
        return events

    def _frame(self, kind: int, channel: int, untrusted: bytes, events: list[Event]) -> None:
        if kind == DATA:
            self._data(self._known(channel), channel, untrusted, events)
        elif kind == CREDIT:
            self._credit(self._known(channel), channel, untrusted, events)
        elif kind == CLOSE:
            self._closed(self._known(channel), channel, untrusted, events)
        elif kind == OPEN:
            self._opened(channel, untrusted, events)
        elif kind == CONTROL and channel == 0:
            events.append(Control(untrusted))
        else:
            raise PeerError("unknown mux frame", kind, channel)

    def _known(self, channel: int) -> _Channel:
        state = self._channels.get(channel)
        if state is None or state.closed_there:
            raise PeerError("mux frame for a channel that is not open", channel)
        return state

    def _data(self, state: _Channel, channel: int, untrusted: bytes, events: list[Event]) -> None:
        state.unread += len(untrusted)
        if not untrusted or state.unread > WINDOW:
            raise PeerError("mux data without credit", channel, state.unread)
        if state.closed_here:
            return   # the peer can't know yet; its credit needs no return, the channel is ending
        events.append(Data(channel, untrusted))

    def _credit(self, state: _Channel, channel: int, untrusted: bytes, events: list[Event]) -> None:
        if len(untrusted) != NUMBER.size:
            raise PeerError("mux credit of wrong size", len(untrusted))
        amount: int = NUMBER.unpack(untrusted)[0]
        if not 0 < amount <= WINDOW - state.credit:
            raise PeerError("mux credit out of range", amount)
        state.credit += amount
        if state.starved and not state.closed_here:
            state.starved = False
            events.append(Writable(channel))

    def _closed(self, state: _Channel, channel: int, untrusted: bytes, events: list[Event]) -> None:
        if untrusted:
            raise PeerError("mux close with a body", len(untrusted))
        state.closed_there = True
        if state.closed_here:
            del self._channels[channel]
            self._closing -= 1
        else:
            events.append(Closed(channel))

    def _opened(self, channel: int, untrusted: bytes, events: list[Event]) -> None:
        if channel % 2 == self._side or channel < 1:
            raise PeerError("mux open with an id of the wrong side", channel)
        if channel in self._channels or len(self._channels) >= MAX_CHANNELS:
            raise PeerError("mux open of one channel too many", channel, len(self._channels))
        if len(untrusted) != ADDRESS.size:
            raise PeerError("mux open of wrong size", len(untrusted))
        self._channels[channel] = _Channel()
        events.append(Opened(channel, Address._make(ADDRESS.unpack(untrusted))))

    def _after(self, channel: int) -> int:
        return channel + 2 if channel + 2 <= MAX_NUMBER else 2 - self._side

    def _put(self, kind: int, channel: int, body: bytes | memoryview) -> None:
        self._output += HEADER.pack(kind, 0, len(body), channel)
        self._output += body
