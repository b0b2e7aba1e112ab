"""qvm-service: show and change which services run in a qube."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import tool
from cloison.cli.qvm_features import remove
from cloison.client.connection import Connection
from cloison.client.domains import feature, features
from cloison.errors import BadValue

PROG = "qvm-service"
_PREFIX = "service."
_WORDS = dict.fromkeys(("1", "yes", "true", "on"), "1") | dict.fromkeys(("0", "no", "false", "off"), "")


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="1", description="Show or change services of a qube.", examples=[
        ("qvm-service work", "all that are set"),
        ("qvm-service work cups off", "the same as: qvm-service --disable work cups"),
        ("qvm-service --unset work cups", "back to what the qube's system does by itself"),
    ])
    result.add_argument("--list", "-l", action="store_true", help="list services (default)")
    result.add_argument("--unset", "--default", "--delete", "-D", dest="delete", action="store_true", help="unset the service")
    result.add_argument("--enable", "-e", dest="word", action="store_const", const="on", help="the same as on")
    result.add_argument("--disable", "-d", dest="word", action="store_const", const="off", help="the same as off")
    result.add_argument("service", metavar="SERVICE", nargs="?", help="its name")
    result.add_argument("value", metavar="VALUE", nargs="?", help="on or off")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    dest = tool.qube_name(args.name)
    if args.service is None:
        if args.delete:
            tool.quit_usage(PROG, "SERVICE is missing")
        rows = [(name.removeprefix(_PREFIX), _shown(value)) for name, value in features(connection, dest).items()
                if name.startswith(_PREFIX)]
        if rows:
            tool.say(tool.table(rows))
        return 0
    name, word = _PREFIX + args.service, args.value or args.word
    if args.delete:
        if word:
            tool.quit_usage(PROG, "cannot both set and unset a value")
        return remove(connection, dest, name)
    if word is not None:
        if word.lower() not in _WORDS:
            raise BadValue(f"{word[:60]!r} is neither on nor off")
        connection.call(dest, "admin.vm.feature.Set", name, _WORDS[word.lower()].encode())
        return 0
    value = feature(connection, dest, name)
    if value is None:
        return 1
    tool.say(_shown(value))
    return 0


def _shown(value: str) -> str:
    return "on" if value else "off"


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
