"""qrexec-policy, qrexec-policy-exec: one verdict by a process of its own (reference/qrexec.md 15.2).

What a qrexec daemon runs when no policy daemon answers: reads policy and facts anew, asks and logs in the same way.
"""
from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from functools import partial

from cloison.errors import CloisonError
from cloison.policy.parse import Root, parse
from cloison.policy.rules import Rules
from cloison.qrexec.call_log import CallLog, path
from cloison.qrexec.policyd.ask import Agents
from cloison.qrexec.policyd.judge import Judge
from cloison.qrexec.policyd.policy_files import FolderReader, folders, make_folders
from cloison.qrexec.policyd.system_info import fetch
from cloison.runtime.paths import Paths
from cloison.wire.policy import ALLOW, Query

FAILED = REFUSED = 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qrexec-policy", allow_abbrev=False,
        description="Say what the policy makes of a call.")
    parser.add_argument("--just-evaluate", action="store_true",
                        help="ask and tell nobody; a question counts as a refusal; exit status 1 for a refusal")
    parser.add_argument("--assume-yes-for-ask", action="store_true", help="a question counts as answered with TARGET")
    parser.add_argument("--path", metavar="DIR", help="policy folder instead of the user's and the shipped one")
    parser.add_argument("source", metavar="SOURCE", help="the calling qube")
    parser.add_argument("target", metavar="TARGET", help="what it asks for; may be empty")
    parser.add_argument("service", metavar="SERVICE+ARGUMENT")
    return parser


async def verdict(paths: Paths, query: Query, rules: Rules | None = None) -> bytes:
    """The answer as protocol text. Raises nothing: what goes wrong is a refusal."""
    where = folders(paths)
    call_log = CallLog(path(paths))
    try:
        judge = Judge(lambda: rules or parse(FolderReader(where)), partial(fetch, paths), Agents(paths), call_log)
        return (await judge.judge(query)).answer()
    finally:
        call_log.close()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    query = Query(options.source, options.target, options.service,
                  assume_yes=options.assume_yes_for_ask, just_evaluate=options.just_evaluate)
    try:
        paths = Paths.from_environment()
        paths.ensure()
        where = folders(paths)
        make_folders(where)
        rules = parse(FolderReader(where | {Root.MAIN: (options.path,)})) if options.path else None
        answer = asyncio.run(verdict(paths, query, rules)).decode("utf-8")
    except (CloisonError, OSError) as error:
        print(f"qrexec-policy: {error}", file=sys.stderr)
        return FAILED
    print(answer)
    return REFUSED if options.just_evaluate and answer != ALLOW.decode() else 0


if __name__ == "__main__":
    sys.exit(main())
