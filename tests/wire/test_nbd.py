"""NBD as a server, with bytes as the protocol's text gives them; every split, every refusal, lengths at their bounds."""
from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import nbd
from cloison.wire.nbd import MAX_LENGTH, MAX_OPTION, MAX_OPTIONS, Do, Request, Server

SIZE = 1 << 22
GREETING = b"NBDMAGICIHAVEOPT\0\3"
CLIENT = struct.pack(">I", 3)
HANDLE = b"handle-8"
GO = struct.pack(">I", 0) + struct.pack(">H", 0)


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


def request(command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IHH8sQI", 0x25609513, flags, command, HANDLE, offset, length) + data


def answer(error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">II8s", 0x67446698, error, HANDLE) + data


def fed(server: Server, *pieces: bytes) -> list[Request]:
    found = []
    for piece in pieces:
        server.feed(piece)
        while (one := server.next_request()) is not None:
            found.append(one)
    return found


def serving(*, read_only: bool = False) -> Server:
    server = Server(SIZE, read_only=read_only)
    assert fed(server, CLIENT + option(7, GO)) == []
    server.output()
    return server


@pytest.mark.parametrize(("read_only", "flags"), [(False, 13), (True, 15)])
def test_the_handshake_with_go(read_only: bool, flags: int) -> None:
    server = Server(SIZE, read_only=read_only)
    assert server.output() == GREETING
    named = struct.pack(">I", 3) + b"any" + struct.pack(">HHH", 2, 0, 3)
    assert fed(server, CLIENT, option(8), option(6, GO), option(7, named)) == []
    told = struct.pack(">HQH", 0, SIZE, flags), struct.pack(">HIII", 3, 1, 4096, MAX_LENGTH)
    unsupported = reply(8, 0x80000001)
    both = b"".join(b"".join([*(reply(number, 3, data) for data in told), reply(number, 1)]) for number in (6, 7))
    assert server.output() == unsupported + both
    assert fed(server, request(0, 0, 1)) == [Request(Do.READ, HANDLE, 0, 1)]


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0)])
def test_the_handshake_by_export_name(flags: int, zeroes: int) -> None:
    server = Server(SIZE, read_only=False)
    server.output()
    assert fed(server, struct.pack(">I", flags) + option(1, b"whatever") + request(3)) == [Request(Do.FLUSH, HANDLE)]
    assert server.output() == struct.pack(">QH", SIZE, 13) + bytes(zeroes)


def test_an_abort_is_acknowledged() -> None:
    server = Server(SIZE, read_only=False)
    server.output()
    assert fed(server, CLIENT + option(2) + request(0, 0, 1)) == []
    assert server.output() == reply(2, 1) and server.over


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0\0", struct.pack(">I", 9) + b"\0\0", struct.pack(">IH", 0, 1), GO + b"\0"])
def test_an_export_asked_for_wrongly_is_invalid(data: bytes) -> None:
    server = Server(SIZE, read_only=False)
    server.output()
    assert fed(server, CLIENT + option(7, data) + option(7, GO)) == []
    assert server.output().startswith(reply(7, 0x80000003) + reply(7, 3)[:8])


@pytest.mark.parametrize("hostile", [
    struct.pack(">I", 0), struct.pack(">I", 4), b"\xff" * 4, CLIENT + b"x" * 16,
    CLIENT + b"IHAVEOPT" + struct.pack(">II", 7, MAX_OPTION + 1),
    CLIENT + option(3) * (MAX_OPTIONS + 1),
])
def test_lesson_15_what_is_no_handshake_ends_it(hostile: bytes) -> None:
    server = Server(SIZE, read_only=False)
    with pytest.raises(PeerError):
        fed(server, hostile)


def test_an_option_of_the_greatest_length_is_waited_for_and_answered() -> None:
    server = Server(SIZE, read_only=False)
    server.output()
    assert fed(server, CLIENT + option(99, bytes(MAX_OPTION))) == []
    assert server.output() == reply(99, 0x80000001)


