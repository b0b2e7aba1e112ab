"""qvm-features: show and change features, the free-form settings of a qube."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import feature, features
from cloison.errors import FeatureNotFound

PROG = "qvm-features"


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="1", description="Show or change features of a qube.", examples=[
        ("qvm-features work", "all that are set"),
        ("qvm-features work internal", "one; exit status 1 if it is not set"),
        ("qvm-features work internal 1", "set it ('' means: set, false)"),
        ("qvm-features --unset work internal", "as if it had never been set"),
    ])
    result.add_argument("--unset", "--default", "--delete", "-D", dest="delete", action="store_true", help="unset the feature")
    result.add_argument("feature", metavar="FEATURE", nargs="?", help="its name")
    result.add_argument("value", metavar="VALUE", nargs="?", help="its new value")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    dest = tool.qube_name(args.name)
    if args.feature is None:
        if args.delete:
            tool.quit_usage(PROG, "--unset requires a feature")
        rows = list(features(connection, dest).items())
        if rows:
            tool.say(tool.table(rows))
        return 0
    if args.delete:
        if args.value is not None:
            tool.quit_usage(PROG, "cannot both set and unset a value")
        return remove(connection, dest, args.feature)
    if args.value is not None:
        connection.call(dest, "admin.vm.feature.Set", args.feature, args.value.encode())
        return 0
    value = feature(connection, dest, args.feature)
    if value is None:
        return 1
    tool.say(value)
    return 0


def remove(connection: Connection, dest: str, name: str) -> int:
    """Unset it; no error if it was not set."""
    try:
        connection.call(dest, "admin.vm.feature.Remove", name)
    except FeatureNotFound:
        pass
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
