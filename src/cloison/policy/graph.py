"""Who may call what where, as a graph: what evaluation says of every source, target and service that rules name."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cloison.policy.evaluate import Ask, Deny, Request, evaluate
from cloison.policy.facts import Facts
from cloison.policy.rules import Rules, Verb
from cloison.policy.tokens import DEFAULT, DISPVM

UNKNOWN = "#888888"


class Edge(NamedTuple):
    """A call that is allowed or, if `asked`, that a person is asked for.

    `target` is where the rule sends it, else what was asked for; `argument` and `action` are the rule's.
    """

    source: str
    target: str
    service: str
    argument: str
    asked: bool
    action: str

    @property
    def verb(self) -> Verb:
        return Verb.ASK if self.asked else Verb.ALLOW


class Filter(NamedTuple):
    """Empty: everything. A service may be named with its argument."""

    sources: Sequence[str] = ()
    targets: Sequence[str] = ()
    services: Sequence[str] = ()


def edges(rules: Rules, facts: Facts, only: Filter = Filter()) -> Iterator[Edge]:  # noqa: B008 a constant
    """By service; in it by source and target, in the facts' order. A rule for any argument is tried with the empty one."""
    sources = only.sources or [name for name in facts.qubes if name in facts.names]
    targets = [*(name for name in facts.qubes if name in facts.names), DISPVM, *sorted(facts.disposables), DEFAULT]
    for service, argument in _calls(rules, only.services):
        for source in sources:
            for target in targets:
                edge = _edge(rules, facts, Request(service, argument, source, target))
                if edge is not None and target != source and (not only.targets or edge.target in only.targets):
                    yield edge


def _calls(rules: Rules, services: Sequence[str]) -> list[tuple[str, str]]:
    """Each service that a rule or the caller names, with its arguments."""
    named = {(rule.service, "+" if rule.argument == "*" else rule.argument) for rule in rules.all if rule.service != "*"}
    named |= {(service, f"+{argument}") for service, _, argument in (text.partition("+") for text in services)}
    return sorted(call for call in named if not services or call[0] in services or "".join(call) in services)


def _edge(rules: Rules, facts: Facts, request: Request) -> Edge | None:
    decision = evaluate(rules, facts, request)
    if isinstance(decision, Deny):
        return None
    rule = decision.rule
    target = rule.action.target or decision.call.target.text
    action = " ".join(str(rule).split(" ")[4:])
    return Edge(request.source, target, request.service, rule.argument, isinstance(decision, Ask), action)


def graphviz(found: Iterable[Edge], colours: Mapping[str, str], *, labels: bool = True, full: bool = False) -> str:
    """Text in Graphviz's language. `colours`: `#rrggbb` by qube. `full`: with arguments and the rules' actions."""
    lines: dict[str, None] = {}
    for edge in found:
        label = edge.service if labels else ""
        if full:
            label = f"{label}{edge.argument if labels and edge.argument != '*' else ''} {edge.action}"
        lines |= {_node(edge.source, colours): None, _node(edge.target, colours): None}
        lines[f'  "{edge.source}" -> "{edge.target}" [label="{label}" color={"orange" if edge.asked else "red"}];'] = None
    return "\n".join(["digraph g {", *lines, "}"]) + "\n"


def _node(name: str, colours: Mapping[str, str]) -> str:
    if name.startswith("@"):
        return f'  "{name}" [style = dotted];'
    return f'  "{name}" [color = "{colours.get(name, UNKNOWN)}", penwidth = 3];'