def test_requests_and_their_replies() -> None:
    server = serving()
    read, write, synced, flush = fed(
        server, request(0, 4096, 512) + request(1, 0, 3, b"abc") + request(1, SIZE - 1, 1, b"z", flags=1) + request(3))
    assert (read, flush) == (Request(Do.READ, HANDLE, 4096, 512), Request(Do.FLUSH, HANDLE))
    assert write == Request(Do.WRITE, HANDLE, 0, 3, b"abc") and synced == Request(Do.WRITE, HANDLE, SIZE - 1, 1, b"z", sync=True)
    server.reply(read, b"r" * 512)
    server.reply(write)
    server.reply(flush, b"nothing of it", nbd.IO_ERROR)
    assert server.output() == answer(0, b"r" * 512) + answer() + answer(nbd.IO_ERROR)
    assert fed(server, request(2) + request(0, 0, 1)) == [] and server.over


@pytest.mark.parametrize(("sent", "error"), [
    (request(0, SIZE, 1), nbd.INVALID), (request(0, SIZE - 1, 2), nbd.INVALID), (request(0, 1 << 63, 1), nbd.INVALID),
    (request(0, 0, 0), nbd.INVALID), (request(0, 0, MAX_LENGTH + 1), nbd.INVALID), (request(0, 0, 0xFFFFFFFF), nbd.INVALID),
    (request(1, SIZE, 1, b"x"), nbd.NO_SPACE), (request(1, 0, 0), nbd.INVALID), (request(4, 0, 512), nbd.INVALID),
    (request(0xFFFF, 0, 1), nbd.INVALID),
])
def test_what_can_not_be_served_is_answered_and_the_next_is_served(sent: bytes, error: int) -> None:
    server = serving()
    assert fed(server, sent + request(0, 0, MAX_LENGTH)) == [Request(Do.READ, HANDLE, 0, MAX_LENGTH)]
    assert server.output() == answer(error)


def test_a_read_only_export_takes_no_write() -> None:
    server = serving(read_only=True)
    assert fed(server, request(1, 0, 1, b"x")) == []
    assert server.output() == answer(nbd.NOT_PERMITTED)


def test_a_write_has_its_bound_before_its_data() -> None:
    server = serving()
    assert fed(server, request(1, 0, MAX_LENGTH, bytes(MAX_LENGTH)))[0].length == MAX_LENGTH
    with pytest.raises(PeerError):
        fed(server, request(1, 0, MAX_LENGTH + 1))


@pytest.mark.parametrize("hostile", [b"\0" * 28, b"\x25\x60\x95\x14" + bytes(24)])
def test_lesson_15_what_is_no_request_ends_it(hostile: bytes) -> None:
    server = serving()
    with pytest.raises(PeerError):
        fed(server, hostile)


STREAM = CLIENT + option(8) + option(7, GO) + request(0, 0, 512) + request(1, 512, 4, b"data") + request(3) + request(2)


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_requests_survive_any_split(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(places)]
    server = Server(SIZE, read_only=False)
    assert [one.do for one in fed(server, *pieces)] == [Do.READ, Do.WRITE, Do.FLUSH] and server.over


@given(st.binary(max_size=300))
def test_any_bytes_are_requests_or_an_error(untrusted: bytes) -> None:
    for server in (Server(SIZE, read_only=False), serving()):
        try:
            for one in fed(server, untrusted):
                assert one.offset + one.length <= SIZE or one.do is Do.FLUSH
        except PeerError:
            pass


def test_a_handshake_held_by_one_and_requests_served_by_another() -> None:
    """What comes in one piece with the handshake's end is the other's to serve."""
    first = request(0, 0, 512)
    holder, server = Server(SIZE, read_only=True), Server(SIZE, read_only=True, greeted=True)
    assert server.output() == b""
    holder.feed(struct.pack(">I", 3))
    assert holder.handshake() is None
    holder.feed(option(1) + first)
    assert holder.handshake() == first and holder.output().startswith(GREETING)
    server.feed(first)
    asked = server.next_request()
    assert asked is not None and (asked.do, asked.offset, asked.length) == (Do.READ, 0, 512)
    server.reply(asked, bytes(512))
    assert len(server.output()) == 16 + 512
