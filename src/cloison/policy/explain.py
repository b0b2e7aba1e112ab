"""Why a call is allowed, asked for or denied, and what would change that.

For people, so it may take its time: a suggestion is tried before it is made.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cloison.policy.evaluate import Allow, Ask, Call, Decision, Deny, Request, decide, evaluate, resolve
from cloison.policy.facts import Facts
from cloison.policy.parse import PolicySyntaxError, parse_rule
from cloison.policy.rules import Rule, Rules, Verb
from cloison.policy.tokens import Endpoint, Token, Unresolvable

MAX_SHOWN = 12          # targets to choose from that one screen has room for
MAX_PASSED = 8          # rules that did not apply, likewise
_OTHERWISE = {Verb.DENY: (Verb.ALLOW, Verb.ASK), Verb.ASK: (Verb.ALLOW, Verb.DENY), Verb.ALLOW: (Verb.DENY,)}


class Near(NamedTuple):
    """An existing rule that would decide otherwise. `misses`: columns in which it doesn't fit; none: it comes too late."""

    rule: Rule
    misses: tuple[str, ...]


class Explanation(NamedTuple):
    """`passed`: the rules for the service that came earlier, and why each did not apply. `suggestion` is a rule that changes
    the outcome when it stands before all others.
    """

    decision: Decision
    passed: tuple[Near, ...]
    nearest: Near | None
    suggestion: Rule | None


def verb_of(decision: Decision) -> Verb:
    """The outcome as a rule's word."""
    if isinstance(decision, Allow):
        return Verb.ALLOW
    return Verb.ASK if isinstance(decision, Ask) else Verb.DENY


def explain(rules: Rules, facts: Facts, request: Request) -> Explanation:
    """Raises nothing. A request that is refused before any rule is read has no nearest rule and no suggestion."""
    decision = evaluate(rules, facts, request)
    call = resolve(facts, request)
    if isinstance(call, Deny):
        return Explanation(decision, (), None, None)
    return Explanation(decision, tuple(_passed(rules, call, decision)), _nearest(rules, facts, call, decision),
                       _suggestion(rules, facts, request, decision, call))


def _passed(rules: Rules, call: Call, decision: Decision) -> Iterator[Near]:
    for rule in rules.for_service(call.service):
        if rule is decision.rule:
            return
        yield Near(rule, tuple(_misses(rule, call)))


def _nearest(rules: Rules, facts: Facts, call: Call, decision: Decision) -> Near | None:
    """The rule with the fewest columns to change; of several the first."""
    verb = verb_of(decision)
    near = [
        Near(rule, tuple(_misses(rule, call)))
        for rule in rules.for_service(call.service)
        if rule is not decision.rule and verb_of(decide(rules, facts, call, rule)) is not verb
    ]
    return min(near, key=lambda each: len(each.misses), default=None)


def _misses(rule: Rule, call: Call) -> Iterator[str]:
    if rule.argument not in ("*", call.argument):
        yield "argument"
    if not _fits(rule.source, call.source):
        yield "source"
    if not _fits(rule.target, call.target):
        yield "target"


def _fits(token: Token, end: Endpoint) -> bool:
    try:
        return token.matches(end)
    except Unresolvable:
        return False


def _suggestion(rules: Rules, facts: Facts, request: Request, decision: Decision, call: Call) -> Rule | None:
    """The narrowest rule that helps, tried out. None where no rule can, or where the request has no spelling in a rule."""
    for verb in _OTHERWISE[verb_of(decision)]:
        line = f"{call.service} {call.argument} {call.source.text} {call.target.text} {verb}"
        try:
            rule = parse_rule(line, "suggestion")
        except PolicySyntaxError:
            continue
        if verb_of(evaluate(Rules([rule, *rules.all]), facts, request)) is verb:
            return rule
    return None


def describe(explanation: Explanation, where: Callable[[Rule], str] = lambda rule: rule.place) -> list[str]:
    """An explanation as lines of text. `where`: how a rule's place is told."""
    decision, passed, nearest, suggestion = explanation
    lines = [f"outcome:  {_outcome(decision)}"]
    if decision.rule is not None:
        lines += [f"decided:  {where(decision.rule)}", f"          {decision.rule}"]
    if isinstance(decision, Ask):
        lines += _question(decision)
    lines += _earlier(passed, where)
    if nearest is not None:
        what = f"if it were for this {' and '.join(nearest.misses)}" if nearest.misses else "if it came earlier"
        lines += [f"nearest:  {where(nearest.rule)} would decide otherwise, {what}", f"          {nearest.rule}"]
    if suggestion is not None:
        lines += [f"to {suggestion.action.verb} exactly this, put before all other rules:", f"          {suggestion}"]
    return lines


def _earlier(passed: Sequence[Near], where: Callable[[Rule], str]) -> list[str]:
    """The last ones: those came closest to deciding."""
    shown = passed[-MAX_PASSED:]
    if not shown:
        return []
    hidden = len(passed) - len(shown)
    lines = [f"earlier rules for this service that did not apply{f' (the last {len(shown)} of {len(passed)})' if hidden else ''}:"]
    for rule, misses in shown:
        lines += [f"          {rule}", f"            {where(rule)}: other {' and '.join(misses)}"]
    return lines


def _outcome(decision: Decision) -> str:
    if isinstance(decision, Deny):
        return f"denied: {decision.text}"
    if isinstance(decision, Ask):
        return "a person is asked"
    return f"allowed, to {decision.target} as {decision.user or 'its default user'}"


def _question(ask: Ask) -> list[str]:
    targets = sorted(ask.targets)
    more = f", and {len(targets) - MAX_SHOWN} more" if len(targets) > MAX_SHOWN else ""
    return [f"choices:  {', '.join(targets[:MAX_SHOWN])}{more}", f"selected: {ask.default or 'none beforehand'}"]
