"""qvm-check: tell by the exit status whether qubes exist, run, ... For scripts."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import Qube, get_properties, list_qubes

PROG = "qvm-check"
SOME = 3                                 # exit status: not all of them


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="+", description="Exit status 0: all are so; 1: none; 3: some.", examples=[
        ("qvm-check work", "does it exist?"),
        ("qvm-check --running work && echo yes", "does it run?"),
    ])
    result.add_argument("--running", action="store_true", help="does it run")
    result.add_argument("--paused", action="store_true", help="is it paused")
    result.add_argument("--template", action="store_true", help="is it a template")
    result.add_argument("--networked", action="store_true", help="can it reach a network")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    known = list_qubes(connection)
    if args.all_qubes:
        names = [qube.name for qube in known.values() if qube.klass != "AdminVM" and qube.name not in args.exclude]
    else:
        names = args.names               # no pattern means anything here, and a text that is no name is no qube's
    qubes = [known[name] for name in names if name in known]
    wanted = [word for word in ("running", "paused", "template", "networked") if getattr(args, word)]
    matching = [qube for qube in qubes if all(_is(connection, qube, word) for word in wanted)]
    if tool.verbosity(args) > 0:
        what = ", ".join(wanted) or "exists"
        for qube in matching:
            _tell(f"{qube.name}: {what}")
        if not matching and qubes:
            _tell(f"None of qubes: {what}")
        for name in names:
            if name not in known:
                _tell(f"{name}: non-existent!")
    if len(qubes) < len(names) or not matching:
        return 1
    return 0 if len(matching) == len(qubes) else SOME


def _tell(text: str) -> None:
    """On standard error: what a script looks at is the exit status."""
    print(f"{PROG}: {tool.printable(text)}", file=sys.stderr)


def _is(connection: Connection, qube: Qube, word: str) -> bool:
    if word == "networked":
        properties = get_properties(connection, qube.name)
        return any(name in properties and properties[name].value not in ("", "False") for name in ("netvm", "provides_network"))
    return {"running": qube.running, "paused": qube.state == "Paused", "template": qube.klass == "TemplateVM"}[word]


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
