"""The log of calls: a JSON object a line, one for each decision (policy daemon) and one for each call's end (wardens).

Many processes append to one file of bounded size (runtime/log_file.py). What a qube sent is escaped by JSON and cut to a length:
neither a terminal nor the next line can be reached by it (QSB-087). Nothing here may fail a call.
"""
from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cloison.runtime.log_file import LogFile
from cloison.runtime.paths import Paths

log = logging.getLogger(__name__)
MAX_SIZE = 4 << 20        # bytes, after which the file becomes `.1`
MAX_TEXT = 256            # characters of one value
_TAIL = 1 << 20           # bytes that a reader takes from the end


def path(paths: Paths) -> str:
    return os.path.join(paths.log, "qrexec.log")


class CallLog:
    """`write` never raises and never waits. Close it."""

    def __init__(self, file: str, max_size: int = MAX_SIZE) -> None:
        self._file = LogFile(file, max_size)
        self._broken = False

    def write(self, **fields: object) -> None:
        """One line; the time is added. Usual keys: source, service, target, requested_target, verdict, rule."""
        entry = {"time": round(time.time(), 3), **{key: _cut(value) for key, value in fields.items()}}
        error = self._file.write(json.dumps(entry).encode("ascii") + b"\n")
        if error is not None and not self._broken:       # said once: how often it happens is up to qubes
            log.error("the call log can't be written: %s", error)
        self._broken = error is not None

    def close(self) -> None:
        self._file.close()


def _cut(value: object) -> object:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return value[:MAX_TEXT] + "..."
    return value


def recent(file: str) -> Iterator[Mapping[str, Any]]:
    """Entries from the newest back, as far as about a megabyte of each of the two files goes. Raises OSError."""
    for name in (file, f"{file}.1"):
        try:
            with open(name, "rb") as stream:
                start = max(0, os.fstat(stream.fileno()).st_size - _TAIL)
                stream.seek(start)
                lines = stream.read(_TAIL).split(b"\n")[1 if start else 0:]
        except FileNotFoundError:
            continue
        yield from _entries(reversed(lines))


def _entries(lines: Iterator[bytes]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:               # a line that a crash cut short, or none
            continue
        if isinstance(entry, dict):
            yield entry
