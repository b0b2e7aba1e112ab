"""qrexec's codec: exact bytes, every refusal, any split, any garbage (reference/qrexec.md 3-7, 9.1, 10.1)."""
from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import qrexec
from cloison.wire.qrexec import (
    Allocated,
    BadTrigger,
    Command,
    Data,
    Decoder,
    Exec,
    Exit,
    Hello,
    Message,
    Ports,
    Role,
    ServiceConnect,
    ServiceRefused,
    Terminated,
    Trigger,
)

ID = b"SOCKET7".ljust(32, b"\0")
ROLES = [
    qrexec.FROM_AGENT, qrexec.FROM_DAEMON, qrexec.FROM_CLIENT, qrexec.TO_CLIENT, qrexec.FROM_CLIENT_VM, qrexec.FROM_CALLER,
    qrexec.FROM_SERVICE,
]
KINDS = [*range(0x190, 0x194), *range(0x200, 0x204), *range(0x210, 0x214), 0x300]


def raw(kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(body) if length is None else length) + body


def ready(role: Role, version: int = 4) -> Decoder:
    """A decoder past its handshake with a peer of that version."""
    decoder = Decoder(role)
    if role.handshake:
        decoder.feed(raw(0x300, struct.pack("<I", version)))
        assert decoder.next_message() == Hello(version)
    return decoder


def take(decoder: Decoder, *parts: bytes) -> list[Message]:
    taken = []
    for part in parts:
        decoder.feed(part)
        while (message := decoder.next_message()) is not None:
            taken.append(message)
    return taken


def one(role: Role, data: bytes, version: int = 4) -> Message:
    [message] = take(ready(role, version), data)
    return message


def refused(role: Role, data: bytes, version: int = 4) -> None:
    decoder = ready(role, version)
    decoder.feed(data)
    for _ in range(2):                   # and it stays refused
        with pytest.raises(PeerError):
            decoder.next_message()


def trigger4(service: bytes, source: bytes = b"", target: bytes = b"", ident: bytes = ID) -> bytes:
    return raw(0x213, source.ljust(64, b"\0") + target.ljust(64, b"\0") + ident + service)


