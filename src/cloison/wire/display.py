"""Which characters of a foreign text a person may be shown as they are.

A text that comes out of a qube must not hide, reorder or imitate what stands around it, nor bring a font's shaping engine
hostile input. So only letters, digits and punctuation of left-to-right scripts that need no shaping pass: Latin, Greek,
Cyrillic, Han, Hangul, kana and what is common to all. This is the set of Qubes OS's libqubes-pure, as far as this Python's
Unicode knows the characters; found by asking that library about every code point.
"""
from __future__ import annotations

import unicodedata
from bisect import bisect_right

_CATEGORIES = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Pd", "Ps", "Pe", "Pc", "Po", "Pi", "Pf", "Sm", "Sc"))
_DIRECTIONS = frozenset(("WS", "ON", "ET", "ES", "CS", "EN", "L"))
# First and last code point of the scripts; categories and directions are asked for beside it.
_SCRIPTS = (
    (0x20, 0x3E1), (0x3F0, 0x52F), (0x60C, 0x60C), (0x964, 0x965), (0xE3F, 0xE3F), (0x10FB, 0x10FB), (0x1100, 0x11FF),
    (0x16EB, 0x16ED), (0x1735, 0x1736), (0x1802, 0x1803), (0x1805, 0x1805), (0x1C80, 0x1C88), (0x1CD3, 0x2B4C),
    (0x2C60, 0x2C7F), (0x2E00, 0x9FFF), (0xA640, 0xA69D), (0xA717, 0xA7FF), (0xA830, 0xA838), (0xA92E, 0xA92E),
    (0xA960, 0xA97C), (0xA9CF, 0xA9CF), (0xAB30, 0xAB69), (0xAC00, 0xFB06), (0xFD3E, 0xFFEC), (0x10100, 0x1018B),
    (0x102E1, 0x102FB), (0x10780, 0x107BA), (0x16FE2, 0x16FE3), (0x1AFF0, 0x1B167), (0x1D2E0, 0x1D7FF), (0x1DF00, 0x1DF1E),
    (0x1F100, 0x3134A),
)
_FIRSTS = [first for first, _ in _SCRIPTS]


def is_safe(character: str) -> bool:
    """Whether one character may be shown. Tabs, newlines and all other controls may not: the caller knows where they can."""
    if " " <= character <= "~":
        return True
    code = ord(character)
    index = bisect_right(_FIRSTS, code) - 1
    if index < 0 or code > _SCRIPTS[index][1]:
        return False
    return unicodedata.category(character) in _CATEGORIES and unicodedata.bidirectional(character) in _DIRECTIONS


def safe(untrusted: str, *, also: str = "") -> str:
    """The text with `_` for each character that may not be shown and is not in `also`."""
    return "".join(character if character in also or is_safe(character) else "_" for character in untrusted)
