"""The Admin API's framing: bytes as reference/admin-api.md 1 and 10 give them, every refusal, any split."""
from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import CloisonError, PeerError
from cloison.wire import admin
from cloison.wire.admin import Event, EventDecoder, Failure, Request

REQUESTS = [
    (b"admin.vm.property.Get+label dom0 name work\0", Request("admin.vm.property.Get", "label", "dom0", "name", "work")),
    (b"admin.vm.property.Set+vcpus dom0 name work\x003",
     Request("admin.vm.property.Set", "vcpus", "dom0", "name", "work", b"3")),
    (b"admin.Events+ dom0 name dom0\0", Request("admin.Events", "", "dom0", "name", "dom0")),
    (b"admin.vm.Start+ a keyword adminvm\0\0\xff\0", Request("admin.vm.Start", "", "a", "keyword", "adminvm", b"\0\xff\0")),
    (b"m+a+b++ s name uuid:x\0", Request("m", "a+b++", "s", "name", "uuid:x")),
    (b"m+  name \0", Request("m", "", "", "name", "")),
]
EVENTS = [
    (b"1\0\0connection-established\0\0", Event("", "connection-established", ())),
    (b"1\0work\0domain-start\0start_guid\0True\0\0", Event("work", "domain-start", (("start_guid", "True"),))),
    (b"1\0work\0property-set:netvm\0name\0netvm\0newvalue\0\0\0",
     Event("work", "property-set:netvm", (("name", "netvm"), ("newvalue", "")))),
    (b"1\0\0\0\0", Event("", "", ())),
]
NUL = "\0"


# -- requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "request_"), REQUESTS)
def test_requests(data: bytes, request_: Request) -> None:
    assert admin.parse_request(data) == request_
    assert admin.encode_request(request_) == data


def test_request_without_plus_has_an_empty_argument() -> None:
    assert admin.parse_request(b"admin.vm.List dom0 name dom0\0") == Request("admin.vm.List", "", "dom0", "name", "dom0")


def test_request_that_is_not_ascii_holds_no_possible_name() -> None:
    request = admin.parse_request(b"m+\xc3\xa9 s name \xff\0\xff")
    assert request == Request("m", "\ufffd\ufffd", "s", "name", "\ufffd", b"\xff")


def test_a_space_in_the_last_word_is_left_to_the_check_of_names() -> None:
    assert admin.parse_request(b"m+ s name d e \0").dest == "d e "


@pytest.mark.parametrize("data", [
    b"", b"\0", b"m+ s name d", b"m+ s name\0d", b"m+  s name d\0", b" m+ s name d\0",
    b"m+\ts name d\0", b"m+ s keyword dispvm\0", b"m+ s keyword \0", b"m+ s Name d\0", b"m+ s  d\0", b"m+ s uuid d\0",
])
def test_bad_framing_of_requests(data: bytes) -> None:
    with pytest.raises(PeerError):
        admin.parse_request(data)


@pytest.mark.parametrize(("size", "fine"), [(0, True), (1, True), (65536 - 12, True), (65537 - 12, False)])
def test_request_length(size: int, fine: bool) -> None:
    header = b"m+ s name d\0"
    assert len(header) == 12
    request = Request("m", "", "s", "name", "d", b"x" * size)
    if fine:
        assert admin.parse_request(header + request.payload) == request
        assert admin.encode_request(request) == header + request.payload
        return
    with pytest.raises(PeerError):
        admin.parse_request(header + request.payload)
    with pytest.raises(CloisonError, match="65537 bytes, more than the 65536"):
        admin.encode_request(request)


@pytest.mark.parametrize("word", ["a b", "a\0b", "a\n", "\t", "é", "\x7f", "\ud800", " "])
def test_words_that_would_break_the_frame_are_never_sent(word: str) -> None:
    fine = Request("m", "a", "s", "name", "d")
    for bad in (fine._replace(method=word), fine._replace(argument=word), fine._replace(source=word), fine._replace(dest=word)):
        with pytest.raises(CloisonError, match="can't be part of a call") as caught:
            admin.encode_request(bad)
        assert str(caught.value).isprintable()