# What each encoder writes, byte for byte, and what the other end reads. Hexadecimal; `|` only for the eye.
WIRE: list[tuple[Role, bytes, str, Message]] = [
    (qrexec.FROM_DAEMON, qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, 513, "user:ls"),
     "00020000 10000000 | 00000000 01020000 | 757365723a6c73 00", Exec(0x200, 0, 513, "user:ls")),
    (qrexec.FROM_DAEMON, qrexec.exec_command(qrexec.JUST_EXEC, 3, 768, "u:\udcffé"),
     "01020000 0e000000 | 03000000 00030000 | 753a ff c3a9 00", Exec(0x201, 3, 768, "u:\udcffé")),
    (qrexec.FROM_DAEMON, qrexec.service_connect(5, 514, ID),
     "02020000 28000000 | 05000000 02020000 | 534f434b455437" + "00" * 25, ServiceConnect(5, 514, ID)),
    (qrexec.FROM_DAEMON, qrexec.service_refused(ID), "03020000 20000000 | 534f434b455437" + "00" * 25, ServiceRefused(ID)),
    (qrexec.FROM_CLIENT, qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, 0, "a:b"),
     "00020000 0c000000 | 00000000 00000000 | 613a62 00", Exec(0x200, 0, 0, "a:b")),
    (qrexec.FROM_CLIENT, qrexec.service_connect(5, 0, ID),
     "02020000 28000000 | 05000000 00000000 | 534f434b455437" + "00" * 25, ServiceConnect(5, 0, ID)),
    (qrexec.TO_CLIENT, qrexec.allocated(qrexec.JUST_EXEC, 9, 515),
     "01020000 08000000 | 09000000 03020000", Allocated(0x201, 9, 515)),
    (qrexec.FROM_AGENT, qrexec.connection_terminated(2, 513),
     "11020000 08000000 | 02000000 01020000", Terminated(2, 513)),
    (qrexec.FROM_AGENT, qrexec.trigger_service3("@default", ID, "qubes.Foo+x"),
     "12020000 6c000000 | 4064656661756c74" + "00" * 56 + "534f434b455437" + "00" * 25 + "71756265732e466f6f2b78 00",
     Trigger("", "@default", ID, "qubes.Foo+x")),
    (qrexec.FROM_AGENT, qrexec.trigger_service4("s", "work", ID, "a"),
     "13020000 a2000000 | 73" + "00" * 63 + "776f726b" + "00" * 60 + "534f434b455437" + "00" * 25 + "6100",
     Trigger("s", "work", ID, "a")),
    (qrexec.FROM_CLIENT_VM, qrexec.trigger_service4("", "work", qrexec.request_id("SOCKET"), "a"),
     "13020000 a2000000 |" + "00" * 64 + "776f726b" + "00" * 60 + "534f434b4554" + "00" * 26 + "6100",
     Trigger("", "work", b"SOCKET".ljust(32, b"\0"), "a")),
    (qrexec.FROM_CALLER, b"".join(qrexec.data(qrexec.STDIN, b"hi")), "90010000 02000000 | 6869", Data(0x190, b"hi")),
    (qrexec.FROM_CALLER, b"".join(qrexec.data(qrexec.STDOUT, b"hi")), "91010000 02000000 | 6869", Data(0x190, b"hi")),
    (qrexec.FROM_SERVICE, b"".join(qrexec.data(qrexec.STDIN, b"hi")), "90010000 02000000 | 6869", Data(0x191, b"hi")),
    (qrexec.FROM_SERVICE, b"".join(qrexec.data(qrexec.STDERR, b"!")), "92010000 01000000 | 21", Data(0x192, b"!")),
    (qrexec.FROM_SERVICE, qrexec.end_of_stream(qrexec.STDOUT), "91010000 00000000", Data(0x191, b"")),
    (qrexec.FROM_SERVICE, qrexec.exit_code(127), "93010000 04000000 | 7f000000", Exit(127)),
    (qrexec.FROM_SERVICE, qrexec.exit_code(-1), "93010000 04000000 | ffffffff", Exit(-1)),
]


@pytest.mark.parametrize(("role", "data", "text", "message"), WIRE)
def test_bytes_on_the_wire(role: Role, data: bytes, text: str, message: Message) -> None:
    assert data == bytes.fromhex(text.replace("|", ""))
    assert one(role, data) == message


def test_hello() -> None:
    assert qrexec.hello(4) == bytes.fromhex("00030000 04000000 04000000")


@pytest.mark.parametrize(("role", "theirs", "agreed"), [
    (qrexec.FROM_AGENT, 2, 2), (qrexec.FROM_AGENT, 3, 3), (qrexec.FROM_AGENT, 4, 4), (qrexec.FROM_AGENT, 5, 4),
    (qrexec.FROM_SERVICE, 0xFFFFFFFF, 4), (qrexec.FROM_CLIENT, 3, 3), (qrexec.FROM_CLIENT, 4, 3), (qrexec.TO_CLIENT, 3, 3),
    (qrexec.FROM_DAEMON, 1, None), (qrexec.FROM_AGENT, 0, None), (qrexec.FROM_CLIENT, 2, None), (qrexec.TO_CLIENT, 2, None),
])
def test_versions(role: Role, theirs: int, agreed: int | None) -> None:
    decoder = Decoder(role)
    assert decoder.version == 0
    decoder.feed(qrexec.hello(theirs))
    if agreed is None:
        with pytest.raises(PeerError):
            decoder.next_message()
    else:
        assert decoder.next_message() == Hello(theirs)
        assert decoder.version == agreed


@pytest.mark.parametrize("role", [role for role in ROLES if role.handshake])
@pytest.mark.parametrize("first", [raw(0x190, b"x"), raw(0x300, b""), raw(0x300, b"123"), raw(0x300, b"12345"), raw(0)])
def test_hello_comes_first_with_its_exact_length(role: Role, first: bytes) -> None:
    decoder = Decoder(role)
    decoder.feed(first)
    with pytest.raises(PeerError):
        decoder.next_message()


def test_second_hello_is_refused() -> None:
    for role in ROLES:
        refused(role, qrexec.hello(4))


