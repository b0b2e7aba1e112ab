"""Names and addresses that come with qubes.OpenInVM and qubes.OpenURL."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import opening


@pytest.mark.parametrize(("name", "view_only"), [(b"a.pdf", False), (b"a.pdf", True), (b"x" * 300 + b".pdf", False)])
def test_a_name_goes_and_comes(name: bytes, view_only: bool) -> None:
    field = opening.encode_name(name, view_only=view_only)
    assert len(field) == opening.NAME_FIELD
    decoded, viewed = opening.decode_name(field)
    assert decoded.endswith(".pdf")
    assert viewed == view_only


def test_qsb_009_the_field_is_zero_behind_the_name() -> None:
    assert opening.encode_name(b"a", view_only=False) == b"a" + bytes(255)
    assert opening.encode_name(b"y" * 300, view_only=True)[-1:] == b"\0"


@pytest.mark.parametrize(("untrusted", "safe"), [
    (b"a b;c$(d)", "a_b_c__d_"), (b"..", "_."), (b".", "_"), (b"-rf", "_rf"), (b"\xff\n", "__"), (b".bashrc", ".bashrc"),
    (b"a+b@c", "a+b@c")])
def test_unsafe_characters_are_replaced(untrusted: bytes, safe: str) -> None:
    assert opening.decode_name(untrusted.ljust(256, b"\0")) == (safe, False)


@pytest.mark.parametrize("untrusted", [
    b"", bytes(256), b"a" * 256, b"a" * 255, b"a/b".ljust(256, b"\0"), b"view-only-".ljust(256, b"\0"), b"a" * 255 + b"\0\0"])
def test_fields_that_are_refused(untrusted: bytes) -> None:
    with pytest.raises(PeerError):
        opening.decode_name(untrusted)


@given(st.binary(max_size=255))
def test_a_decoded_name_is_one_part_of_a_path(untrusted: bytes) -> None:
    try:
        name, _ = opening.decode_name(untrusted.ljust(256, b"\0"))
    except PeerError:
        return
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert name.isascii()
    assert name.isprintable()


@pytest.mark.parametrize("line", [
    b"http://".ljust(opening.ADDRESS_MAX, b"a"), b"http://a.b/c", b"https://a/?x=1&y=%20\nrest is ignored", b"ftp://a"])
def test_addresses(line: bytes) -> None:
    assert opening.decode_address(line).encode() == line.split(b"\n")[0]


@pytest.mark.parametrize("line", [
    b"", b"file:///etc/passwd", b"javascript:alert(1)", b"/etc/passwd", b"--help", b"http://a b", b"HTTP://a",
    b"http://".ljust(opening.ADDRESS_MAX + 1, b"a"), b"http://\x1b", "http://é".encode(), b"http://" + b"a" * opening.ADDRESS_MAX, b"xhttp://a"])
def test_what_is_no_address(line: bytes) -> None:
    with pytest.raises(PeerError):
        opening.decode_address(line)


@pytest.mark.parametrize(("text", "found"), [
    ("http://a", True), ("x+1://a", True), ("/a/b", False), ("://a", False), ("1a://b", False), ("a://b\nc", False)])
def test_what_looks_like_an_address(text: str, found: bool) -> None:
    assert opening.is_address(text) == found
