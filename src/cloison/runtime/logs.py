"""What a daemon writes to its log: a record a line, of printable ASCII, whatever text of a qube or a program has got into it."""
from __future__ import annotations

import logging

_CONTINUED = "\n    "     # further lines of a record, as those of a traceback, can't be taken for records
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F) if code != 0x0A}


def harmless(untrusted: str) -> str:
    """The text with escapes for all that could drive a terminal, and its further lines set in."""
    return _CONTINUED.join(map(_escaped, untrusted.rstrip("\n").split("\n")))


def _escaped(line: str) -> str:
    return line.translate(_CONTROLS).encode("ascii", "backslashreplace").decode("ascii")


class _Formatter(logging.Formatter):
    """The one place where every record passes."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Of a whole program: from now on its records go there. Does nothing in a program that has set its log up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
