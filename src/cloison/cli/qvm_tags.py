"""qvm-tags: show and change tags, by which policy groups qubes."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import tags
from cloison.errors import TagNotFound

PROG = "qvm-tags"


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="1", description="Show or change tags of a qube.", examples=[
        ("qvm-tags work", "all of them"),
        ("qvm-tags work list personal", "exit status 1 if work does not have it"),
        ("qvm-tags work add personal trusted", "add two"),
        ("qvm-tags work del personal", "take one away"),
    ])
    verbs = result.add_subparsers(dest="verb", metavar="COMMAND")
    listing = verbs.add_parser("list", aliases=("ls", "l"), help="list tags")
    listing.add_argument("tag", metavar="TAG", nargs="?", help="only this one, if the qube has it")
    adding = verbs.add_parser("add", aliases=("a", "set"), help="add tags")
    adding.add_argument("tag", metavar="TAG", nargs="+")
    deleting = verbs.add_parser("del", aliases=("d", "unset", "u"), help="delete a tag")
    deleting.add_argument("tag", metavar="TAG")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    dest = tool.qube_name(args.name)
    if args.verb in ("add", "a", "set"):
        for tag in args.tag:
            connection.call(dest, "admin.vm.tag.Set", tag)
        return 0
    if args.verb in ("del", "d", "unset", "u"):
        try:
            connection.call(dest, "admin.vm.tag.Remove", args.tag)
        except TagNotFound:
            pass
        return 0
    present = sorted(tags(connection, dest))
    wanted = getattr(args, "tag", None)
    shown = [tag for tag in present if wanted in (None, tag)]
    if shown:
        tool.say("\n".join(shown))
    return int(wanted is not None and not shown)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
