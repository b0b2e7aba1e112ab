"""qvm-pause: freeze qubes."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection

PROG = "qvm-pause"


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="+", description="Freeze qubes until qvm-unpause.", examples=[
        ("qvm-pause work", "its programs stop where they are"),
        ("qvm-pause --suspend work", "tell the system in it first, as closing a laptop does"),
    ])
    result.add_argument("--suspend", "-S", action="store_true", help="suspend the system in the qube instead")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    word = "suspend" if args.suspend else "pause"
    names = [qube.name for qube in tool.chosen(args, connection)]
    return bool(tool.each(PROG, connection, names, f"admin.vm.{word.capitalize()}", what=f"failed to {word}"))


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
