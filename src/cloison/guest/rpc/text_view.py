"""What `qubes-open` shows where there are no windows: the text of a file, on standard error, which goes to the caller's terminal.

Standard output is what the caller's file would become (reference/qrexec.md 20.4), so nothing is written there. What is no text, and
an address, get a sentence that says what is missing in which qube.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cloison.wire.displayable import displayable

SHOWN = 1 << 16                         # bytes of a file
PROBLEM = 3                             # xdg-open's status for "a program is missing"


def main(argv: Sequence[str]) -> int:
    """`text-view FILE|ADDRESS`."""
    what = argv[1] if len(argv) == 2 else ""
    here = f"qube {os.uname().nodename}"
    if not os.path.isfile(what):
        return _missing(f"an address can't be opened in {here}: it has no windows yet, and no browser in them")
    with open(what, "rb") as file:
        data = file.read(SHOWN)
    size, name = os.path.getsize(what), os.path.basename(what)
    text = as_text(data, whole=size <= SHOWN)
    if text is None:
        return _missing(f"{name} is no text and can't be shown in {here}: it has no windows yet, and no program for it. "
                        "Copy it there, and use a program of its template: qvm-copy")
    _say(f"-- {name}, {size} bytes, shown by {here}:\n{text}" + ("" if text.endswith("\n") or not text else "\n"))
    _say(f"-- the rest, {size - SHOWN} bytes, is not shown\n" if size > SHOWN else "-- end\n")
    return 0


def as_text(data: bytes, *, whole: bool) -> str | None:
    """With every character that could drive a terminal or hide text as `_`; None if it is no text. `whole`: nothing was cut off."""
    if b"\0" in data:
        return None
    for cut in (0,) if whole else (0, 1, 2, 3):      # bytes of a last character that was cut
        try:
            text = data[:len(data) - cut].decode("utf-8")
            break
        except UnicodeDecodeError:
            continue
    else:
        return None
    return "".join(char if char in "\n\t" or " " <= char <= "~" or (char > "\x7f" and displayable(ord(char))) else "_"
                   for char in text.replace("\r\n", "\n"))


def _missing(sentence: str) -> int:
    _say(sentence + "\n")
    return PROBLEM


def _say(text: str) -> None:
    sys.stderr.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stderr.buffer.flush()
