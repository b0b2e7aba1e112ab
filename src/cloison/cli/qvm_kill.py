"""qvm-kill: end qubes at once."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.errors import QubeNotStarted

PROG = "qvm-kill"


def parser() -> tool.Parser:
    return tool.Parser(prog=PROG, qubes="+", description="End qubes at once, without a clean shutdown.", examples=[
        ("qvm-kill work", "as if its power cord were pulled"),
    ])


def run(args: argparse.Namespace, connection: Connection) -> int:
    names = [qube.name for qube in tool.chosen(args, connection)]
    return len(tool.each(PROG, connection, names, "admin.vm.Kill", ignore=(QubeNotStarted,), what="failed to kill"))


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
