"""qvm-notes: what a person wrote down about a qube."""
from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.errors import CloisonError

PROG = "qvm-notes"
CANCELLED = 2


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="1", description="Notes about a qube, up to 256 KB of text.", examples=[
        ("qvm-notes work", "edit them in $VISUAL or $EDITOR"),
        ("qvm-notes --print work", "show them"),
        ("qvm-notes work --append 'renew the certificate in May'", "add a line"),
    ])
    result.add_argument("--force", "-f", action="store_true", help="do not ask")
    group = result.add_mutually_exclusive_group()
    group.add_argument("--edit", "-e", action="store_true", help="edit the notes (default)")
    group.add_argument("--print", "-p", action="store_true", help="print the notes")
    group.add_argument("--import", "-i", dest="file", metavar="FILE", help="take the notes from a file")
    group.add_argument("--set", "-s", dest="text", metavar="NOTES", help="replace the notes")
    group.add_argument("--append", metavar="NOTES", help="add to the notes")
    group.add_argument("--delete", "-d", action="store_true", help="delete the notes")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    dest = tool.qube_name(args.name)
    if args.delete:
        if not args.force and not tool.confirm("This deletes the notes. Are you certain? [y/N] "):
            return CANCELLED
        new: bytes | None = b""
    elif args.file is not None:
        with open(args.file, "rb") as file:
            new = file.read()
    elif args.text is not None:
        new = args.text.encode()
    else:
        old = connection.call(dest, "admin.vm.notes.Get")
        new = _changed(args, old)
    if new is not None:
        connection.call(dest, "admin.vm.notes.Set", payload=new)
    return 0


def _changed(args: argparse.Namespace, old: bytes) -> bytes | None:
    """The new text, or None if nothing is to be stored."""
    if args.print:
        tool.say(old.decode("utf-8", "replace"))
        return None
    if args.append is not None:
        gap = b"" if not old or old.endswith(b"\n") else b"\n"
        text: str = args.append
        return old + gap + text.encode()
    return _edited(old)


def _edited(old: bytes) -> bytes | None:
    with tempfile.NamedTemporaryFile(prefix="notes-", suffix=".txt") as file:
        file.write(old)
        file.flush()
        editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
        status = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawnp(editor[0], [*editor, file.name], os.environ), 0)[1])
        if status:
            raise CloisonError(f"{editor[0]} ended with status {status}; the notes are unchanged")
        with open(file.name, "rb") as edited:   # an editor may have put a new file in its place
            new = edited.read()
    if new == old:
        print("unchanged", file=sys.stderr)
        return None
    return new


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
