"""qvm-pool: storage pools."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloison.cli import tool
from cloison.cli.qvm_create import pair_of
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, key_values, lines
from cloison.errors import CloisonError

PROG = "qvm-pool"
_OLDER = {
    "-a": "add", "--add": "add", "-i": "info", "--info": "info", "-l": "list", "--list": "list", "-r": "remove",
    "--remove": "remove", "-s": "set", "--set": "set", "--help-drivers": "drivers",
}
SETTABLE = ("revisions_to_keep", "ephemeral_volatile")


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, description="Show or change storage pools.", examples=[
        ("qvm-pool", "all of them"),
        ("qvm-pool info varlibqubes", "where it is, how full it is"),
        ("qvm-pool set varlibqubes -o revisions_to_keep=3", "change a setting"),
    ])
    verbs = result.add_subparsers(dest="verb", metavar="COMMAND")
    verbs.add_parser("list", aliases=("l", "ls"), help="list pools").set_defaults(act=_list)
    verbs.add_parser("drivers", aliases=("d",), help="list drivers with their options").set_defaults(act=_drivers)
    info = verbs.add_parser("info", aliases=("i",), help="tell about pools")
    info.add_argument("pools", metavar="POOL", nargs="+")
    info.set_defaults(act=_info)
    add = verbs.add_parser("add", aliases=("a",), help="add a pool")
    add.add_argument("pool", metavar="POOL")
    add.add_argument("driver", metavar="DRIVER")
    add.set_defaults(act=_add)
    remove = verbs.add_parser("remove", aliases=("r", "rm"), help="remove pools")
    remove.add_argument("pools", metavar="POOL", nargs="+")
    remove.set_defaults(act=_remove)
    change = verbs.add_parser("set", aliases=("s",), help="change settings of a pool")
    change.add_argument("pool", metavar="POOL")
    change.set_defaults(act=_set)
    for verb in (add, change):
        verb.add_argument("--option", "-o", metavar="NAME=VALUE", action="append", default=[], help="a setting, again for more")
    result.set_defaults(act=_list)
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    return int(args.act(args, connection) or 0)


def _list(_: argparse.Namespace, connection: Connection) -> None:
    names = lines(connection.call(DOM0, "admin.pool.List"))
    rows = [(name, key_values(connection.call(DOM0, "admin.pool.Info", name)).get("driver", "")) for name in names]
    tool.say(tool.table([("NAME", "DRIVER"), *rows]))


def _drivers(_: argparse.Namespace, connection: Connection) -> None:
    drivers = [line.split(" ") for line in sorted(lines(connection.call(DOM0, "admin.pool.ListDrivers")))]
    tool.say(tool.table([("DRIVER", "OPTIONS"), *((words[0], ", ".join(words[1:])) for words in drivers)]))


def _info(args: argparse.Namespace, connection: Connection) -> None:
    rows: list[tuple[str, str]] = []
    known = lines(connection.call(DOM0, "admin.pool.List"))
    for name in args.pools:
        if name not in known:
            tool.quit_usage(PROG, f"no such pool: {name!r}")
        info = key_values(connection.call(DOM0, "admin.pool.Info", name))
        rows += [*([("", "")] if rows else []), ("name", name), *((key, info[key]) for key in sorted(info) if key != "name")]
    tool.say(tool.table(rows))


def _add(args: argparse.Namespace, connection: Connection) -> None:
    options = [("name", args.pool), *(pair_of(text, PROG) for text in args.option)]
    for _, value in options:
        if "\n" in value:
            raise CloisonError("a pool's setting can't hold a newline")
    payload = "".join(f"{key}={value}\n" for key, value in options)
    connection.call(DOM0, "admin.pool.Add", args.driver, payload.encode())


def _remove(args: argparse.Namespace, connection: Connection) -> int:
    status = 0
    for name in args.pools:
        try:
            connection.call(DOM0, "admin.pool.Remove", name)
        except CloisonError as error:
            status = tool.report(PROG, error, f"failed to remove pool {name}")
    return status


def _set(args: argparse.Namespace, connection: Connection) -> None:
    options = [pair_of(text, PROG) for text in args.option]
    for key, _ in options:
        if key not in SETTABLE:
            raise CloisonError(f"setting option {key} is not supported for pool {args.pool}")
    for key, value in options:
        connection.call(DOM0, f"admin.pool.Set.{key}", args.pool, value.encode())


def modern(words: Sequence[str]) -> list[str]:
    """The words of this tool's older form (`-a NAME DRIVER -o x=1,y=2`), which scripts still use, as commands."""
    verbs = [(place, _OLDER[word]) for place, word in enumerate(words) if word in _OLDER]
    if not verbs or (words and not words[0].startswith("-")):
        return list(words)
    place, verb = verbs[0]
    rest, result = [*words[:place], *words[place + 1:]], [verb]
    for number, word in enumerate(rest):
        if number and rest[number - 1] == "-o":
            result += [part for setting in word.split(",") for part in ("-o", setting)]
        elif word != "-o":
            result.append(word)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, modern(sys.argv[1:] if argv is None else argv))
