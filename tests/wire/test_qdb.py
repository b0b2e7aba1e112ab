"""QubesDB's messages: exact bytes, every refusal, any split, any garbage."""
from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import qdb
from cloison.wire.qdb import Decoder, Limits, Message

ROLES = {"vchan": qdb.VCHAN, "to daemon": qdb.TO_DAEMON, "to client": qdb.TO_CLIENT}
PATHS = st.text("abzAZ09_-/.:@", max_size=62).map("/".__add__)


def raw(kind: int, path: bytes = b"", value: bytes = b"", *, length: int | None = None, padding: bytes = b"\0\0\0") -> bytes:
    size = len(value) if length is None else length
    return bytes([kind]) + path.ljust(64, b"\0") + padding + size.to_bytes(4, "little") + value


def take(limits: Limits, *parts: bytes) -> list[Message]:
    decoder = Decoder(limits)
    taken = []
    for part in parts:
        decoder.feed(part)
        while (message := decoder.next_message()) is not None:
            taken.append(message)
    return taken


def refused(limits: Limits, data: bytes) -> None:
    decoder = Decoder(limits)
    decoder.feed(data)
    for _ in range(2):
        with pytest.raises(PeerError):
            decoder.next_message()


@pytest.mark.parametrize(("message", "text"), [
    (Message(qdb.READ, "/name"), "00 2f6e616d65" + "00" * 59 + "000000 00000000"),
    (Message(qdb.WRITE, "/a", b"\x01\xff"), "01 2f61" + "00" * 62 + "000000 02000000 01ff"),
    (Message(qdb.MULTIREAD), "02" + "00" * 71),
    (Message(qdb.RM, "/a/"), "04 2f612f" + "00" * 61 + "000000 00000000"),
    (Message(qdb.RESP_WATCH, "/a"), "0d 2f61" + "00" * 62 + "000000 00000000"),
])
def test_bytes_on_the_wire(message: Message, text: str) -> None:
    data = bytes.fromhex(text)
    assert qdb.encode(*message) == data
    assert len(data) == 72 + len(message.value)
    [limits] = [limits for limits in (qdb.TO_DAEMON, qdb.TO_CLIENT) if message.kind in limits]
    assert take(limits, data) == [message]


@pytest.mark.parametrize(("role", "kinds", "with_value"), [
    ("vchan", {1, 2, 4, 7, 8, 9, 11}, {1, 11}), ("to daemon", {0, 1, 2, 3, 4, 5, 6}, {1}),
    ("to client", {7, 8, 9, 10, 11, 12, 13}, {10, 11}),
])
def test_types_and_lengths_by_channel(role: str, kinds: set[int], with_value: set[int]) -> None:
    limits = ROLES[role]
    for kind in range(256):
        if kind not in kinds:
            refused(limits, raw(kind, b"/a"))
            continue
        assert take(limits, raw(kind, b"/a")) == [Message(kind, "/a")]
        if kind in with_value:
            assert take(limits, raw(kind, b"/a", b"x")) == [Message(kind, "/a", b"x")]
            assert take(limits, raw(kind, b"/a", b"x" * 3071)) == [Message(kind, "/a", b"x" * 3071)]
        refused(limits, raw(kind, b"/a", length=3072 if kind in with_value else 1))   # before the value arrives
        refused(limits, raw(kind, b"/a", length=2**32 - 1))


@pytest.mark.parametrize(("path", "fine"), [
    (b"", True), (b"/", True), (b"/a", True), (b"/" + b"a" * 62, True), (b"/" + b"a" * 63, False), (b"a", False),
    (b"a/b", False), (b"/A-z_0.9:@/", True), (b"/a+b", False), (b"/a b", False), (b"/a\n", False), (b"/\xff", False),
    (b"/%s", False),
    (b"/a\\", False),
])
def test_paths(path: bytes, fine: bool) -> None:
    if not fine:
        refused(qdb.TO_DAEMON, raw(qdb.READ, path))
        with pytest.raises(ValueError, match=r"can't be sent|ascii"):
            qdb.encode(qdb.READ, path.decode("latin-1"))
        return
    assert take(qdb.TO_DAEMON, raw(qdb.READ, path)) == [Message(qdb.READ, path.decode())]
    assert qdb.encode(qdb.READ, path.decode()) == raw(qdb.READ, path)


def test_old_bytes_after_the_nul_are_read_over() -> None:
    """qubesdb-daemon ends a series by writing one NUL over the last path, and never clears the padding."""
    assert take(qdb.VCHAN, raw(qdb.RESP_MULTIREAD, b"\0name\xff", padding=b"\x7f\x80\xff")) == [Message(qdb.RESP_MULTIREAD)]


def test_qsb_009_path_field_and_padding_are_zero() -> None:
    data = qdb.encode(qdb.WRITE, "/a", b"x")
    assert data[3:68] == bytes(65)


@pytest.mark.parametrize(("size", "fine"), [(0, True), (1, True), (3071, True), (3072, False)])
def test_longest_value_that_is_sent(size: int, fine: bool) -> None:
    if fine:
        assert take(qdb.VCHAN, qdb.encode(qdb.WRITE, "/a", b"v" * size)) == [Message(qdb.WRITE, "/a", b"v" * size)]
    else:
        with pytest.raises(ValueError, match="3072 bytes"):
            qdb.encode(qdb.WRITE, "/a", b"v" * size)


MESSAGES = (st.builds(Message, st.just(qdb.WRITE), PATHS, st.binary(max_size=100))
            | st.builds(Message, st.just(qdb.RM), PATHS, st.just(b"")))


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(0, 900), max_size=6))
def test_messages_survive_any_split(messages: list[Message], cuts: list[int]) -> None:
    stream = b"".join(qdb.encode(*message) for message in messages)
    parts = [stream[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), max(len(stream), 900)])]
    assert take(qdb.VCHAN, *parts) == messages


HOSTILE = st.builds(raw, st.integers(0, 15), st.binary(max_size=64), st.binary(max_size=20))


@pytest.mark.parametrize("role", ROLES)
@given(st.lists(st.binary(max_size=100) | HOSTILE, max_size=4))
def test_qsb_010_a_hostile_peer_gets_messages_or_peer_error_and_nothing_else(role: str, parts: list[bytes]) -> None:
    try:
        for message in take(ROLES[role], *parts):
            assert message.kind in ROLES[role]
            assert qdb.encode(*message)
    except PeerError:
        pass
