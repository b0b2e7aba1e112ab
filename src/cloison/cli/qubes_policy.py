"""qubes-policy: list, read, replace and remove policy files."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloison.cli import tool
from cloison.cli.policy_files import PolicyFile, administration
from cloison.client.connection import Connection
from cloison.qrexec.policy_admin import ANY, MAX_PAYLOAD


def parser() -> tool.Parser:
    result = tool.Parser(prog="qubes-policy", description="List, read, replace and remove policy files.", examples=[
        ("qubes-policy -g 30-user", "print it"),
        ("qubes-policy -r include/admin-local-ro < FILE", "replace it, if the policy is valid with it"),
    ])
    action = result.add_mutually_exclusive_group()
    for short, long, meaning in (("-l", "--list", "list all files (default)"), ("-g", "--get", "print the file"),
                                 ("-r", "--replace", "replace it by standard input"), ("-d", "--delete", "remove it")):
        action.add_argument(short, long, dest="action", action="store_const", const=long, help=meaning)
    action.set_defaults(action=None)
    result.add_argument("name", metavar="[include/]NAME", nargs="?", help="a policy file")
    return result


def run(args: argparse.Namespace, _: Connection) -> int:
    admin = administration()
    action = args.action or ("--get" if args.name else "--list")
    if (action == "--list") is bool(args.name):
        tool.quit_usage("qubes-policy", "name a file" if not args.name else "--list takes no name")
    if action == "--list":
        tool.say(admin.call("policy.List", "", b"").decode().rstrip("\n"))
        includes = admin.call("policy.include.List", "", b"").decode().splitlines()
        tool.say("\n".join(f"include/{name}" for name in includes))
        return 0
    file = PolicyFile(args.name, admin)
    if action == "--get":
        sys.stdout.buffer.write(file.get()[1])
        sys.stdout.buffer.flush()
    elif action == "--replace":
        file.replace(ANY, sys.stdin.buffer.read(MAX_PAYLOAD))
    else:
        file.remove(ANY)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
