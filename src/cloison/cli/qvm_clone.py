"""qvm-clone: make a qube like another, with a copy of its disks."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import tool
from cloison.cli.qvm_create import pair_of
from cloison.client.connection import Connection
from cloison.client.create import Creation, clone
from cloison.client.domains import get_property, list_qubes
from cloison.errors import CloisonError, NoSuchProperty
from cloison.values import QubeName

PROG = "qvm-clone"


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="1", description="Copy a qube: settings, files, tags, firewall.", examples=[
        ("qvm-clone work work-2", "a second work"),
        ("qvm-clone --class StandaloneVM debian-13 box", "a template's copy that lives alone"),
    ])
    result.add_argument("new_name", metavar="NEWVM", help="name of the new qube")
    result.add_argument("--class", "-C", dest="klass", metavar="CLASS", help="its class (default: that of the source)")
    result.add_argument("--ignore-errors", action="store_true", help="tell what could not be copied, and go on")
    pools = result.add_mutually_exclusive_group()
    pools.add_argument("-P", dest="one_pool", metavar="POOL", default="", help="the pool for all volumes")
    pools.add_argument("--pool", "-p", metavar="VOLUME=POOL", action="append", default=[], help="the pool for one volume")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    source = tool.qube_name(args.name)
    klass = args.klass or list_qubes(connection, source)[source].klass
    label = get_property(connection, source, "label").value
    template = ""
    if klass in ("AppVM", "DispVM"):
        try:
            template = get_property(connection, source, "template").value
        except NoSuchProperty:
            template = source            # an AppVM made from a template is one on it
    pools = dict(pair_of(text, PROG) for text in args.pool)
    wanted = Creation(QubeName(args.new_name), klass, label, template, args.one_pool, pools)
    clone(connection, source, wanted, complain=_complain if args.ignore_errors else None)
    return 0


def _complain(error: CloisonError) -> None:
    tool.report(PROG, error)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