# role -> types that it takes at version 4; all others are refused.
TYPES = [
    (qrexec.FROM_AGENT, {0x211, 0x212, 0x213}), (qrexec.FROM_DAEMON, {0x200, 0x201, 0x202, 0x203}),
    (qrexec.FROM_CLIENT, {0x200, 0x201, 0x202}), (qrexec.TO_CLIENT, {0x200, 0x201, 0x202}), (qrexec.FROM_CLIENT_VM, {0x213}),
    (qrexec.FROM_CALLER, {0x190, 0x191, 0x192, 0x193}), (qrexec.FROM_SERVICE, {0x190, 0x191, 0x192, 0x193}),
]


@pytest.mark.parametrize(("role", "known"), TYPES)
def test_types_of_other_channels_are_refused_before_their_body(role: Role, known: set[int]) -> None:
    for kind in [*KINDS, 0, 0x18F, 0x194, 0x1FF, 0x204, 0x20F, 0x214, 0x301, 0xFFFFFFFF]:
        if kind not in known:
            refused(role, raw(kind, length=100))


@pytest.mark.parametrize(("version", "known"), [(2, {0x210}), (3, {0x212}), (4, {0x212, 0x213})])
def test_trigger_types_fit_the_version(version: int, known: set[int]) -> None:
    bodies = {0x210: b"a".ljust(64, b"\0") + b"t".ljust(32, b"\0") + ID, 0x212: b"t".ljust(64, b"\0") + ID + b"a\0",
              0x213: bytes(64) + b"t".ljust(64, b"\0") + ID + b"a\0"}
    for kind, body in bodies.items():
        if kind in known:
            assert one(qrexec.FROM_AGENT, raw(kind, body), version) == Trigger("", "t", ID, "a")
        else:
            refused(qrexec.FROM_AGENT, raw(kind, body), version)


# role, version, type, least length, greatest length
LENGTHS = [
    (qrexec.FROM_AGENT, 2, 0x210, 128, 128), (qrexec.FROM_AGENT, 3, 0x212, 97, 65096), (qrexec.FROM_AGENT, 4, 0x212, 97, 65096),
    (qrexec.FROM_AGENT, 4, 0x213, 161, 65160), (qrexec.FROM_AGENT, 4, 0x211, 8, 8),
    (qrexec.FROM_CLIENT_VM, 4, 0x213, 161, 65160),
    (qrexec.FROM_DAEMON, 4, 0x200, 9, 65790), (qrexec.FROM_DAEMON, 4, 0x201, 9, 65790), (qrexec.FROM_DAEMON, 4, 0x202, 9, 40),
    (qrexec.FROM_DAEMON, 4, 0x203, 32, 32), (qrexec.FROM_CLIENT, 3, 0x200, 9, 65535), (qrexec.FROM_CLIENT, 3, 0x201, 9, 65535),
    (qrexec.FROM_CLIENT, 3, 0x202, 9, 40), (qrexec.TO_CLIENT, 3, 0x200, 8, 8), (qrexec.TO_CLIENT, 3, 0x202, 8, 8),
    (qrexec.FROM_CALLER, 2, 0x190, 0, 4096), (qrexec.FROM_CALLER, 3, 0x190, 0, 65536), (qrexec.FROM_SERVICE, 2, 0x191, 0, 4096),
    (qrexec.FROM_SERVICE, 4, 0x191, 0, 65536), (qrexec.FROM_SERVICE, 4, 0x192, 0, 65536), (qrexec.FROM_SERVICE, 4, 0x193, 0, 4),
]


@pytest.mark.parametrize(("role", "version", "kind", "least", "most"), LENGTHS)
def test_lengths_are_refused_before_the_body(role: Role, version: int, kind: int, least: int, most: int) -> None:
    for length in (least, most):
        assert take(ready(role, version), raw(kind, length=length)) == [] or length == 0
    for length in {0, 1, least - 1, most + 1, 0x7FFFFFFF, 0xFFFFFFFF}:
        if length >= 0 and not least <= length <= most:
            refused(role, raw(kind, length=length), version)