@given(st.binary(max_size=80) | st.binary(max_size=40).map(b"m+a s name d".__add__))
def test_any_request_is_parsed_or_refused(data: bytes) -> None:
    try:
        request = admin.parse_request(data)
    except PeerError:
        return
    assert data.endswith(request.payload)


# -- replies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"0", b"a\nb\n", b"\0\0", "é".encode()])
def test_ok(content: bytes) -> None:
    assert admin.ok(content) == b"0\0" + content
    assert admin.parse_reply(admin.ok(content)) == content


@pytest.mark.parametrize(("name", "message", "data"), [
    ("QubesVMNotFoundError", "no such domain: 'x'", b"2\0QubesVMNotFoundError\0\0no such domain: 'x'\0"),
    ("ProtocolError", "", b"2\0ProtocolError\0\0\0"),
    ("A", "100% of %s and %d, %%", b"2\0A\0\x00100%% of %%s and %%d, %%%%\0"),
    ("A", "é", b"2\0A\0\0\xc3\xa9\0"),
])
def test_exceptions(name: str, message: str, data: bytes) -> None:
    assert admin.exception(name, message) == data
    assert admin.parse_reply(data) == Failure(name, message)


@pytest.mark.parametrize(("hint", "sent"), [("", b""), ("Do 100% \0 é", "hint: Do 100% \\x00 é".encode())])
def test_a_hint_is_sent_where_clients_do_not_look(hint: str, sent: bytes) -> None:
    data = admin.exception("A", "it is so", hint)
    assert data == b"2\0A\0" + sent + b"\0it is so\0"
    assert admin.parse_reply(data) == Failure("A", "it is so", hint.replace("\0", "\\x00"))


def test_every_percent_is_doubled_for_clients_that_format() -> None:
    message = "50% of 'a%(x)s' at %n"
    sent = admin.exception("A", message).split(b"\0")[3].decode()
    assert sent % () == message


@pytest.mark.parametrize(("data", "message"), [
    (b"2\0A\0\0no %s, %d of %%s\0work\x003\0", "no work, 3 of %s"),
    (b"2\0A\0\0no arguments %s\0", "no arguments %s"),
    (b"2\0A\0\0%999999999d %(x)s %\0a\0", "%999999999d %(x)s %"),
    (b"2\0A\0\0x\0too\0many\0", "x"),
    (b"2\0A\0traceback\nline\0x\0", "x"),
    (b"2\0A\0\0\xff\0", "\ufffd"),
    (b"2\0A\0\0%s\0%s\0", "%s"),
])
def test_exceptions_of_other_servers(data: bytes, message: str) -> None:
    assert admin.parse_reply(data) == Failure("A", message)


@pytest.mark.parametrize("data", [
    b"", b"0", b"2", b"3\0", b"\0", b"1\0\0connection-established\0\0", b"2\0", b"2\0A", b"2\0A\0", b"2\0A\0\0",
    b"2\0A\0\0message", b"2\0A\0\0m\0arg", b"20\0A\0\0m\0", b"00\0",
])
def test_bad_framing_of_replies(data: bytes) -> None:
    with pytest.raises(PeerError):
        admin.parse_reply(data)


@given(st.text(max_size=20), st.text(max_size=40))
def test_any_exception_keeps_its_frame(name: str, message: str) -> None:
    data = admin.exception(name, message)
    assert data.count(b"\0") == 4
    failure = admin.parse_reply(data)
    assert isinstance(failure, Failure)
    if NUL not in message and message.isprintable():
        assert failure.message == message


