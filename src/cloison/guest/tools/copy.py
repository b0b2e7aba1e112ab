"""qvm-copy, qvm-move, qvm-copy-to-vm, qvm-move-to-vm: files to another qube's ~/QubesIncoming.

The tree is looked through first: for its size, for names that only service argument `allow-all-names` lets through (the other
side's policy decides about that), and for what the receiver would refuse anyway.
"""
from __future__ import annotations

import os
import sys

from cloison.guest.tools.call import LOST, Outgoing, fail, write_all
from cloison.qrexec.filecopy import progress
from cloison.qrexec.filecopy.agent import send
from cloison.qrexec.filecopy.pack import CopyFailed, Survey, quote

TYPE_CHECKING = False                    # what types need costs a start under emulation
if TYPE_CHECKING:
    from collections.abc import Sequence

_DEFAULT = "@default"
_HELP = """\
usage: {prog} [--without-progress] [--ignore-symlinks] {target}FILE [FILE ...]
Options:
    --ignore-symlinks      leave symbolic links out
    --no-ignore-symlinks   copy them (default)
    --without-progress     show no progress
    --with-progress        show progress (default)
    -h, --help             show this message and exit
    --                     what follows is no option

Of options that contradict each other the last one counts.

{Verb} FILE, a folder with all below it, to ~/QubesIncoming/THIS-QUBE/ in the destination qube,
which the host asks for unless its policy knows it.
"""


def main(argv: Sequence[str]) -> int:
    """The program that `argv[0]` names."""
    prog = os.path.basename(argv[0])
    if prog not in ("qvm-copy", "qvm-move", "qvm-copy-to-vm", "qvm-move-to-vm"):
        fail("qvm-copy", f"called as {prog!r}, which is none of its names")
    move, named = prog.startswith("qvm-move"), prog.endswith("-to-vm")
    show, ignore_links, words = True, False, list(argv[1:])
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        if word in ("--with-progress", "--without-progress"):
            show = word == "--with-progress"
        elif word in ("--ignore-symlinks", "--no-ignore-symlinks"):
            ignore_links = word == "--ignore-symlinks"
        else:
            return _usage(prog, 0 if word in ("-h", "--help") else 1)
    if len(words) < 1 + named:
        return _usage(prog, 1)
    target = words.pop(0) if named else _DEFAULT
    if named:
        print(f"{prog}: the host may ask for the destination again; {prog.removesuffix('-to-vm')} needs none", file=sys.stderr)
    return copy(prog, target, [os.fsencode(word) for word in words], show=show, ignore_links=ignore_links, move=move)


def _usage(prog: str, status: int) -> int:
    move = prog.startswith("qvm-move")
    text = _HELP.format(prog=prog, target="DESTINATION " if prog.endswith("-to-vm") else "", Verb="Move" if move else "Copy")
    try:
        write_all(1, text.encode() + b"\n")
    except OSError as error:
        fail(prog, f"the help can't be written: {error.strerror}")
    return status


def copy(prog: str, target: str, files: Sequence[bytes], *, show: bool, ignore_links: bool, move: bool) -> int:
    """The whole job: the exit status."""
    survey = Survey()
    try:
        for file in files:
            survey.look(file, ignore_links=ignore_links)
    except CopyFailed as error:
        fail(prog, f"error: {error}" + (f"\n{prog}: hint: {error.hint}" if error.hint else ""))
    service = "qubes.Filecopy+allow-all-names" if survey.unsafe else "qubes.Filecopy"
    for name in survey.unsafe:
        print(f"{prog}: {quote(name)} is not safe to show: asking for {service}", file=sys.stderr)
    for name in survey.skipped[:Survey.SHOWN]:
        print(f"{prog}: {quote(name)} is no file, folder or link: left out", file=sys.stderr)
    shown = progress.Console(survey.size) if show else progress.Silent()
    try:
        call = Outgoing(target, service)
    except OSError as error:
        fail(prog, f"error: can't start a call: {error.strerror}")
    sent = send(call.socket.fileno(), call.socket.fileno(), files, shown, ignore_links=ignore_links, prog=prog)
    status = call.wait()
    if sent and status == LOST:
        print(f"{prog}: error: the other qube or its service ended before all was there", file=sys.stderr)
    if sent or status:
        return status or sent
    return _remove(prog, files, survey) if move else 0


def _remove(prog: str, files: Sequence[bytes], survey: Survey) -> int:
    """The originals go when all of them are there."""
    if survey.skipped:
        fail(prog, "error: the originals stay, since not all could be copied")
    os.execvp(b"rm", [b"rm", b"-rf", b"--", *(file.rstrip(b"/") or b"/" for file in files)])  # noqa: S606 a list, no shell