@pytest.mark.parametrize("length", [0, 1, 65534, 65535, 65536])
def test_data_of_every_length(length: int) -> None:
    payload = bytes(range(256)) * 257
    assert one(qrexec.FROM_SERVICE, raw(0x191, payload[:length])) == Data(0x191, payload[:length])


@pytest.mark.parametrize(("size", "version", "sizes"), [
    (0, 4, []), (1, 4, [1]), (65536, 4, [65536]), (65537, 4, [65536, 1]), (65537, 3, [65536, 1]), (131072, 4, [65536, 65536]),
    (4096, 2, [4096]), (4097, 2, [4096, 1]),
])
def test_payloads_are_split_to_the_limit(size: int, version: int, sizes: list[int]) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    messages = list(qrexec.data(qrexec.STDIN, memoryview(payload)[:size], version))
    assert [len(message) - 8 for message in messages] == sizes
    taken = take(ready(qrexec.FROM_CALLER, version), *messages)
    assert b"".join(message.payload for message in taken if isinstance(message, Data)) == payload[:size]


@pytest.mark.parametrize(("body", "status"), [
    (b"", 255), (b"\0", 255), (b"\0\0\0", 255), (b"\0\0\0\0", 0), (b"\x80\0\0\0", 128), (b"\xff\xff\xff\x7f", 2**31 - 1),
])
def test_short_exit_code_counts_as_255(body: bytes, status: int) -> None:
    assert one(qrexec.FROM_SERVICE, raw(0x193, body)) == Exit(status)


# -- ports and command lines in messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("port", "fine"), [
    (0, False), (1, False), (512, False), (513, True), (768, True), (769, False), (2**32 - 1, False),
])
def test_port_range(port: int, fine: bool) -> None:
    params = struct.pack("<II", 1, port)
    messages = [(qrexec.FROM_AGENT, raw(0x211, params)), (qrexec.FROM_DAEMON, raw(0x200, params + b"a:b\0")),
                (qrexec.FROM_DAEMON, raw(0x202, params + ID)), (qrexec.TO_CLIENT, raw(0x200, params)),
                (qrexec.FROM_CLIENT, raw(0x202, params + ID))]
    for role, data in messages:
        if fine or role.any_port or (port == 0 and role is qrexec.FROM_CLIENT):
            assert getattr(one(role, data), "port", None) == port
        else:
            refused(role, data)


@pytest.mark.parametrize("command", [b"", b"a", b"a:b", b"a\0b", b"\0\0", b"a\0b\0", b"a\0\0"])
@pytest.mark.parametrize("role", [qrexec.FROM_CLIENT, qrexec.FROM_DAEMON])
def test_command_ends_in_its_only_nul(role: Role, command: bytes) -> None:
    refused(role, raw(0x200, struct.pack("<II", 0, 513) + command))


@pytest.mark.parametrize(("length", "port", "fine"), [
    (0, 0, True), (1, 0, True), (65526, 0, True), (65527, 0, False), (65526, 513, True), (65781, 513, True),
    (65782, 513, False),
])
def test_longest_command(length: int, port: int, fine: bool) -> None:
    if not fine:
        with pytest.raises(ValueError, match="too long"):
            qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, port, "x" * length)
        return
    data = qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, port, "x" * length)
    role = qrexec.FROM_DAEMON if port else qrexec.FROM_CLIENT
    assert one(role, data) == Exec(0x200, 0, port, "x" * length)


def test_default_user_always_fits_the_agents_limit() -> None:
    command = qrexec.with_default_user("DEFAULT:" + "x" * (qrexec.MAX_COMMAND - 8), "u" * qrexec.MAX_USER)
    data = qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, 513, command)
    assert one(qrexec.FROM_DAEMON, data) == Exec(0x200, 0, 513, command)


@pytest.mark.parametrize(("command", "result"), [
    ("DEFAULT:ls", "user:ls"), ("DEFAULT:", "user:"), ("DEFAULT", "DEFAULT"), ("root:DEFAULT:x", "root:DEFAULT:x"), ("", ""),
])
def test_default_user(command: str, result: str) -> None:
    assert qrexec.with_default_user(command, "user") == result


