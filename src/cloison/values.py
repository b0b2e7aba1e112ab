"""Checked value types: a value of such a type has passed its check, whoever sent the text.

Raises `InvalidValue` (a ValueError) with what is wrong in words. Rules: reference/admin-api.md 2.
"""
from __future__ import annotations

import enum
import re

NAME_LENGTH = 31
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VOLUME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_RESERVED = ("Domain-0", "none", "default")


class InvalidValue(ValueError):
    """A text that is not of the wanted kind. `str()` is one sentence for a person."""


class QubeName(str):
    """1 to 31 characters, a letter first, then letters, digits, `_`, `.`, `-`; some words are reserved."""

    __slots__ = ()

    def __new__(cls, text: str) -> QubeName:
        if not 1 <= len(text) <= NAME_LENGTH:
            raise InvalidValue(f"qube name must have 1 to {NAME_LENGTH} characters, not {len(text)}")
        if not _NAME.fullmatch(text):
            raise InvalidValue(f"qube name {text!r} may only hold letters, digits, '_', '.', '-', and must begin with a letter")
        if text in _RESERVED:
            raise InvalidValue(f"qube name {text!r} is reserved")
        if text.endswith("-dm"):
            raise InvalidValue(f"qube name {text!r} may not end in '-dm'")
        return super().__new__(cls, text)


class Uuid(str):
    """36 characters, lower-case hexadecimal with dashes."""

    __slots__ = ()

    def __new__(cls, text: str) -> Uuid:
        if not _UUID.fullmatch(text):
            raise InvalidValue(f"{text[:60]!r} is not a uuid")
        return super().__new__(cls, text)


class VolumeName(str):
    """Name of a volume inside its qube: `root`, `private`, ..."""

    __slots__ = ()

    def __new__(cls, text: str) -> VolumeName:
        if not _VOLUME.fullmatch(text):
            raise InvalidValue(f"volume name {text[:60]!r} may only hold lower-case letters, digits, '_', '-'")
        return super().__new__(cls, text)


class PowerState(enum.StrEnum):
    """Exact words of the Admin API (reference/admin-api.md 14.1)."""

    HALTED = "Halted"
    TRANSIENT = "Transient"
    RUNNING = "Running"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    HALTING = "Halting"
    DYING = "Dying"
    CRASHED = "Crashed"
    NA = "NA"
