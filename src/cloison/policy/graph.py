"""Who may call what where, as a graph: what evaluation says of every source, target and service that rules name."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from cloison.policy.evaluate import Allow, Ask, Request, evaluate
from cloison.policy.facts import Facts
from cloison.policy.rules import Rules
from cloison.policy.tokens import DISPVM


class Edge(NamedTuple):
    """A call that is allowed or, if `asked`, that a person would be asked for."""

    source: str
    target: str
    service: str
    asked: bool


class Filter(NamedTuple):
    """Empty: everything."""

    sources: Collection[str] = ()
    targets: Collection[str] = ()
    services: Collection[str] = ()


def edges(rules: Rules, facts: Facts, only: Filter = Filter()) -> Iterator[Edge]:  # noqa: B008 a constant
    """In order of source, service, target. A rule for any argument is tried with the empty one."""
    wanted = sorted({(rule.service, "+" if rule.argument == "*" else rule.argument) for rule in rules.all if rule.service != "*"})
    calls = [(service, argument) for service, argument in wanted
             if not only.services or {service, _text(service, argument)} & set(only.services)]
    targets = [*sorted(facts.names), *sorted(facts.disposables), DISPVM]
    for source in sorted(facts.names):
        if not only.sources or source in only.sources:
            for service, argument in calls:
                yield from _of_call(rules, facts, Request(service, argument, source, ""), targets, only)


def _of_call(rules: Rules, facts: Facts, request: Request, targets: Iterable[str], only: Filter) -> Iterator[Edge]:
    for target in targets:
        if target == request.source:
            continue
        decision = evaluate(rules, facts, request._replace(untrusted_target=target))
        reached = decision.target if isinstance(decision, Allow) else target
        offered = isinstance(decision, Allow) or (isinstance(decision, Ask) and (target in decision.targets or target == DISPVM))
        if offered and (not only.targets or {target, reached} & set(only.targets)):
            yield Edge(request.source, target, _text(request.service, request.argument), isinstance(decision, Ask))


def _text(service: str, argument: str) -> str:
    return service if argument == "+" else f"{service}{argument}"


def graphviz(found: Iterable[Edge], colours: dict[str, str], *, labels: bool = True) -> str:
    """Text in Graphviz's language. `colours`: `#rrggbb` by qube."""
    lines, nodes, drawn = [], dict[str, None](), set[tuple[str, str, bool, str]]()
    for edge in found:
        nodes |= {edge.source: None, edge.target: None}
        shown = edge.service if labels else ""
        key = (edge.source, edge.target, edge.asked, shown)
        if key not in drawn:
            drawn.add(key)
            label = f' label="{shown}"' if shown else ""
            lines.append(f'  "{edge.source}" -> "{edge.target}" [color={"orange" if edge.asked else "red"}{label}];')
    return "\n".join(["digraph g {", *(_node(name, colours) for name in nodes), *lines, "}"]) + "\n"


def _node(name: str, colours: dict[str, str]) -> str:
    if name.startswith("@"):
        return f'  "{name}" [style=dotted];'
    return f'  "{name}" [color="{colours[name]}"];' if name in colours else f'  "{name}";'
