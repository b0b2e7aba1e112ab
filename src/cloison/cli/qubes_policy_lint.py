"""qubes-policy-lint: faults of policy files, each line on its own; includes are not followed."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.policy.parse import MAX_FILE, lint


def parser() -> tool.Parser:
    result = tool.Parser(prog="qubes-policy-lint", description="Tell faults of policy files.")
    result.add_argument("-s", "--show", action="store_true", help="print the faulty lines too")
    result.add_argument("-i", "--include-service", action="store_true", help="the files are in service format")
    result.add_argument("file", metavar="FILE", nargs="+", help="a policy file, - for standard input")
    return result


def run(args: argparse.Namespace, _: Connection) -> int:
    """1 if anything is wrong."""
    faulty = False
    for name in args.file:
        content = _content(name)
        lines = content.decode("utf-8", "replace").splitlines()
        for error in lint(content, name, args.include_service):
            faulty = True
            tool.say(f"{name}:{error.line or 1}: error: {error.text}")
            if args.show and error.line is not None and error.line <= len(lines):
                tool.say(f"    {lines[error.line - 1]}")
    return 1 if faulty else 0


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(MAX_FILE + 1)
    with open(name, "rb") as file:
        return file.read(MAX_FILE + 1)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
