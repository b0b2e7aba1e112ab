"""The multiplexer: exact bytes, every refusal, credit, and a hostile peer. A violation is always PeerError and nothing else."""
from __future__ import annotations

import itertools
import struct
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire.mux import (
    CLOSE,
    CONTROL,
    CREDIT,
    DATA,
    GUEST,
    HEADER,
    HIGH_WATER,
    HOST,
    MAX_BODY,
    MAX_CHANNELS,
    MAX_CLOSING,
    MAX_NUMBER,
    MAX_QUEUED,
    OPEN,
    WINDOW,
    Address,
    Closed,
    Control,
    Data,
    Event,
    Mux,
    Opened,
    Writable,
)

ADDRESS = Address(0, 7, 513)


def frame(kind: int, channel: int, body: bytes = b"", *, zero: int = 0, length: int | None = None) -> bytes:
    return struct.pack("<BBHI", kind, zero, len(body) if length is None else length, channel) + body


def opened(channel: int) -> bytes:
    return frame(OPEN, channel, struct.pack("<III", *ADDRESS))


def credit(channel: int, amount: int) -> bytes:
    return frame(CREDIT, channel, struct.pack("<I", amount))


def host(*fed: bytes) -> Mux:
    """A host's end that has received this, with its output taken."""
    mux = Mux(HOST)
    for data in fed:
        mux.receive(data)
    mux.take_output()
    return mux


