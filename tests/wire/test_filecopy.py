"""The file copy stream: any split, any length, each field at its edges; which names and links pass."""
from __future__ import annotations

import errno
import unicodedata
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire import filecopy as wire
from cloison.wire.displayable import displayable

MTIME = 1_700_000_000 * 10**9 + 123_456_789
FILE, FOLDER, LINK = wire.REGULAR | 0o644, wire.FOLDER | 0o755, wire.LINK | 0o777


def taken(data: bytes, size: int = 1 << 30, *, all_names: bool = False) -> tuple[list[tuple[object, ...]], wire.Decoder]:
    """What a decoder says of a stream fed in pieces: entries with their content, and the decoder."""
    decoder = wire.Decoder(all_names=all_names)
    said: list[tuple[object, ...]] = []
    for at in range(0, len(data), size):
        decoder.feed(data[at:at + size])
        while (event := decoder.next_event()) is not None:
            if isinstance(event, wire.Entry):
                said.append((event.path, event.mode, event.size, event.accessed, event.modified, event.target, b""))
            elif isinstance(event, memoryview):
                *fields, content = said[-1]
                assert isinstance(content, bytes)
                said[-1] = (*fields, content + bytes(event))
            else:
                said.append(("end",))
    return said, decoder


def refusal(data: bytes, *, all_names: bool = False) -> wire.Refused:
    with pytest.raises(wire.Refused) as caught:
        taken(data, all_names=all_names)
    return caught.value


def header(length: int, mode: int = FILE, size: int = 0, times: tuple[int, int, int, int] = (0, 0, 0, 0)) -> bytes:
    return wire.HEADER.pack(length, mode, size, *times)


STREAM = (
    wire.Entry(b"d", FOLDER, modified=MTIME).encode()
    + wire.Entry(b"d/f", FILE, 5, accessed=1, modified=MTIME).encode() + b"hello"
    + wire.Entry(b"d/empty", FILE).encode()
    + wire.Entry(b"d/l", LINK, target=b"f").encode()
    + wire.Entry(b"d", FOLDER, modified=MTIME).encode()
    + wire.END
)
SAID = [
    (b"d", FOLDER, 0, 0, MTIME, b"", b""), (b"d/f", FILE, 5, 1, MTIME, b"", b"hello"), (b"d/empty", FILE, 0, 0, 0, b"", b""),
    (b"d/l", LINK, 1, 0, 0, b"f", b""), (b"d", FOLDER, 0, 0, MTIME, b"", b""), ("end",),
]


def test_the_header_is_as_the_protocol_text_says() -> None:
    entry = wire.Entry(b"ab", FILE, 7, accessed=2 * 10**9 + 3, modified=4 * 10**9 + 5)
    assert entry.encode() == (
        b"\3\0\0\0" b"\xa4\x81\0\0" b"\7\0\0\0\0\0\0\0" b"\2\0\0\0" b"\3\0\0\0" b"\4\0\0\0" b"\5\0\0\0" b"ab\0")


@given(st.integers(1, len(STREAM)))
def test_entries_survive_any_split(size: int) -> None:
    said, decoder = taken(STREAM, size)
    assert said == SAID
    assert decoder.crc == crc32(STREAM)
    assert not decoder.inside_entry


def test_what_follows_the_end_is_ignored() -> None:
    said, decoder = taken(STREAM + b"\xff" * 100)
    assert said == SAID
    assert decoder.crc == crc32(STREAM)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_the_decoder_is_total_over_any_bytes(data: bytes, size: int) -> None:
    try:
        taken(data, size)
    except wire.Refused as refused:
        assert refused.code in (errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG, errno.EDQUOT, errno.ENOLINK)


@given(st.integers(0, len(STREAM) - 1))
def test_an_early_end_is_seen(cut: int) -> None:
    said, decoder = taken(STREAM[:cut])
    assert ("end",) not in said
    if decoder.inside_entry is False:
        assert cut == 0 or len(said) >= 1


# -- each field: 0, 1, max, max + 1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 100, wire.NAME_MAX])
def test_name_lengths_within_bounds(length: int) -> None:
    name = b"a" * (length - 1) or b"a"
    said, _ = taken(header(length) + (name + b"\0")[:length] + wire.END)
    assert said[0][0] == name


@pytest.mark.parametrize("length", [wire.NAME_MAX + 1, 2**31, 2**32 - 1])
def test_a_huge_name_is_refused_before_it_comes(length: int) -> None:
    refused = refusal(header(length))
    assert (refused.code, refused.name) == (errno.ENAMETOOLONG, b"")


def test_name_length_zero_is_the_end() -> None:
    assert taken(header(0, 5, 7))[0] == [("end",)]


