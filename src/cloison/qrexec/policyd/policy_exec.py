"""qrexec-policy, qrexec-policy-exec: one verdict by a process of its own (reference/qrexec.md 15.2).

What a qrexec daemon runs when no policy daemon answers: reads policy and facts anew, asks and logs in the same way. With five
words, a form that only old daemons and scripts use, it carries the call out too.
"""
from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from functools import partial

from cloison.client.connection import Connection
from cloison.errors import CloisonError
from cloison.policy.parse import Root, parse
from cloison.policy.rules import Rules
from cloison.qrexec.call_log import CallLog, path
from cloison.qrexec.policyd.ask import Agents
from cloison.qrexec.policyd.judge import Judge, Verdict
from cloison.qrexec.policyd.policy_call import Caller, carry_out
from cloison.qrexec.policyd.policy_files import FolderReader, folders, make_folders
from cloison.qrexec.policyd.system_info import fetch
from cloison.runtime.logs import log_to_stderr
from cloison.runtime.paths import Paths
from cloison.wire.policy import ALLOW, Query

FAILED = REFUSED = 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qrexec-policy", allow_abbrev=False,
        usage="%(prog)s [options] [--] SOURCE TARGET SERVICE+ARGUMENT\n"
              "       %(prog)s [options] [--] DOMAIN-ID SOURCE TARGET SERVICE+ARGUMENT REQUEST-ID",
        description="Say what the policy makes of a call.")
    parser.add_argument("--just-evaluate", action="store_true",
                        help="ask and tell nobody; a question counts as a refusal; exit status 1 for a refusal")
    parser.add_argument("--assume-yes-for-ask", action="store_true", help="a question counts as answered with TARGET")
    parser.add_argument("--path", metavar="DIR", help="policy folder instead of the user's and the shipped one")
    parser.add_argument("words", metavar="WORD", nargs="*",
                        help="SOURCE: the calling qube; TARGET: what it asks for, may be empty; SERVICE+ARGUMENT."
                             " DOMAIN-ID before them and REQUEST-ID behind: do it, too (deprecated)")
    return parser


async def verdict(paths: Paths, query: Query, rules: Rules | None = None) -> Verdict:
    """Raises nothing: what goes wrong is a refusal."""
    where = folders(paths)
    call_log = CallLog(path(paths))
    try:
        judge = Judge(lambda: rules or parse(FolderReader(where)), partial(fetch, paths), Agents(paths), call_log)
        return await judge.judge(query)
    finally:
        call_log.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    log_to_stderr(logging.WARNING)
    if len(options.words) not in (3, 5):
        parser.error("three words are needed, or five")
    try:
        caller = Caller.parse(options.words[0], options.words[4]) if len(options.words) == 5 else None
        source, target, service = options.words if caller is None else options.words[1:4]
        query = Query(source, target, service, assume_yes=options.assume_yes_for_ask, just_evaluate=options.just_evaluate)
        paths = Paths.from_environment()
        paths.ensure()
        where = folders(paths)
        make_folders(where)
        rules = parse(FolderReader(where | {Root.MAIN: (options.path,)})) if options.path else None
        judged = asyncio.run(verdict(paths, query, rules))
        if caller is not None and not query.just_evaluate:
            return carry_out(Connection(paths), judged, caller)
    except (CloisonError, OSError, ValueError) as error:
        print(f"qrexec-policy: {error}", file=sys.stderr)
        return FAILED
    answer = judged.answer()
    if caller is None:
        print(answer.decode("utf-8"))
    return REFUSED if query.just_evaluate and answer != ALLOW else 0


if __name__ == "__main__":
    sys.exit(main())
