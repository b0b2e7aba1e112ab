"""Menu entries of a qube: bounded, and only what menus need."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import appmenus

GOOD = b"a.desktop:Name=Editor\na.desktop:Exec=qubes-desktop-run a.desktop\na.desktop:Categories=Utility;Evil;TextEditor;\n\n"


def test_an_entry_is_taken() -> None:
    assert appmenus.parse(GOOD) == {
        "a.desktop": {"Name": "Editor", "Exec": "qubes-desktop-run a.desktop", "Categories": "Utility;TextEditor;"}}
    assert appmenus.template({"Name": "Editor", "Exec": "x"}) == (
        b"[Desktop Entry]\nVersion=1.0\nType=Application\nExec=x\nName=Editor\n")


@pytest.mark.parametrize("line", [
    b"a.desktop:Name=\x1b[2J", b"a.desktop:Exec=sh -c 'x'; `reboot`", b"a.desktop:Icon=a b", b"../a.desktop:Icon=x",
    b"/a.desktop:Icon=x",
    b"a.desktop:OnlyShowIn=X", b"a.desktop", b"a.desktop:Icon", b".a.desktop:Icon=x", b"a.txt:Icon=x", "a.desktop:Name=é".encode(),
    b"a.desktop:Name[de]=x", b"a.desktop:Name=second"])
def test_what_has_not_its_form_is_dropped(line: bytes) -> None:
    assert appmenus.parse(GOOD + line + b"\n") == appmenus.parse(GOOD)


def test_an_entry_without_name_or_program_is_none() -> None:
    assert appmenus.parse(b"a.desktop:Name=x\nb.desktop:Exec=x\n") == {}


def test_bounds() -> None:
    line = b"a.desktop:Comment="
    assert appmenus.parse(line.ljust(appmenus.LINE_MAX, b"x")) == {}
    for untrusted in (line.ljust(appmenus.LINE_MAX + 1, b"x"), b"\n" * (appmenus.LINES_MAX + 1), bytes(appmenus.SIZE_MAX + 1),
                      b"".join(b"a%d.desktop:Icon=x\n" % number for number in range(appmenus.ENTRIES_MAX + 1))):
        with pytest.raises(PeerError):
            appmenus.parse(untrusted)
    appmenus.parse(b"\n" * (appmenus.LINES_MAX - 1))
    appmenus.parse(b"".join(b"a%d.desktop:Icon=x\n" % number for number in range(appmenus.ENTRIES_MAX)))


@given(st.binary(max_size=300))
def test_total_over_any_bytes(untrusted: bytes) -> None:
    for name, keys in appmenus.parse(untrusted).items():
        assert "/" not in name
        assert all(value.isprintable() for value in keys.values())
