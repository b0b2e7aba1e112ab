"""cloison policy: why a call is allowed or denied, what was decided lately, and what is wrong with the policy's files."""
from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cloison.cli import daemons, tool
from cloison.client.connection import Connection
from cloison.client.domains import DOM0
from cloison.errors import CloisonError
from cloison.policy.evaluate import Request
from cloison.policy.explain import describe, explain, verb_of
from cloison.policy.facts import HOST_SPELLINGS, BadFacts, Facts, facts_from_system_info
from cloison.policy.parse import PolicySyntaxError, Root, lint, parse
from cloison.policy.rules import Rule, Rules, Verb
from cloison.policy.tokens import Token
from cloison.qrexec.call_log import path, recent
from cloison.qrexec.policyd.policy_files import SHIPPED, FolderReader, folders
from cloison.runtime.paths import Paths

INVALID = 1
_ROOTS = (Root.RUNTIME, Root.LEGACY)


class NoPolicyYet(CloisonError):
    """The folder of the policy is not there."""

    hint = "cloison up makes it."


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser("policy", help="why a call is allowed or denied, recent decisions, faults of the policy",
                                   description="Look at the policy of calls between qubes.")
    verbs = parser.add_subparsers(dest="policy_verb", metavar="VERB", required=True)
    why = verbs.add_parser("explain", help="what the policy makes of a call, and why")
    why.add_argument("source", metavar="SOURCE", help="the calling qube")
    why.add_argument("service", metavar="SERVICE[+ARGUMENT]")
    why.add_argument("target", metavar="TARGET", nargs="?", default="", help="what it asks for (default: it names no target)")
    why.add_argument("--remote", metavar="NAME", default="", help="the RemoteVM that SOURCE relays for")
    log = verbs.add_parser("log", help="recent decisions, the newest last")
    log.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="how many (default: 20)")
    log.add_argument("--denied", action="store_true", help="refusals only")
    log.add_argument("--source", metavar="NAME", help="calls of this qube only")
    log.add_argument("--service", metavar="NAME", help="calls of this service only")
    log.add_argument("--json", action="store_true", help="every entry whole, one JSON object a line")
    verbs.add_parser("check", help="read all files as the policy daemon does, and tell what is wrong")


def run(args: argparse.Namespace) -> int:
    paths = Paths.from_environment()
    verbs: dict[str, Callable[[argparse.Namespace, Paths], int]] = {"explain": _explain, "log": _log, "check": _check}
    return verbs[args.policy_verb](args, paths)


# -- explain -------------------------------------------------------------------------------------------------------------


def _explain(args: argparse.Namespace, paths: Paths) -> int:
    reader = FolderReader(folders(paths))
    facts = _facts(paths)
    for name in (args.source, args.target):
        if name and not name.startswith("@") and name not in facts.qubes and name not in HOST_SPELLINGS:
            tool.say(f"note:     there is no qube {name}")
    try:
        rules = parse(reader)
    except PolicySyntaxError as error:
        tool.say(f"outcome:  denied, as every call is: the policy is invalid\n          {_fault(reader, error)}")
        return 0
    service, _, argument = args.service.partition("+")
    request = Request(service, f"+{argument}", args.source, args.target, args.remote)
    explanation = explain(rules, facts, request)
    for line in describe(explanation, lambda rule: _place(reader, rule)):
        tool.say(line)
    if verb_of(explanation.decision) is Verb.ASK and not daemons.answers(paths, daemons.AGENT_SOCKET):
        tool.say("note:     nobody can be asked now, and without an answer it is denied; start: cloison ask-agent --terminal")
    return 0


def _facts(paths: Paths) -> Facts:
    reply = Connection(paths).call(DOM0, "internal.GetSystemInfo", internal=True)
    try:
        return facts_from_system_info(json.loads(reply))
    except ValueError as error:
        raise BadFacts("the system's description is not JSON") from error


def _place(reader: FolderReader, rule: Rule) -> str:
    return _shown(reader, rule.file, rule.line)


def _fault(reader: FolderReader, error: PolicySyntaxError) -> str:
    return str(error) if error.file is None else f"{_shown(reader, error.file, error.line)}: {error.text}"


def _shown(reader: FolderReader, name: str, line: int | None) -> str:
    """Where a person finds the line of a file that rules know by a short name."""
    number = "" if line is None else f":{line}"
    place = _file(reader, name)
    return f"{os.path.relpath(place, SHIPPED)}{number} (shipped)" if _is_shipped(place) else f"{place}{number}"


def _file(reader: FolderReader, name: str) -> str:
    root = next((root for root in _ROOTS if name.startswith(root.value)), Root.MAIN)
    try:
        return os.path.normpath(reader.place(root, name.removeprefix(root.value)))
    except (OSError, ValueError):
        return name


def _is_shipped(place: str) -> bool:
    return place.startswith(SHIPPED + os.sep)


# -- log -----------------------------------------------------------------------------------------------------------------


