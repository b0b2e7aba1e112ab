"""qvm-copy-to-vm and qvm-move-to-vm: files of the host to a qube's ~/QubesIncoming/dom0.

A child process walks the files and writes the stream; this one carries the call.
"""
from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cloison.cli import progress, tool
from cloison.client import qrexec
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, list_qubes
from cloison.errors import CloisonError, advice
from cloison.qrexec.filecopy.agent import send
from cloison.qrexec.filecopy.pack import CopyFailed, Survey, quote
from cloison.qrexec.filecopy.progress import Console, Silent

COPY, MOVE = "qvm-copy-to-vm", "qvm-move-to-vm"
_PIPE = 1 << 20                          # bytes on the way to the child and back


class NotCopied(CloisonError):
    """What was asked for can't be copied."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(sentence)
        self.hint = hint


class Pipes(NamedTuple):
    """To the service and from it; each a reading and a writing end."""

    to_read: int
    to_write: int
    from_read: int
    from_write: int


def parser(prog: str = COPY) -> tool.Parser:
    verb = "Move" if prog == MOVE else "Copy"
    result = tool.Parser(
        prog=prog, description=f"{verb} files and folders to ~/QubesIncoming/dom0 in a qube; start the qube if it does not run.",
        examples=[(f"{prog} work report.pdf", "one file"), (f"{prog} work *.jpg album", "files, and a folder with all below it")])
    add = result.add_argument
    add("--without-progress", action="store_true", help="show no progress")
    add("--ignore-symlinks", action="store_true", help="leave symbolic links out")
    add("name", metavar="VMNAME", help="the qube")
    add("files", metavar="FILE", nargs="+", help="what to send")
    return result


def run(prog: str, args: argparse.Namespace, connection: Connection) -> int:
    name = tool.qube_name(args.name)
    files = [os.fsencode(file) for file in args.files]
    survey = _survey(prog, files, ignore_links=args.ignore_symlinks)
    _make_ready(connection, name)
    shown = Silent() if args.without_progress or args.quiet else Console(survey.size)
    service = "qubes.Filecopy+allow-all-names" if survey.unsafe else "qubes.Filecopy+"
    pipes = Pipes(*_pipe(), *_pipe())
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(pipes.to_read)
        os.close(pipes.from_write)
        status = 1
        try:
            status = send(pipes.to_write, pipes.from_read, files, shown, ignore_links=args.ignore_symlinks, prog=prog)
        finally:
            os._exit(status)
    os.close(pipes.to_write)
    os.close(pipes.from_read)
    ends = qrexec.Ends(stdin=pipes.to_read, stdout=pipes.from_write, stderr=2, clean_stderr=True)
    try:
        called = qrexec.run(connection.paths, name, f"DEFAULT:QUBESRPC {service} {DOM0}", ends)
    finally:
        os.close(pipes.to_read)
        os.close(pipes.from_write)
        sent = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if called:
        tool.fail(prog, f"qubes.Filecopy ended in {name} with status {called}")
    if sent or called:
        return 1
    return _remove(prog, files, survey) if prog == MOVE else 0


def _survey(prog: str, files: Sequence[bytes], *, ignore_links: bool) -> Survey:
    survey = Survey()
    try:
        for file in files:
            survey.look(file, ignore_links=ignore_links)
    except CopyFailed as error:
        raise NotCopied(str(error), advice(error)) from error
    for path in survey.skipped[:Survey.SHOWN]:
        print(f"{prog}: {tool.printable(quote(path))} is no file, folder or link: left out", file=sys.stderr)
    return survey


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE)
    except PermissionError:              # this user has many of them already
        pass
    return reader, writer


def _make_ready(connection: Connection, name: str) -> None:
    qube = list_qubes(connection, name)[name]
    if qube.klass == "RemoteVM":
        raise tool.NoMachine(name)
    if qube.state != "Running":
        call = connection.begin(name, "admin.vm.Unpause" if qube.state == "Paused" else "admin.vm.Start")
        progress.wait(call, f"starting {name}", klass=qube.klass)
        call.result()


def _remove(prog: str, files: Sequence[bytes], survey: Survey) -> int:
    """The originals go when all of them are there."""
    if survey.skipped:
        tool.fail(prog, "the originals stay, since not all could be copied")
        return 1
    for file in files:
        path = file.rstrip(b"/")
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(COPY), lambda args, connection: run(COPY, args, connection), argv)


def main_move(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(MOVE), lambda args, connection: run(MOVE, args, connection), argv)