# -- triggers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("service", "fine"), [
    (b"\0", False), (b"a\0", True), (b"a", False), (b"ab", False), (b"a\0b\0", False), (b"\0a\0", False), (b"a\0\0", False),
    (b"+\0", False), (b"+a\0", False), (b"a+\0", True), (b"a" * 255 + b"\0", True), (b"a" * 256 + b"\0", False),
    (b"a" * 255 + b"+\0", True), (b"a" * 256 + b"+\0", False), (b"a+" + b"b" * 64997 + b"\0", True),
    (b"a+" + b"b" * 64998, False),
    (b"\xff" * 65000, False),
])
def test_qsb_089_service_name_lengths(service: bytes, fine: bool) -> None:
    """Zero-length and unterminated names went one byte off."""
    for role in (qrexec.FROM_AGENT, qrexec.FROM_CLIENT_VM):
        message = one(role, trigger4(service))
        if fine:
            assert message == Trigger("", "", ID, service[:-1].decode())
        else:
            assert isinstance(message, BadTrigger)
            assert message.untrusted_request_id == ID
            assert message.reason


def test_qsb_089_service_field_one_byte_too_long_is_refused_before_its_body() -> None:
    refused(qrexec.FROM_AGENT, raw(0x213, length=160 + 65001))
    refused(qrexec.FROM_AGENT, raw(0x212, length=96 + 65001), 3)


@pytest.mark.parametrize(("field", "name"), [
    (b"", ""), (b"a", "a"), (b"a" * 63, "a" * 63), (b"a" * 64, "a" * 63), (b"a\0b", "a"), (b"\0b", ""),
])
def test_qsb_089_source_and_target_lengths(field: bytes, name: str) -> None:
    assert one(qrexec.FROM_AGENT, trigger4(b"s\0", source=field, target=b"t")) == Trigger(name, "t", ID, "s")
    assert one(qrexec.FROM_AGENT, trigger4(b"s\0", source=b"z", target=field)) == Trigger("z", name, ID, "s")


@pytest.mark.parametrize("ident", [b"x", b"SOCKET9", b"SOCKET\0x", b"x" * 32])
def test_qsb_089_an_answered_request_id_ends_in_nul(ident: bytes) -> None:
    refused(qrexec.FROM_CLIENT, qrexec.service_connect(5, 0, ident))


@pytest.mark.parametrize(("ident", "fine"), [
    (b"", True), (b"a" * 31, True), (b"aZ09_. -", True), (b" ", True), (b"a" * 32, False), (b"a\0b", False), (b"\0a", False),
    (b"a/b", False), (b"a\n", False), (b"\xff", False), (b"a" * 30 + b"\0a", False),
])
def test_request_ids(ident: bytes, fine: bool) -> None:
    ident = ident.ljust(32, b"\0")
    message = one(qrexec.FROM_AGENT, trigger4(b"s\0", ident=ident))
    if fine:
        assert message == Trigger("", "", ident, "s")
        assert qrexec.request_id(ident.rstrip(b"\0").decode()) == ident
    else:
        assert message == BadTrigger(ident, "bad request id")
        assert qrexec.service_refused(ident)[8:] == ident


def test_qsb_009_name_field_padding_is_zero() -> None:
    """Fixed-size fields went out with whatever stood in memory after the name."""
    message = qrexec.trigger_service4("src", "tgt", qrexec.request_id("id"), "svc")
    assert message[8 + 3:8 + 64] == bytes(61)
    assert message[72 + 3:72 + 64] == bytes(61)
    assert message[136 + 2:136 + 32] == bytes(30)
    assert qrexec.trigger_service3("tgt", ID, "svc")[8 + 3:8 + 64] == bytes(61)


@pytest.mark.parametrize("text", ["a" * 64, "a\0", "é"])
def test_names_that_do_not_fit_are_never_sent(text: str) -> None:
    for source, target in ((text, "t"), ("s", text)):
        with pytest.raises(ValueError, match=r"fit|ascii"):
            qrexec.trigger_service4(source, target, ID, "s")
    with pytest.raises(ValueError, match=r"fit|ascii"):
        qrexec.trigger_service3(text, ID, "s")


