"""qubes-prefs: show and change properties of the whole system."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import qvm_prefs, tool
from cloison.client.connection import Connection

PROG = "qubes-prefs"


def parser() -> tool.Parser:
    return qvm_prefs.parser(PROG)


def run(args: argparse.Namespace, connection: Connection) -> int:
    return qvm_prefs.act(args, connection, None, PROG)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
