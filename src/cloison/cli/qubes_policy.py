"""qubes-policy: list, read, replace and remove policy files."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloison.cli import tool
from cloison.cli.policy_files import PolicyFile, administration
from cloison.client.connection import Connection
from cloison.qrexec.policyd.policy_admin import ANY, INCLUDE, MAX_PAYLOAD


def parser() -> tool.Parser:
    result = tool.Parser(prog="qubes-policy", description="List, read, replace and remove policy files.", examples=[
        ("qubes-policy include/", "list files that others include"),
        ("qubes-policy -g 30-user", "print it"),
        ("qubes-policy -r include/admin-local-ro < FILE", "replace it, if the policy is valid with it"),
    ])
    action = result.add_mutually_exclusive_group()
    for short, long, meaning in (("-l", "--list", "list files (default)"), ("-g", "--get", "print the file"),
                                 ("-r", "--replace", "replace it by standard input"), ("-d", "--remove", "remove it")):
        action.add_argument(short, long, dest="action", action="store_const", const=long, help=meaning)
    result.set_defaults(action="--list")
    result.add_argument("name", metavar="[include/]NAME", nargs="?", help="a policy file")
    return result


def run(args: argparse.Namespace, _: Connection) -> int:
    folder = (args.name or "").rstrip("/") == INCLUDE
    if args.action == "--list" and args.name and not folder:
        tool.quit_usage("qubes-policy", "--list doesn't work with a file's name")
    if args.action != "--list" and (not args.name or folder):
        tool.quit_usage("qubes-policy", "name a file")
    admin = administration()
    if args.action == "--list":
        tool.say(admin.call("policy.include.List" if folder else "policy.List", "", b"").decode().rstrip("\n"))
        return 0
    file = PolicyFile(args.name, admin)
    if args.action == "--get":
        sys.stdout.buffer.write(file.get()[1].rstrip() + b"\n")
        sys.stdout.buffer.flush()
    elif args.action == "--replace":
        file.replace(ANY, sys.stdin.buffer.read(MAX_PAYLOAD))
    else:
        file.remove(ANY)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
