"""qubes-policy-lint: faults of policy files, each line on its own; includes are not followed."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.policy.parse import LINE_END, MAX_FILE, lint


def parser() -> tool.Parser:
    result = tool.Parser(prog="qubes-policy-lint", description="Tell faults of policy files.", examples=[
        ("qubes-policy-lint --show-line 30-user.policy", "faults, with the lines they are in"),
        ("qubes-policy-lint -i include-service-file", "a file of one service's rules"),
    ])
    result.add_argument("-s", "--show-line", action="store_true", help="with the faulty line")
    result.add_argument("-i", "--include-service", action="store_true", help="the files are in service format")
    result.add_argument("file", metavar="FILE", nargs="+", help="a policy file, - for standard input")
    return result


def run(args: argparse.Namespace, _: Connection) -> int:
    """1 if anything is wrong."""
    faulty = False
    for name in args.file:
        content = _content(name)
        lines = LINE_END.split(content.decode("utf-8", "replace"))
        for error in lint(content, name, args.include_service):
            faulty = True
            shown = f": {lines[error.line - 1].strip()}" if args.show_line and error.line is not None else ""
            tool.say(f"{name}:{error.line or 1}: error: {error.text}{shown}")
    return 1 if faulty else 0


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(MAX_FILE + 1)
    with open(name, "rb") as file:
        return file.read(MAX_FILE + 1)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
