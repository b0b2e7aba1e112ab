"""Cloison's own settings of a qube: features, like all that Qubes OS 4.4 has no property for, so that its tools show and copy them.

This table is all of them; `docs/features.md` is made from it. Features of Qubes OS itself: reference/admin-api.md 11.
"""
from __future__ import annotations

import enum
from typing import NamedTuple

from cloison.errors import BadValue

MOST_COUNT = 7             # digits of a number


class Kind(enum.Enum):
    """What a feature's value may be; the words are those of the documentation."""

    COUNT = "a number"
    SWITCH = "on: any text; off: empty"
    TEXT = "text"


class OwnFeature(NamedTuple):
    """`holders`: where it is looked for, the first that has it counts. `set_by`: who sets it. `doc`: what it does, a sentence."""

    name: str
    kind: Kind
    holders: str
    default: str
    set_by: str
    doc: str


CALL_DISPOSABLES = "call-disposables-max"
CALL_PROGRAMS = "call-programs-max"
CALL_PROGRAMS_EACH = "call-programs-each-max"
AGENT = "cloison-agent"
_EVERYWHERE = "the qube, its template, dom0"

OWN_FEATURES = (
    OwnFeature(CALL_DISPOSABLES, Kind.COUNT, _EVERYWHERE, "16, or as many as take half of the host's memory at 512 MiB each", "you",
               "How many disposables the calls of a qube may have at once, 0 to 256. Read when the qube starts."),
    OwnFeature(CALL_PROGRAMS, Kind.COUNT, _EVERYWHERE, "16", "you",
               "How many programs of the host the calls of a qube may have at once, 0 to 256. Read when the qube starts."),
    OwnFeature(CALL_PROGRAMS_EACH, Kind.COUNT, _EVERYWHERE, "4", "you",
               "How many of these may be of one service, 0 to 256. Read when the qube starts."),
    OwnFeature("service.fresh-daemons", Kind.SWITCH, "the qube", "on with KVM, off without", "you, by `qvm-service`",
               "systemd, journald, udevd and logind are executed anew one to two minutes after the start, so that clones of one "
               "snapshot no longer share their addresses and canaries. Without KVM it costs 10 s of a processor and 190 MB."),
    OwnFeature(AGENT, Kind.TEXT, "the template", "none: built by an older Cloison", "building the template",
               "The digest of what ships in qubes, as it was built into the template. `cloison doctor` compares it."),
    OwnFeature("cloison-include", Kind.TEXT, "the template", "none", "building with `--include`",
               "Packages that were asked for, with commas; building the template again keeps them."),
)
_COUNTS = frozenset(feature.name for feature in OWN_FEATURES if feature.kind is Kind.COUNT)


def check(name: str, value: str) -> None:
    """Raises BadValue for a value that one of our own features can't have. Other features may have any."""
    if name in _COUNTS and not (value.isascii() and value.isdecimal() and len(value) <= MOST_COUNT):
        raise BadValue(f"feature {name} takes a number")


def document() -> str:
    """docs/features.md."""
    rows = [f"| `{each.name}` | {each.kind.value} | {each.holders} | {each.default} | {each.set_by} | {each.doc} |"
            for each in OWN_FEATURES]
    return "\n".join((*_HEAD, *rows, ""))


_HEAD = (
    "# Cloison's own features", "",
    "Made from `src/cloison/model/own_features.py`: `pytest tests/model/test_own_features.py --regenerate`.", "",
    "What Qubes OS 4.4 has no property for is a feature: `qvm-features QUBE NAME VALUE`, `qvm-features --unset QUBE NAME`.",
    "Where several may hold one, the first that has it counts.", "",
    "| feature | value | held by | without it | set by | what it does |", "|---|---|---|---|---|---|",
)