@pytest.mark.parametrize("text", ["a" * 32, "a/", "a\0", "é", "a\n"])
def test_request_ids_that_are_never_made(text: str) -> None:
    with pytest.raises(ValueError, match=r"fit|ascii|request id"):
        qrexec.request_id(text)


def test_longest_service_that_is_sent() -> None:
    longest = "s+" + "a" * 64997
    assert one(qrexec.FROM_AGENT, qrexec.trigger_service4("", "t", ID, longest)) == Trigger("", "t", ID, longest)
    for service in (longest + "a", "a\0"):
        with pytest.raises(ValueError, match="too long or holds a NUL"):
            qrexec.trigger_service4("", "t", ID, service)


@pytest.mark.parametrize(("untrusted", "service", "target"), [
    (b"$(reboot)", "__reboot_", "__reboot_"), (b"a`b`;c|d", "a_b__c_d", "a_b__c_d"), (b"\x1b[31m\n", "__31m_", "__31m_"),
    (b"a+b@c:d", "a+b_c_d", "a_b@c:d"), (b"caf\xc3\xa9", "caf__", "caf__"), (b"../x y", ".._x_y", ".._x_y"),
])
def test_qsb_038_names_are_canonical_before_policy_sees_them(untrusted: bytes, service: str, target: str) -> None:
    """A `$` in a target reached a shell after the decision (and QSB-087: controls reached a log)."""
    message = one(qrexec.FROM_AGENT, trigger4(untrusted + b"\0", target=untrusted))
    assert message == Trigger("", target, ID, service)


@given(st.binary(max_size=300), st.binary(max_size=64), st.binary(max_size=64))
def test_trigger_names_hold_only_what_policy_knows(service: bytes, source: bytes, target: bytes) -> None:
    message = one(qrexec.FROM_AGENT, trigger4(service + b"\0", source, target))
    if isinstance(message, Trigger):
        letters = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
        assert set(message.service) <= letters | {"+"}
        assert set(message.source + message.target) <= letters | {"@", ":"}
        assert message.service[:1] not in ("", "+")


def test_version_2_trigger() -> None:
    def body(service: bytes, target: bytes) -> bytes:
        return raw(0x210, service.ljust(64, b"\0") + target.ljust(32, b"\0") + ID)

    assert one(qrexec.FROM_AGENT, body(b"a" * 63, b"t" * 32), 2) == Trigger("", "t" * 31, ID, "a" * 63)
    for service in (b"", b"a" * 64, b"a\0b", b"+a"):
        assert isinstance(one(qrexec.FROM_AGENT, body(service, b"t"), 2), BadTrigger)


# -- any bytes -----------------------------------------------------------------------------------------------------------

STREAM = [(data, message) for role, data, _, message in WIRE if role is qrexec.FROM_DAEMON]


@given(st.lists(st.integers(0, sum(len(data) for data, _ in STREAM) + 12), max_size=8))
def test_messages_survive_any_split(cuts: list[int]) -> None:
    stream = qrexec.hello(4) + b"".join(data for data, _ in STREAM)
    edges = [0, *sorted(cuts), len(stream)]
    parts = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert take(Decoder(qrexec.FROM_DAEMON), *parts) == [Hello(4), *(message for _, message in STREAM)]


HOSTILE = st.lists(
    st.binary(max_size=40)
    | st.builds(raw, st.sampled_from(KINDS), st.binary(max_size=200))
    | st.builds(raw, st.sampled_from(KINDS), st.binary(max_size=20), st.integers(0, 2**32 - 1)),
    max_size=6,
)


@pytest.mark.parametrize("role", ROLES)
@given(HOSTILE, st.sampled_from([None, 2, 3, 4, 9]))
def test_qsb_010_a_hostile_peer_gets_messages_or_peer_error_and_nothing_else(
    role: Role, parts: list[bytes], version: int | None,
) -> None:
    """Lengths are unsigned and bounded, whatever the peer claims."""
    decoder = Decoder(role)
    try:
        for message in take(decoder, *([qrexec.hello(version)] if version else []), *parts):
            assert isinstance(message, tuple)
    except PeerError:
        return
    assert decoder.version in (0, 2, 3, 4)


# -- ports ---------------------------------------------------------------------------------------------------------------