@given(st.binary(max_size=60) | st.binary(max_size=40).map(b"2\0".__add__))
def test_any_reply_is_parsed_or_refused(data: bytes) -> None:
    try:
        reply = admin.parse_reply(data)
    except PeerError:
        return
    assert isinstance(reply, bytes | Failure)


# -- events --------------------------------------------------------------------------------------------------------------


def decode(*parts: bytes) -> list[Event]:
    decoder = EventDecoder()
    events = []
    for part in parts:
        decoder.feed(part)
        while (event := decoder.next_event()) is not None:
            events.append(event)
    assert decoder.finish() is None
    return events


@pytest.mark.parametrize(("data", "event"), EVENTS)
def test_events(data: bytes, event: Event) -> None:
    assert admin.event(*event) == data
    assert decode(data) == [event]


@given(st.lists(st.integers(0, 140), max_size=6))
def test_events_survive_any_split(cuts: list[int]) -> None:
    stream = b"".join(data for data, _ in EVENTS)
    edges = [0, *sorted(cuts), len(stream)]
    assert decode(*(stream[a:b] for a, b in itertools.pairwise(edges))) == [event for _, event in EVENTS]


PAIRS = st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=5)), max_size=4)


@given(st.text(max_size=8), st.text(max_size=8), PAIRS)
def test_any_event_keeps_its_frame_and_is_ascii(subject: str, name: str, pairs: list[tuple[str, str]]) -> None:
    data = admin.event(subject, name, pairs)
    assert data.isascii()
    assert data.count(b"\0") == 4 + 2 * len(pairs)
    [event] = decode(data)
    assert len(event.pairs) == len(pairs)


def test_an_event_key_is_never_empty() -> None:
    with pytest.raises(ValueError, match="empty"):
        admin.event("", "x", [("", "y")])


def test_exception_after_events() -> None:
    decoder = EventDecoder()
    decoder.feed(admin.event("", "connection-established") + admin.exception("QubesVMNotRunningError", "5% done")[:-3])
    assert decoder.next_event() == Event("", "connection-established", ())
    assert decoder.next_event() is None
    with pytest.raises(PeerError):
        decoder.finish()
    decoder.feed(b"ne\0")
    assert decoder.next_event() is None
    assert decoder.finish() == Failure("QubesVMNotRunningError", "5% done")


@pytest.mark.parametrize("cut", range(1, len(EVENTS[1][0])))
def test_event_cut_short(cut: int) -> None:
    decoder = EventDecoder()
    decoder.feed(EVENTS[1][0][:cut])
    assert decoder.next_event() is None
    with pytest.raises(PeerError):
        decoder.finish()


@pytest.mark.parametrize("data", [b"0\0", b"3\0", b"\0", b"11\0a\0", admin.event("a", "b") + b"0\0"])
def test_what_is_no_event_is_refused(data: bytes) -> None:
    decoder = EventDecoder()
    decoder.feed(data)
    with pytest.raises(PeerError):
        for _ in range(2):
            decoder.next_event()


@pytest.mark.parametrize(("size", "fine"), [(0, True), (1, True), ((1 << 20) - 8, True), ((1 << 20) - 7, False)])
def test_event_length(size: int, fine: bool) -> None:
    data = admin.event("", "", [("k", "v" * size)])
    assert len(data) == size + 8
    if fine:
        assert decode(data)[0].pairs == (("k", "v" * size),)
        return
    with pytest.raises(PeerError):
        decode(data)
    with pytest.raises(PeerError):
        decode(data[:-3] + b"more")


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"1\0", b"2\0", b"\0", b"\0\0"]), max_size=6))
def test_any_stream_gives_events_or_peer_error(parts: list[bytes]) -> None:
    decoder = EventDecoder()
    try:
        for part in parts:
            decoder.feed(part)
            while (event := decoder.next_event()) is not None:
                assert isinstance(event, Event)
        assert isinstance(decoder.finish(), Failure | None)
    except PeerError:
        pass