@pytest.mark.parametrize("size", [0, 1, wire.NAME_MAX])
def test_link_lengths_within_bounds(size: int) -> None:
    said, _ = taken(header(4, LINK, size) + b"d/l\0" + b"t" * size + wire.END)
    assert said[0][5] == b"t" * size


@pytest.mark.parametrize("size", [wire.NAME_MAX + 1, 2**64 - 1])
def test_a_huge_link_is_refused_before_it_comes(size: int) -> None:
    assert refusal(header(4, LINK, size) + b"d/l\0").code == errno.ENAMETOOLONG


@pytest.mark.parametrize(("size", "fits"), [(0, True), (1, True), (2**63 - 1, True), (2**63, False), (2**64 - 1, False)])
def test_file_lengths(size: int, fits: bool) -> None:
    data = header(2, FILE, size) + b"a\0"
    if fits:
        assert taken(data)[0][0][2] == size
    else:
        assert refusal(data).code == errno.EDQUOT


@pytest.mark.parametrize("field", [1, 3])
def test_nanoseconds(field: int) -> None:
    times = [0, 0, 0, 0]
    times[field] = 999_999_999
    taken(header(2, times=(times[0], times[1], times[2], times[3])) + b"a\0")
    times[field] += 1
    assert refusal(header(2, times=(times[0], times[1], times[2], times[3])) + b"a\0").code == errno.EINVAL


@pytest.mark.parametrize("kind", [0, 0o010000, 0o020000, 0o060000, 0o140000, 0o150000, 0o170000])
def test_devices_pipes_sockets_and_unknown_types_are_refused(kind: int) -> None:
    assert refusal(header(2, kind | 0o644) + b"a\0").code == errno.EINVAL


def test_a_folder_has_no_content() -> None:
    assert refusal(header(2, FOLDER, 1) + b"a\0").code == errno.EINVAL


def test_times_outside_the_field_become_the_nearest() -> None:
    for time, seconds in ((-1, 0), (2**32 * 10**9, 2**32 - 1)):
        assert wire.HEADER.unpack_from(wire.Entry(b"a", FILE, modified=time).encode())[5] == seconds


def test_qsb_009_a_name_is_sent_with_one_nul_and_nothing_else() -> None:
    assert wire.Entry(b"abc", FILE).encode()[wire.HEADER.size:] == b"abc\0"


# -- names ---------------------------------------------------------------------------------------------------------------

GOOD = [b"a", b"a/b", b"a b", b"...", b".hidden", b"a/..b", b"-rf", b"~", b'"', *(text.encode() for text in (
    "é", "漢字", "Ωμέγα", "Привет", "한글", "€5"))]
BAD = [b"", b"/", b"/etc/passwd", b".", b"..", b"../a", b"a/../b", b"a/..", b"a/.", b"./a", b"a//b", b"a/", b"a\0b"]
UNSAFE = [b"a\nb", b"\x1b[2J", b"\x7f", b"\xff", b"\xc3", b"\xed\xa0\x80", b"a/\x01/b", *(text.encode() for text in (
    "\u202eexe", "\u200b", "\u00a0", "😀", "שלום", "عربي", "e\u0301", "\ue000", "\ufdd0", "\u2028"))]


@pytest.mark.parametrize("path", GOOD)
def test_good_names(path: bytes) -> None:
    wire.check_path(path)
    wire.check_path(path, all_names=True)


@pytest.mark.parametrize("path", BAD)
@pytest.mark.parametrize("all_names", [False, True])
def test_paths_that_lead_elsewhere(path: bytes, all_names: bool) -> None:
    with pytest.raises(wire.Refused) as caught:
        wire.check_path(path, all_names=all_names)
    assert (caught.value.code, caught.value.name) == (errno.EILSEQ, path)


@pytest.mark.parametrize("path", UNSAFE)
def test_names_unfit_to_be_shown_need_allow_all_names(path: bytes) -> None:
    with pytest.raises(wire.Refused) as caught:
        wire.check_path(path)
    assert caught.value.code == errno.EILSEQ
    wire.check_path(path, all_names=True)


@given(st.binary(max_size=60))
def test_a_path_that_passes_stays_below(path: bytes) -> None:
    try:
        wire.check_path(path, all_names=True)
    except wire.Refused:
        return
    assert not path.startswith(b"/")
    assert not {b"", b".", b".."} & set(path.split(b"/"))


def test_the_table_agrees_with_the_interpreters_categories() -> None:
    """The table is of a newer Unicode than this Python may know; what both know must agree in category and direction."""
    categories = {"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Pd", "Ps", "Pe", "Pc", "Po", "Sm", "Sc", "Pi", "Pf"}
    directions = {"L", "ON", "WS", "EN", "ET", "ES", "CS"}
    for code_point in range(0x80, 0x110000):
        character = chr(code_point)
        category = unicodedata.category(character)
        if displayable(code_point) and category != "Cn":
            assert category in categories, hex(code_point)
            assert unicodedata.bidirectional(character) in directions, hex(code_point)


