"""qvm-unpause: let frozen or suspended qubes go on."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import feature

PROG = "qvm-unpause"


def parser() -> tool.Parser:
    return tool.Parser(prog=PROG, qubes="+", description="Let paused qubes go on.", examples=[
        ("qvm-unpause work", "after qvm-pause work"),
    ])


def run(args: argparse.Namespace, connection: Connection) -> int:
    qubes = tool.chosen(args, connection)
    if args.all_qubes:
        qubes = [qube for qube in qubes if not feature(connection, qube.name, "internal")]
    suspended = [qube.name for qube in qubes if qube.state == "Suspended"]
    others = [qube.name for qube in qubes if qube.state != "Suspended"]
    what = "failed to unpause/resume"
    failed = tool.each(PROG, connection, suspended, "admin.vm.Resume", what=what)
    failed.update(tool.each(PROG, connection, others, "admin.vm.Unpause", what=what))
    return bool(failed)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
