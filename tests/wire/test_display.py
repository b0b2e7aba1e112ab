"""Characters a person may be shown. What is shown and what not is what Qubes OS's library says of the same characters."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire.display import is_safe, safe


@pytest.mark.parametrize("text", [
    "plain ASCII ~", "\u00fcml\u00e4ut \u00df \u00f1 \u00a1\u00bf", "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439", "\u6f22\u5b57 \u3072\u3089 \u30ab\u30bf\u30ab\u30ca", "\ud55c\uad6d\uc5b4",
    "\u2013 \u201cquoted\u201d \u2026", "\u20ac \u00a3 \u2211",
])
def test_these_are_shown(text: str) -> None:
    assert safe(text) == text


@pytest.mark.parametrize("text", [
    *("\x00", "\t", "\n", "\x1b", "\x7f", "\x9b"),             # controls
    *("\u200b", "\u200e", "\u202e", "\u2066", "\ufeff", "\u00ad"),     # format characters: they hide and reorder
    *("\u00a0", "\u2003", "\u2028", "\u3000"),                 # spaces that are none
    *("\u0301", "\u20dd", "\ufe0f"),                           # marks that join the character before
    *("\u05d0", "\u0627", "\u0915", "\u0e01", "\u10d0"),       # scripts from right to left, or that need shaping
    *("\U0001f4a9", "\u00a9", "\u00b0", "\u2580"),   # pictures
    *("\ue000", "\ufffe", "\U0010ffff", "\ud800"),             # private, no characters, halves
])
def test_these_are_not(text: str) -> None:
    assert safe(text) == "_"


def test_the_caller_may_allow_more() -> None:
    assert safe("a\tb\nc\rd", also="\t\n") == "a\tb\nc_d"


@given(st.text(max_size=50))
def test_a_safe_text_stays_as_it_is(text: str) -> None:
    once = safe(text)
    assert len(once) == len(text)
    assert safe(once) == once
    assert all(is_safe(character) for character in once)
