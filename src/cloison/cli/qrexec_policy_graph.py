"""qrexec-policy-graph: who may call what where, drawn by Graphviz."""
from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import DOM0
from cloison.policy.facts import BadFacts, facts_from_system_info
from cloison.policy.graph import Filter, edges, graphviz
from cloison.policy.parse import Root, parse
from cloison.qrexec.policyd.policy_files import FolderReader, folders
from cloison.runtime.files import write_atomic


def parser() -> tool.Parser:
    result = tool.Parser(prog="qrexec-policy-graph", description="Draw who may call what where, for Graphviz.", examples=[
        ("qrexec-policy-graph --service qubes.Filecopy --include-ask | dot -Tsvg > g.svg", "who may copy files where")])
    result.add_argument("--include-ask", action="store_true", help="also calls that a person is asked for")
    for name in ("source", "target", "service"):
        result.add_argument(f"--{name}", metavar="NAME", nargs="+", action="extend", default=[], help=f"only this {name}")
    result.add_argument("--output", metavar="FILE", help="instead of standard output")
    result.add_argument("--policy-dir", metavar="DIR", help="this policy folder instead of all others")
    result.add_argument("--system-info", metavar="FILE", help="what qubesd's internal.GetSystemInfo answers, instead of asking it")
    result.add_argument("--skip-labels", action="store_true", help="no names of services")
    result.add_argument("--full-output", action="store_true", help="with arguments, whole actions, and what is asked for")
    return result


def run(args: argparse.Namespace, connection: Connection) -> None:
    system = _system(args, connection)
    facts = facts_from_system_info(system)
    where = folders(connection.paths)
    if args.policy_dir:
        where = where | {Root.MAIN: (args.policy_dir,), Root.RUNTIME: ()}
    rules = parse(FolderReader(where))
    only = Filter(args.source, args.target, args.service)
    found = [edge for edge in edges(rules, facts, only) if args.include_ask or args.full_output or not edge.asked]
    text = graphviz(found, _colours(system), labels=not args.skip_labels, full=args.full_output)
    if args.output:
        write_atomic(os.path.abspath(args.output), text.encode(), mode=0o644)
    else:
        tool.say(text.removesuffix("\n"))


def _system(args: argparse.Namespace, connection: Connection) -> Any:
    """Raises BadFacts for what is no JSON."""
    try:
        if args.system_info:
            with open(args.system_info, encoding="utf-8") as file:
                return json.load(file)
        return json.loads(connection.call(DOM0, "internal.GetSystemInfo", internal=True))
    except ValueError as error:
        raise BadFacts("the system's description is not JSON") from error


def _colours(system: Any) -> dict[str, str]:
    labels = {name: entry.get("label") for name, entry in system["domains"].items()}
    return {name: f"#{int(label, 16):06x}" for name, label in labels.items() if isinstance(label, str) and label.startswith("0x")}


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