def full(channel: int, total: int = WINDOW) -> bytes:
    """`total` bytes of data in frames as large as allowed."""
    sizes = [MAX_BODY] * (total // MAX_BODY) + ([total % MAX_BODY] if total % MAX_BODY else [])
    return b"".join(frame(DATA, channel, bytes(size)) for size in sizes)


# -- bytes ---------------------------------------------------------------------------------------------------------------


def test_sent_bytes_are_those_of_the_format() -> None:
    mux = Mux(HOST)
    mux.control(b"hi")
    channel = mux.open(Address(7, 0, 512))
    assert mux.send(channel, b"abc") == 3
    mux.close(channel)
    mux.close(channel)
    assert mux.take_output().hex(" ") == (
        "01 00 02 00 00 00 00 00 68 69 "
        "02 00 0c 00 02 00 00 00 07 00 00 00 00 00 00 00 00 02 00 00 "
        "03 00 03 00 02 00 00 00 61 62 63 "
        "05 00 00 00 02 00 00 00")
    assert not mux.has_output


WIRE: list[tuple[bytes, Event]] = [
    (frame(CONTROL, 0), Control(b"")),
    (frame(CONTROL, 0, b"running"), Control(b"running")),
    (frame(CONTROL, 0, bytes(MAX_BODY)), Control(bytes(MAX_BODY))),
    (opened(1), Opened(1, ADDRESS)),
    (frame(DATA, 1, b"x"), Data(1, b"x")),
    (frame(DATA, 1, bytes(MAX_BODY)), Data(1, bytes(MAX_BODY))),
    (frame(CLOSE, 1), Closed(1)),
    (opened(MAX_NUMBER), Opened(MAX_NUMBER, ADDRESS)),
]


def test_received_bytes_mean() -> None:
    assert Mux(HOST).receive(b"".join(data for data, _ in WIRE)) == [event for _, event in WIRE]


@given(st.lists(st.integers(0, sum(len(data) for data, _ in WIRE)), max_size=6))
def test_events_survive_any_split(cuts: list[int]) -> None:
    data = b"".join(data for data, _ in WIRE)
    edges = [0, *sorted(cuts), len(data)]
    mux, events = Mux(HOST), []
    for start, end in itertools.pairwise(edges):
        events += mux.receive(data[start:end])
    assert events == [event for _, event in WIRE]


def test_byte_by_byte() -> None:
    data = opened(1) + frame(DATA, 1, b"abc") + frame(CLOSE, 1)
    mux, events = Mux(HOST), []
    for byte in data:
        events += mux.receive(bytes([byte]))
    assert events == [Opened(1, ADDRESS), Data(1, b"abc"), Closed(1)]


# -- refusals --------------------------------------------------------------------------------------------------------------


REFUSED: list[tuple[str, bytes, bytes]] = [     # why, what came before, what is refused
    ("kind 0", b"", frame(0, 0)),
    ("kind after the last", b"", frame(CLOSE + 1, 0)),
    ("kind 255", b"", frame(255, 0)),
    ("second byte not zero", b"", frame(CONTROL, 0, zero=1)),
    ("body one too long", b"", frame(CONTROL, 0, length=MAX_BODY + 1)),
    ("control on a channel", opened(1), frame(CONTROL, 1)),
    ("open with address one short", b"", frame(OPEN, 1, bytes(11))),
    ("open with address one long", b"", frame(OPEN, 1, bytes(13))),
    ("open without address", b"", frame(OPEN, 1)),
    ("open of channel 0", b"", opened(0)),
    ("open with the host's id", b"", opened(2)),
    ("open twice", opened(1), opened(1)),
    ("open again before our close", opened(1) + frame(CLOSE, 1), opened(1)),
    ("data on no channel", b"", frame(DATA, 1, b"x")),
    ("data on channel 0", b"", frame(DATA, 0, b"x")),
    ("empty data", opened(1), frame(DATA, 1)),
    ("data after close", opened(1) + frame(CLOSE, 1), frame(DATA, 1, b"x")),
    ("one byte beyond the window", opened(1) + full(1), frame(DATA, 1, b"x")),
    ("credit on no channel", b"", credit(1, 1)),
    ("credit of 0", opened(1), credit(1, 0)),
    ("credit that nothing was sent for", opened(1), credit(1, 1)),
    ("greatest credit", opened(1), credit(1, MAX_NUMBER)),
    ("credit of 3 bytes", opened(1), frame(CREDIT, 1, bytes(3))),
    ("credit of 5 bytes", opened(1), frame(CREDIT, 1, bytes(5))),
    ("credit after close", opened(1) + frame(CLOSE, 1), credit(1, 1)),
    ("close of no channel", b"", frame(CLOSE, 1)),
    ("close twice", opened(1) + frame(CLOSE, 1), frame(CLOSE, 1)),
    ("close with a body", opened(1), frame(CLOSE, 1, b"x")),
]


@pytest.mark.parametrize(("before", "refused"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refusal(before: bytes, refused: bytes) -> None:
    mux = host(before)
    with pytest.raises(PeerError):
        mux.receive(refused)


@pytest.mark.parametrize("length", [MAX_BODY + 1, 0xFFFF])
def test_a_length_is_refused_before_its_body_comes(length: int) -> None:
    with pytest.raises(PeerError):
        Mux(HOST).receive(frame(DATA, 1, length=length))


def test_one_channel_too_many() -> None:
    mux = host(b"".join(opened(2 * number + 1) for number in range(MAX_CHANNELS)))
    with pytest.raises(PeerError):
        mux.receive(opened(2 * MAX_CHANNELS + 1))


def test_peer_that_reads_no_answers_is_dropped() -> None:
    """Each of its OPENs is refused with a CLOSE; it never takes one, so they would pile up for ever."""
    mux = Mux(HOST)
    lap = opened(1) + frame(CLOSE, 1)
    for _ in range(MAX_QUEUED // HEADER.size + 1):
        mux.receive(lap)
        mux.close(1)
    with pytest.raises(PeerError):
        mux.receive(lap)


@given(st.binary(max_size=300), st.lists(st.binary(max_size=80), max_size=8))
def test_garbage_is_a_peer_error_or_nothing(start: bytes, pieces: list[bytes]) -> None:
    mux = host(opened(1))
    try:
        for piece in (start, *pieces):
            mux.receive(piece)
    except PeerError:
        return


FRAMES = st.one_of(
    st.builds(frame, st.integers(0, 6), st.integers(0, 5), st.binary(max_size=20)),
    st.builds(opened, st.integers(0, 5)),
    st.builds(credit, st.integers(0, 5), st.integers(0, 2 * WINDOW)),
)


@given(st.lists(FRAMES, max_size=30))
def test_plausible_garbage_is_a_peer_error_or_nothing(frames: list[bytes]) -> None:
    mux = Mux(HOST)
    ours = mux.open(ADDRESS)
    mux.send(ours, bytes(1000))
    try:
        for data in frames:
            for event in mux.receive(data):
                if isinstance(event, Opened):
                    mux.send(event.channel, b"hello")
                elif isinstance(event, Data):
                    mux.consumed(event.channel, len(event.untrusted))
                elif isinstance(event, Closed):
                    mux.close(event.channel)
    except PeerError:
        return


# -- lengths of what we send -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MAX_BODY])
def test_control_of_allowed_size(size: int) -> None:
    mux = Mux(HOST)
    mux.control(bytes(size))
    assert Mux(GUEST).receive(mux.take_output()) == [Control(bytes(size))]


def test_control_one_too_long() -> None:
    with pytest.raises(ValueError, match="too long"):
        Mux(HOST).control(bytes(MAX_BODY + 1))


@pytest.mark.parametrize("size", [0, 1, MAX_BODY, MAX_BODY + 1, WINDOW, WINDOW + 1])
def test_data_of_any_size_is_cut_to_frames_and_credit(size: int) -> None:
    mux, peer = Mux(HOST), Mux(GUEST)
    channel = mux.open(ADDRESS)
    assert mux.send(channel, bytes(size)) == min(size, WINDOW)
    events = peer.receive(mux.take_output())[1:]
    bodies = [event.untrusted for event in events if isinstance(event, Data)]
    assert sum(map(len, bodies)) == min(size, WINDOW) and all(len(body) <= MAX_BODY for body in bodies)


# -- credit ------------------------------------------------------------------------------------------------------------------


def test_credit_comes_back_in_lumps_of_half_a_window() -> None:
    mux = host(opened(1), full(1))
    mux.consumed(1, WINDOW // 2 - 1)
    assert not mux.has_output
    mux.consumed(1, 1)
    assert mux.take_output() == credit(1, WINDOW // 2)
    assert mux.receive(full(1, WINDOW // 2))
    with pytest.raises(PeerError):
        mux.receive(frame(DATA, 1, b"x"))


def test_a_starved_sender_is_told_once() -> None:
    mux = host(opened(1))
    assert mux.send(1, bytes(WINDOW)) == WINDOW
    assert mux.send(1, b"x") == 0
    assert mux.send(1, b"x") == 0
    assert mux.receive(credit(1, 1)) == [Writable(1)]
    assert mux.receive(credit(1, 1)) == []
    assert mux.send(1, b"xyz") == 2


def test_credit_to_the_last_byte_and_not_one_more() -> None:
    mux = host(opened(1))
    mux.send(1, bytes(10))
    mux.receive(credit(1, 10))
    with pytest.raises(PeerError):
        mux.receive(credit(1, 1))


def test_high_water_stops_every_channel_and_draining_wakes_them() -> None:
    mux = host(b"".join(opened(2 * number + 1) for number in range(6)))
    taken = [mux.send(2 * number + 1, bytes(WINDOW)) for number in range(6)]
    assert taken[:3] == [WINDOW] * 3 and sum(taken) <= HIGH_WATER and taken[5] == 0
    assert len(mux.take_output()) < HIGH_WATER + MAX_BODY
    assert mux.drained() == [Writable(7), Writable(9), Writable(11)]
    assert mux.drained() == []
    assert mux.send(11, bytes(WINDOW)) == WINDOW


def test_no_wake_up_for_a_channel_closed_meanwhile() -> None:
    mux = host(b"".join(opened(2 * number + 1) for number in range(6)))
    for number in range(6):
        mux.send(2 * number + 1, bytes(WINDOW))
    mux.close(9)
    mux.take_output()
    assert mux.drained() == [Writable(7), Writable(11)]


# -- ends ----------------------------------------------------------------------------------------------------------------------


def test_half_open_channel_swallows_and_then_its_id_is_free() -> None:
    mux = host(opened(1))
    mux.close(1)
    assert mux.take_output() == frame(CLOSE, 1)
    assert mux.send(1, b"lost") == 4
    assert mux.receive(frame(DATA, 1, b"on its way")) == []
    mux.consumed(1, WINDOW)
    assert not mux.has_output, "nothing may follow our CLOSE"
    assert mux.receive(frame(CLOSE, 1)) == []
    assert mux.receive(opened(1)) == [Opened(1, ADDRESS)]


def test_peer_may_close_first_and_we_may_still_send() -> None:
    mux = host(opened(1) + frame(DATA, 1, b"x") + frame(CLOSE, 1))
    assert mux.send(1, b"y") == 1
    mux.consumed(1, 1)
    mux.close(1)
    assert mux.take_output() == frame(DATA, 1, b"y") + frame(CLOSE, 1)
    assert mux.receive(opened(1)) == [Opened(1, ADDRESS)]


def test_closes_that_cross() -> None:
    ours, theirs = Mux(HOST), Mux(GUEST)
    channel = ours.open(ADDRESS)
    theirs.receive(ours.take_output())
    ours.close(channel)
    theirs.close(channel)
    assert ours.receive(theirs.take_output()) == []
    assert theirs.receive(ours.take_output()) == []
    assert ours.send(channel, b"x") == 1 and not ours.has_output


def test_window_holds_for_data_that_nobody_wants_any_more() -> None:
    mux = host(opened(1))
    mux.close(1)
    mux.receive(full(1))
    with pytest.raises(PeerError):
        mux.receive(frame(DATA, 1, b"x"))


@pytest.mark.parametrize(("side", "first"), [(HOST, 2), (GUEST, 1)])
def test_ids_are_of_our_side_and_skip_those_in_use(side: int, first: int) -> None:
    mux = Mux(side)
    assert [mux.open(ADDRESS) for _ in range(3)] == [first, first + 2, first + 4]


@pytest.mark.parametrize(("side", "first"), [(HOST, 2), (GUEST, 1)])
def test_ids_wrap_around(side: int, first: int) -> None:
    mux = Mux(side)
    assert mux.open(ADDRESS) == first
    mux._next = MAX_NUMBER - 1 + side      # two billion channels later
    assert mux.open(ADDRESS) == MAX_NUMBER - 1 + side
    assert mux.open(ADDRESS) == first + 2


def test_unknown_channels_swallow() -> None:
    mux = Mux(HOST)
    assert mux.send(99, b"abc") == 3
    mux.consumed(99, 3)
    mux.close(99)
    assert not mux.has_output


# -- two ends wired together -----------------------------------------------------------------------------------------------------


class End:
    """One end with what it wants to send on each channel, and what arrived and was not consumed yet."""

    def __init__(self, side: int) -> None:
        self.mux = Mux(side)
        self.wants: dict[int, bytes] = {}
        self.sent: dict[int, int] = {}
        self.got: dict[int, bytes] = {}
        self.unread: dict[int, int] = {}
        self.stuck: set[int] = set()
        self.wire: deque[int] = deque()

    def push(self, channel: int) -> None:
        done = self.sent.setdefault(channel, 0)
        self.sent[channel] += self.mux.send(channel, memoryview(self.wants[channel])[done:])

    def take(self, data: bytes) -> None:
        for event in self.mux.receive(data):
            if isinstance(event, Data):
                self.got[event.channel] = self.got.get(event.channel, b"") + event.untrusted
                self.unread[event.channel] = self.unread.get(event.channel, 0) + len(event.untrusted)
                assert self.unread[event.channel] <= WINDOW
            elif isinstance(event, Writable):
                self.push(event.channel)

    def read(self) -> None:
        for channel in self.unread.keys() - self.stuck:
            self.mux.consumed(channel, self.unread[channel])
            self.unread[channel] = 0

    def flush(self) -> bytes:
        data = self.mux.take_output()
        for event in self.mux.drained():
            assert isinstance(event, Writable)
            self.push(event.channel)
        return data


def talk(one: End, other: End) -> None:
    """Until nothing moves any more."""
    while (there := one.flush()) + (back := other.flush()):
        other.take(there)
        one.take(back)
        one.read()
        other.read()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3 * WINDOW)), min_size=1, max_size=6), st.randoms())
def test_two_ends_move_all_data_in_order(plan: list[tuple[bool, int]], chance: object) -> None:
    ends = End(HOST), End(GUEST)
    for number, (by_guest, size) in enumerate(plan):
        opener, other = (ends[1], ends[0]) if by_guest else ends
        channel = opener.mux.open(ADDRESS)
        for end in (opener, other):
            end.wants[channel] = bytes([number + (end is other) * 100]) * size
        other.take(opener.flush())
        opener.push(channel)
        other.push(channel)
    talk(*ends)
    assert {channel: data for channel, data in ends[0].wants.items() if data} == ends[1].got
    assert {channel: data for channel, data in ends[1].wants.items() if data} == ends[0].got


def test_a_stuck_reader_stops_its_writer_and_nobody_else() -> None:
    ends = End(HOST), End(GUEST)
    channels = [ends[0].mux.open(ADDRESS) for _ in range(3)]
    ends[1].take(ends[0].flush())
    ends[1].stuck = {channels[0]}
    for channel in channels:
        ends[0].wants[channel] = bytes(3 * WINDOW)
        ends[0].push(channel)
    talk(*ends)
    assert [len(ends[1].got[channel]) for channel in channels] == [WINDOW, 3 * WINDOW, 3 * WINDOW]
    ends[1].stuck = set()
    ends[1].read()
    talk(*ends)
    assert len(ends[1].got[channels[0]]) == 3 * WINDOW


@given(st.lists(st.one_of(
    st.tuples(st.just("data"), st.integers(1, MAX_BODY)), st.tuples(st.just("credit"), st.integers(0, MAX_NUMBER)),
    st.tuples(st.just("send"), st.integers(0, 2 * WINDOW)), st.tuples(st.just("consume"), st.integers(0, WINDOW)),
), max_size=40))
def test_qsb_010_credit_is_a_model_that_no_peer_can_bend(steps: list[tuple[str, int]]) -> None:
    """Plain numbers beside the real thing: never negative, never beyond the window, whatever amounts the peer names."""
    mux = host(opened(1))
    may_send, unread, taken = WINDOW, 0, 0
    for what, amount in steps:
        if what == "send":
            sent = mux.send(1, bytes(amount))
            mux.take_output()
            mux.drained()
            assert sent == min(amount, may_send)
            may_send -= sent
        elif what == "consume":
            own = min(amount, unread - taken)
            mux.consumed(1, own)
            taken += own
            if taken * 2 >= WINDOW:
                unread, taken = unread - taken, 0
        else:
            allowed = 0 < amount <= WINDOW - may_send if what == "credit" else unread + amount <= WINDOW
            data = credit(1, amount) if what == "credit" else frame(DATA, 1, bytes(amount))
            if not allowed:
                with pytest.raises(PeerError):
                    mux.receive(data)
                return
            mux.receive(data)
            may_send += amount if what == "credit" else 0
            unread += amount if what == "data" else 0
        assert 0 <= may_send <= WINDOW and 0 <= unread <= WINDOW


def test_a_peer_that_closes_no_channel_is_hostile_and_one_that_closes_them_late_is_not() -> None:
    mux = host()
    for _ in range(3):                       # each time as many as may be: closing them makes room
        channels = [mux.open(ADDRESS) for _ in range(MAX_CLOSING)]
        for channel in channels:
            mux.close(channel)
        mux.take_output()
        mux.receive(b"")
        for channel in channels:
            mux.receive(frame(CLOSE, channel))
    for _ in range(MAX_CLOSING + 1):
        mux.close(mux.open(ADDRESS))
    mux.take_output()
    with pytest.raises(PeerError, match="never closed"):
        mux.receive(b"")


def test_channels_that_the_peer_closed_first_wait_for_nobody() -> None:
    mux = host()
    for _ in range(MAX_CLOSING + 1):
        channel = mux.open(ADDRESS)
        mux.receive(frame(CLOSE, channel))
        mux.close(channel)
    mux.take_output()
    assert mux.receive(b"") == []