def test_ports_for_the_host_are_the_lowest_free() -> None:
    ports = Ports(own_domain=7)
    assert [ports.take(0) for _ in range(256)] == list(range(513, 769))
    assert ports.take(0) is None
    assert ports.take(9) is None
    assert ports.free(0, 600)
    assert ports.take(0) == 600


def test_ports_between_qubes_never_meet() -> None:
    low, high = Ports(own_domain=3), Ports(own_domain=8)
    assert [low.take(8) for _ in range(128)] == list(range(514, 769, 2))
    assert [high.take(3) for _ in range(128)] == list(range(513, 769, 2))
    assert low.take(8) is None
    assert high.take(3) is None


@pytest.mark.parametrize(("peer", "port"), [(1, 513), (0, 514), (0, 0), (0, 769), (0, -1)])
def test_ports_are_freed_only_by_their_peer(peer: int, port: int) -> None:
    ports = Ports(own_domain=7)
    assert ports.take(0) == 513
    assert not ports.free(peer, port)
    assert ports.take(0) == 514


def test_a_port_is_freed_once() -> None:
    ports = Ports(own_domain=7)
    assert ports.take(0) == 513
    assert ports.free(0, 513)
    assert not ports.free(0, 513)


# -- command lines -------------------------------------------------------------------------------------------------------

COMMANDS = [
    ("user:ls -l", Command("user", command="ls -l")),
    ("user:", Command("user")),
    ("root:nogui:a:b", Command("root", nogui=True, command="a:b")),
    ("DEFAULT:nogui:", Command("DEFAULT", nogui=True)),
    ("user:QUBESRPC", Command("user", command="QUBESRPC")),
    ("user:QUBESRPCx y", Command("user", command="QUBESRPCx y")),
    ("user: QUBESRPC a b", Command("user", command=" QUBESRPC a b")),
    ("user:echo \udcff\n$x", Command("user", command="echo \udcff\n$x")),
    ("user:QUBESRPC qubes.A dom0", Command("user", service="qubes.A", source="dom0")),
    ("user:QUBESRPC qubes.A+ dom0", Command("user", service="qubes.A", argument="", source="dom0")),
    ("user:QUBESRPC qubes.A+b+c dom0", Command("user", service="qubes.A", argument="b+c", source="dom0")),
    ("u:nogui:QUBESRPC a+../b dom0", Command("u", nogui=True, service="a", argument="../b", source="dom0")),
]
HOST_COMMANDS = [
    ("QUBESRPC a+b work name dom0", Command("", False, "", "a", "b", "work", "name", "dom0")),
    ("nogui:QUBESRPC a+ work keyword dispvm:x", Command("", True, "", "a", "", "work", "keyword", "dispvm:x")),
]


@pytest.mark.parametrize(("text", "command"), COMMANDS)
def test_command_lines(text: str, command: Command) -> None:
    assert qrexec.parse_command(text) == command
    assert qrexec.build_command(command) == text


@pytest.mark.parametrize(("text", "command"), HOST_COMMANDS)
def test_host_command_lines(text: str, command: Command) -> None:
    assert qrexec.parse_host_command(text) == command
    assert qrexec.build_command(command) == text


def test_a_call_of_the_host_to_itself_may_leave_its_target_out() -> None:
    """Two words after QUBESRPC, as Qubes OS's own programs in dom0 say it; four as for a qube's call."""
    plain = Command("", service="policy.Get", argument="30-user", source="dom0")
    assert qrexec.parse_own_command("QUBESRPC policy.Get+30-user dom0") == plain
    assert qrexec.parse_own_command("nogui:QUBESRPC a dom0") == Command("", nogui=True, service="a", source="dom0")
    for text, command in HOST_COMMANDS:
        assert qrexec.parse_own_command(text) == command
    for text in ("QUBESRPC a", "QUBESRPC a dom0 name", "QUBESRPC a dom0 other x", "QUBESRPC  dom0", "QUBESRPC a ", "ls a b", "",
                 "QUBESRPC ../a dom0"):
        with pytest.raises(PeerError):
            qrexec.parse_own_command(text)


