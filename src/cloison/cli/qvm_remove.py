"""qvm-remove: delete qubes with their disks."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, get_all_properties, get_properties, list_qubes
from cloison.errors import CloisonError, QubeInUse

PROG = "qvm-remove"
SURE = "IKNOWWHATIAMDOING"


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="+", description="Delete qubes and everything in them, for good.", examples=[
        ("qvm-remove old", "asks before it deletes the qube old"),
        ("qvm-remove --force old older", "does not ask"),
    ])
    result.add_argument("--force", "-f", action="store_true", help="do not ask")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    names = [qube.name for qube in tool.chosen(args, connection, with_dom0=False)]
    if DOM0 in names:
        raise CloisonError("domain 'dom0' cannot be removed")
    if not args.force and not _agreed(names, everything=args.all_qubes and not args.exclude):
        print("Remove cancelled.", file=sys.stderr)
        return 1
    status = 0
    for name in names:
        try:
            connection.call(name, "admin.vm.Remove")
        except QubeInUse as error:
            _tell_users(connection, name)
            status = tool.report(PROG, error, name)
        except CloisonError as error:
            status = tool.report(PROG, error, name)
    return status


def _agreed(names: Sequence[str], *, everything: bool) -> bool:
    if everything:
        print("WARNING: removing all qubes may leave this system useless!", file=sys.stderr)
        if not tool.confirm(f"Are you certain? [N/{SURE}] ", SURE):
            return False
    print("This will completely remove:", file=sys.stderr)
    for name in names:
        print("  " + name)
    return tool.confirm("Are you sure? [y/N] ")


def _tell_users(connection: Connection, name: str) -> None:
    """Which properties refer to the qube."""
    users = [
        f"{prop} for {holder}"
        for holder, properties in get_all_properties(connection, list_qubes(connection)).items()
        for prop, value in properties.items()
        if value.kind == "vm" and value.value == name and not value.default and holder != name
    ]
    users += [f"global property {prop}" for prop, value in get_properties(connection, None).items() if value.value == name]
    if users:
        print(f"{name} cannot be removed. It is in use as:", *users, sep="\n - ", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
