"""Labels: the colour of trust. Eight are built in; more may be added."""
from __future__ import annotations

import re
from dataclasses import dataclass

from cloison.errors import BadLabel, BadLabelValue

BUILT_IN = 8
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COLOUR = re.compile(r"0x[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Label:
    index: int
    colour: str         # 0xRRGGBB
    name: str

    @property
    def icon(self) -> str:
        return f"appvm-{self.name}"


DEFAULTS = tuple(
    Label(index, colour, name)
    for index, (name, colour) in enumerate(
        (
            ("red", "0xcc0000"), ("orange", "0xf57900"), ("yellow", "0xedd400"), ("green", "0x73d216"),
            ("gray", "0x555555"), ("blue", "0x3465a4"), ("purple", "0x75507b"), ("black", "0x000000"),
        ),
        start=1,
    )
)


def check_name(untrusted: str, *, new: bool) -> str:
    """Raises BadLabel. A new label's name must not be a number, which would mean an index."""
    if not _NAME.fullmatch(untrusted) or (new and untrusted.isdigit()):
        raise BadLabel(f"{untrusted[:60]!r} can't be a label's name: use letters, digits, '_', '.', '-'")
    return untrusted


def check_colour(untrusted: str) -> str:
    """Raises BadLabelValue."""
    text = untrusted.strip()
    if not _COLOUR.fullmatch(text):
        raise BadLabelValue(f"{untrusted[:60]!r} is not a colour: use 0x and six hexadecimal digits")
    return text.lower()


def find(labels: dict[str, Label], text: str) -> Label | None:
    """By name or index."""
    if text in labels:
        return labels[text]
    if not text.isdecimal() or not text.isascii() or len(text) > 9:
        return None
    index = int(text)
    return next((label for label in labels.values() if label.index == index), None)
