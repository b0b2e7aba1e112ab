"""The program qfile-agent: sends files to a qubes.Filecopy at the other end of its standard streams.

    qfile-agent [--ignore-symlinks] [--] FILE [FILE ...]

Progress goes where PROGRESS_TYPE says: console (standard error) or gui (a number a line to descriptor SAVED_FD_1).
"""
from __future__ import annotations

import os
import sys

from cloison.qrexec.filecopy import progress
from cloison.qrexec.filecopy.pack import CopyFailed, PeerGone, Sender, send_all

TYPE_CHECKING = False                    # what types need costs a start under emulation
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """The program; `argv` has its name first. Exit status 1 if the copy is not whole."""
    ignore_links, words = False, list(argv[1:])
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        if word != "--ignore-symlinks":
            print(f"qfile-agent: unknown option {word!r}", file=sys.stderr)
            return 2
        ignore_links = True
    return send(1, 0, [os.fsencode(word) for word in words], progress.from_environment(), ignore_links=ignore_links)


def send(output: int, answers: int, arguments: Sequence[bytes], shown: progress.Progress, *, ignore_links: bool = False,
         prog: str = "qfile-agent") -> int:
    """Send, and tell a failure; the exit status. A receiver that hung up has been told of by what carried the call."""
    try:
        sender = Sender(output, answers, shown)
        send_all(sender, arguments, ignore_links=ignore_links)
        shown.done(sender.sent)
        return 0
    except PeerGone:
        return 1
    except CopyFailed as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        if error.hint:
            print(f"{prog}: hint: {error.hint}", file=sys.stderr)
        return 1
