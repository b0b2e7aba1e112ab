"""qubes.Log: lines of another qube into this one's system log, each answered by `OK`."""
from __future__ import annotations

import os
import sys
import syslog
from collections.abc import Callable, Sequence

LINE_MAX = 4096                          # bytes; more is cut
_CUT = "..."


def main(argv: Sequence[str]) -> int:
    """The service."""
    source = os.environ.get("QREXEC_REMOTE_DOMAIN", "")
    syslog.openlog(f"qubes.Log-{printable(source.encode())}", syslog.LOG_PID, syslog.LOG_USER)
    try:
        serve(0, 1, syslog.syslog)
    except BrokenPipeError:
        print("qubes.Log: the caller reads no more", file=sys.stderr)
        return 1
    return 0


def serve(source: int, sink: int, write: Callable[[int, str], None]) -> None:
    """`write` gets priority and text of each line. A line of any length takes no more memory than LINE_MAX."""
    os.write(sink, b"OK\n")
    line, cut = b"", False
    while piece := os.read(source, LINE_MAX):
        *whole, rest = piece.split(b"\n")
        for part in whole:
            line += part
            write(*parse(line[:LINE_MAX], cut=cut or len(line) > LINE_MAX))
            os.write(sink, b"OK\n")
            line, cut = b"", False
        line += rest
        cut = cut or len(line) > LINE_MAX
        line = line[:LINE_MAX]
    if line:
        write(*parse(line, cut=cut))
        os.write(sink, b"OK\n")


def parse(untrusted: bytes, *, cut: bool = False) -> tuple[int, str]:
    """Severity (0 to 7, from a prefix `<N>`) and harmless text."""
    severity = syslog.LOG_INFO
    number, found, rest = untrusted[1:].partition(b">")
    if untrusted[:1] == b"<" and found and len(number) <= 3 and number.isdigit():
        severity, untrusted = int(number) % 8, rest
    return severity, printable(untrusted) + (_CUT if cut else "")


def printable(untrusted: bytes) -> str:
    """What a person can read; all else is `_` (QSB-087)."""
    text = untrusted.decode("utf-8", "replace")
    return "".join(character if character.isprintable() and character != "\ufffd" else "_" for character in text)