@pytest.mark.parametrize(("command", "descriptor"), [
    (COMMANDS[8][1], "qubes.A dom0"), (COMMANDS[9][1], "qubes.A+ dom0"), (HOST_COMMANDS[0][1], "a+b work name dom0"),
])
def test_service_descriptor(command: Command, descriptor: str) -> None:
    assert command.descriptor == descriptor


@pytest.mark.parametrize("text", [
    "", "user", ":ls", "QUBESRPC a b", "u" * 256 + ":ls", "user:QUBESRPC ", "user:QUBESRPC  a b", "user:QUBESRPC a",
    "user:QUBESRPC a ", "user:QUBESRPC a  b", "user:QUBESRPC a b ", "user:QUBESRPC a b c", "user:QUBESRPC a b name d",
    "user:QUBESRPC +a b", "user:QUBESRPC . b", "user:QUBESRPC .. b", "user:QUBESRPC ..+x b", "user:QUBESRPC a/b c",
    "user:QUBESRPC /a c", "user:a\0b", "user:" + "x" * 65536,
])
def test_bad_command_lines(text: str) -> None:
    with pytest.raises(PeerError):
        qrexec.parse_command(text)


@pytest.mark.parametrize("text", [
    "", "ls", "user:QUBESRPC a b name d", "QUBESRPC a b", "QUBESRPC a b name", "QUBESRPC a b other d", "QUBESRPC a b name d e",
    "QUBESRPC a b name ", "nogui:nogui:QUBESRPC a b name d", "QUBESRPC ../a b name d",
])
def test_bad_host_command_lines(text: str) -> None:
    with pytest.raises(PeerError):
        qrexec.parse_host_command(text)


@pytest.mark.parametrize(("name", "fine"), [(0, False), (1, True), (255, True), (256, False)])
def test_qsb_089_service_name_lengths_in_a_command_line(name: int, fine: bool) -> None:
    for letter in ("s", "\udcff"):
        for argument in ("", "+a"):
            text = f"u:QUBESRPC {letter * name}{argument} v"
            if fine:
                assert qrexec.parse_command(text).service == letter * name
            else:
                with pytest.raises(PeerError):
                    qrexec.parse_command(text)


@pytest.mark.parametrize(("length", "fine"), [(64999, True), (65000, True), (65001, False)])
def test_descriptor_length(length: int, fine: bool) -> None:
    text = "u:QUBESRPC a+" + "x" * (length - 4) + " v"
    if fine:
        assert len(qrexec.parse_command(text).descriptor) == length
    else:
        with pytest.raises(PeerError):
            qrexec.parse_command(text)


@pytest.mark.parametrize("command", [
    Command("u", service="a b", source="c"), Command("u", service="a", source="c d"), Command("u", service="a", source=""),
    Command("a:b", command="ls"), Command("u", command="QUBESRPC a b"), Command("u", command="nogui:x"),
    Command("u", command="\0"),
    Command("u", service="a+b", source="c"), Command("u", service="a", source="b", command="ls"), Command("", command="ls"),
    Command("", service="a", source="b"), Command("", False, "", "a", None, "b", "name", "c d"),
    Command("u", service="../a", source="b"), Command("u", service="a", source="b", target="x"),
])
def test_commands_that_would_be_read_differently_are_not_built(command: Command) -> None:
    with pytest.raises(ValueError, match="not a command line"):
        qrexec.build_command(command)


@given(st.text(max_size=60) | st.text("QUBESRPC nogui:+a./\0\ud800\udc80", max_size=40).map("u:QUBESRPC ".__add__))
def test_any_command_line_is_parsed_or_refused_and_built_again(text: str) -> None:
    for parse in (qrexec.parse_command, qrexec.parse_host_command):
        try:
            command = parse(text)
        except PeerError:
            continue
        assert qrexec.build_command(command) == text


@given(st.binary(max_size=80).filter(lambda data: b"\0" not in data))
def test_any_bytes_of_a_command_survive(command: bytes) -> None:
    message = one(qrexec.FROM_DAEMON, raw(0x200, struct.pack("<II", 0, 513) + command + b"\0"))
    assert isinstance(message, Exec)
    assert qrexec.exec_command(0x200, 0, 513, message.command)[16:-1] == command