def test_no_surrogate_no_private_no_last_code_point() -> None:
    assert not any(map(displayable, [0x80, 0x9F, 0xA0, 0xAD, 0xD800, 0xDFFF, 0xE000, 0xF8FF, 0xFFFE, 0xFFFF, 0xF0000, 0x10FFFF]))


# -- links ---------------------------------------------------------------------------------------------------------------

LINKS_IN = [(b"d/l", b"f"), (b"d/l", b"a/b"), (b"d/l", b"./f"), (b"d/l", b"a//b"), (b"d/l", b"a/"), (b"d/l", b""), (b"d/l", b"."),
            (b"d/e/l", b"../f"), (b"d/e/l", b".././f"), (b"d/e/l", b"./../f"), (b"d/e/l", b".."), (b"a/b/c/d", b"../../x")]
LINKS_OUT = [(b"l", b"f"), (b"d/l", b"/etc/passwd"), (b"d/l", b"/"), (b"d/l", b".."), (b"d/l", b"../f"), (b"d/e/l", b"../../f"),
             (b"d/e/l", b"a/../f"), (b"d/e/l", b"../a/.."), (b"a/b/c/d", b"../../../x"), (b"d/e/l", b"a/../../..")]


@pytest.mark.parametrize(("path", "target"), LINKS_IN)
def test_links_that_stay(path: bytes, target: bytes) -> None:
    wire.check_link(path, target)


@pytest.mark.parametrize(("path", "target"), LINKS_OUT)
def test_links_that_lead_out(path: bytes, target: bytes) -> None:
    with pytest.raises(wire.Refused) as caught:
        wire.check_link(path, target)
    assert (caught.value.code, caught.value.name) == (errno.ENOLINK, target)
    wire.check_link(path, target, any_target=True)


@pytest.mark.parametrize("target", [b"\x1b", "\u202e".encode(), b"\xff"])
def test_a_links_text_is_shown_too(target: bytes) -> None:
    with pytest.raises(wire.Refused) as caught:
        wire.check_link(b"d/l", target)
    assert caught.value.code == errno.EILSEQ
    wire.check_link(b"d/l", target, all_names=True)
    with pytest.raises(wire.Refused):
        wire.check_link(b"d/l", b"a\0b", all_names=True)


PART = st.sampled_from([b"..", b".", b"", b"a", b"b"])


@given(st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=4), st.lists(PART, max_size=6))
def test_a_link_that_passes_stays_in_its_top_folder(path: list[bytes], target: list[bytes]) -> None:
    try:
        wire.check_link(b"/".join(path), b"/".join(target))
    except wire.Refused:
        return
    place = path[:-1]
    for part in target:
        if part == b"..":
            place.pop()
        elif part not in (b"", b"."):
            place.append(part)
        assert place[:1] == path[:1]


# -- the answer ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60))
def test_an_answer_survives_any_split(cut: int) -> None:
    data = wire.Result(errno.EEXIST, 0xDEADBEEF, b"some/name").encode()
    assert wire.decode_result(data[:min(cut, len(data) - 1)], ended=False) is None
    result = wire.decode_result(data, ended=False)
    assert result is not None
    assert (result.code, result.crc, result.name) == (errno.EEXIST, 0xDEADBEEF, b"some/name")


@given(st.binary(max_size=100), st.booleans())
def test_answers_are_total_over_any_bytes(data: bytes, ended: bool) -> None:
    result = wire.decode_result(data, ended=ended)
    assert result is None or len(result.name) <= wire.NAME_MAX + 1
    assert result is not None or not ended or len(data) < wire.RESULT.size


def test_very_old_receivers_send_no_name() -> None:
    data = wire.Result(0, 7).encode()[:wire.RESULT.size]
    assert wire.decode_result(data, ended=False) is None
    result = wire.decode_result(data, ended=True)
    assert result is not None
    assert (result.crc, result.name) == (7, b"")


@pytest.mark.parametrize("length", [0, 1, wire.NAME_MAX, wire.NAME_MAX + 1, wire.NAME_MAX + 2, 2**32 - 1])
def test_the_answers_name_is_bounded(length: int) -> None:
    data = wire.RESULT.pack(0, 0, 0) + wire.NAME_LENGTH.pack(length) + b"n" * (wire.NAME_MAX + 100)
    result = wire.decode_result(data, ended=False)
    assert result is not None
    assert len(result.name) == min(length, wire.NAME_MAX + 1)
    assert wire.ANSWER_MAX == wire.RESULT.size + wire.NAME_LENGTH.size + wire.NAME_MAX + 1


def test_qsb_087_the_answers_name_is_harmless_when_shown() -> None:
    assert wire.printable(b'\x1b[2J"\xff\n~ok') == "_[2J___~ok"