def _log(args: argparse.Namespace, paths: Paths) -> int:
    newest_first = filter(_filter(args), recent(path(paths)))
    lines = _entries(newest_first) if args.json else _decisions(_with_ends(newest_first))
    for line in reversed(list(itertools.islice(lines, max(0, args.lines)))):
        tool.say(line)
    return 0


def _entries(newest_first: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (json.dumps(entry) for entry in newest_first)


def _with_ends(newest_first: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Decisions alone, each with the outcome of its call: an allowed one that failed must not look as if it had gone well.

    Ends don't name their decision: of calls alike that overlap, the later end is taken for the later decision's.
    """
    outcomes: dict[tuple[object, ...], list[object]] = {}
    for entry in newest_first:
        ends = outcomes.setdefault(tuple(str(entry.get(key)) for key in ("source", "service", "requested_target")), [])
        if "verdict" not in entry:
            ends.append(entry.get("outcome"))
        else:
            yield {**entry, "outcome": ends.pop() if ends else None}


def _decisions(newest_first: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each; for the same one many times on end, too, or a qube could push all others out of sight."""
    for decision, same in itertools.groupby(newest_first, key=_decision):
        times = [_when(entry) for entry in same]
        often = f"  ({len(times)} times, until {times[0].split()[-1]})" if len(times) > 1 else ""
        yield f"{times[-1]}  {decision}{often}"


def _filter(args: argparse.Namespace) -> Callable[[Mapping[str, Any]], bool]:
    def wanted(entry: Mapping[str, Any]) -> bool:
        service = str(entry.get("service", ""))
        return (
            ("verdict" in entry or args.json or entry.get("event") == "end")
            and (not args.denied or entry.get("verdict") == "deny")
            and (args.source is None or entry.get("source") == args.source)
            and (args.service is None or args.service in (service, service.partition("+")[0]))
        )
    return wanted


def _when(entry: Mapping[str, Any]) -> str:
    when = entry.get("time")
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if isinstance(when, int | float) else "-"


def _decision(entry: Mapping[str, Any]) -> str:
    """In one line, whatever a qube called itself or its service."""
    target, wanted = _text(entry, "target"), _text(entry, "requested_target")
    reached = wanted if target in ("-", wanted) else f"{wanted} => {target}"
    how = " (asked)" if entry.get("asked") else " (tried)" if entry.get("tried") else ""
    why = f"{_text(entry, 'rule')}{how}" if entry.get("rule") else f"{_text(entry, 'why')}{how}"
    failed = f", but it {_text(entry, 'outcome')}" if _text(entry, "outcome").startswith("failed: ") else ""
    return f"{_text(entry, 'verdict'):5}  {_text(entry, 'source')} -> {reached}  {_text(entry, 'service')}  {why}{failed}"


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return "-" if value is None else "".join(letter if letter.isprintable() else "_" for letter in str(value))


# -- check ---------------------------------------------------------------------------------------------------------------


def _check(_: argparse.Namespace, paths: Paths) -> int:
    own = folders(paths)[Root.MAIN][0]
    if not os.path.isdir(own):
        raise NoPolicyYet(f"there is no policy folder yet: {own}")
    reader = FolderReader(folders(paths))
    try:
        rules = parse(reader)
    except PolicySyntaxError as error:
        faults = list(dict.fromkeys([_fault(reader, error), *_all_faults(reader)]))
        for fault in faults:
            tool.say(f"error: {fault}")
        tool.say(f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'}: every call is denied until this is corrected")
        return INVALID
    for warning in _unknown_qubes(reader, rules, paths):
        tool.say(f"warning: {warning}")
    tool.say(f"ok: {len(rules.all)} rules in {len({rule.file for rule in rules.all})} files")
    return 0


def _all_faults(reader: FolderReader) -> Iterator[str]:
    """Every line's own fault in the files that are read first; reading the policy stops at one."""
    for root in (Root.MAIN, Root.RUNTIME):
        try:
            names = sorted(name for name in reader.names(root, ".") if name.endswith(".policy") and not name.startswith("."))
            for name in names:
                for error in lint(reader.content(root, name), f"{root.value}{name}"):
                    yield _fault(reader, error)
        except OSError:
            continue                     # the parser has told


def _unknown_qubes(reader: FolderReader, rules: Rules, paths: Paths) -> Iterator[str]:
    """Names in the user's own rules that no qube has, which is nearly always a slip of the pen. Nothing if qubesd is away."""
    try:
        facts = _facts(paths)
    except CloisonError:
        return
    for rule in rules.all:
        if _is_shipped(_file(reader, rule.file)):
            continue
        names = [token.text for token in (rule.source, rule.target) if type(token) is Token]
        names += [name for name in (rule.action.target, rule.action.default_target) if name and not name.startswith("@")]
        for name in dict.fromkeys(names):
            if name not in facts.qubes and name not in HOST_SPELLINGS:
                yield f"{_place(reader, rule)}: there is no qube {name}"
