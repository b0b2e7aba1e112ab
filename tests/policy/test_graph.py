"""Who may call whom as a graph: what evaluation allows, by rule, source and target, and its text for Graphviz."""
from __future__ import annotations

import pytest
from tests.policy.support import facts, rules

from cloison.policy.graph import Edge, Filter, edges, graphviz
from cloison.policy.rules import Verb

POLICY = rules("""
one * work vault allow
one +a vault work ask default_target=work
two +b work @dispvm allow user=root
two * work debian allow target=vault
two * work @default allow target=dom0
* * debian work allow
one * work work allow
one * relay @anyvm deny
""")
ONE = [Edge("work", "vault", "one", "*", False, "allow"), Edge("debian", "work", "one", "*", False, "allow")]


def found(**only: tuple[str, ...]) -> list[Edge]:
    return list(edges(POLICY, facts(), Filter(**only)))


def test_all_that_is_allowed_or_asked_by_service_argument_and_source() -> None:
    assert found() == [
        *ONE,
        Edge("work", "vault", "one", "*", False, "allow"),
        Edge("vault", "work", "one", "+a", True, "ask default_target=work"),
        Edge("debian", "work", "one", "*", False, "allow"),
        Edge("work", "vault", "two", "*", False, "allow target=vault"),
        Edge("work", "dom0", "two", "*", False, "allow target=dom0"),
        Edge("debian", "work", "two", "*", False, "allow"),
        Edge("work", "vault", "two", "*", False, "allow target=vault"),
        Edge("work", "@dispvm", "two", "+b", False, "allow user=root"),
        Edge("work", "dom0", "two", "*", False, "allow target=dom0"),
        Edge("debian", "work", "two", "*", False, "allow"),
    ]
    assert [edge.verb for edge in found(services=("one+a",))] == [Verb.ALLOW, Verb.ASK, Verb.ALLOW]


@pytest.mark.parametrize(("only", "kept"), [
    ({"sources": ("vault",)}, {("vault", "work")}), ({"targets": ("dom0",)}, {("work", "dom0")}),
    ({"targets": ("vault",), "sources": ("debian",)}, set()), ({"sources": ("none",)}, set()),
    ({"targets": ("debian",)}, set()), ({"services": ("none",)}, {("debian", "work")}),
    ({"services": ("two+b",)}, {("work", "vault"), ("work", "@dispvm"), ("work", "dom0"), ("debian", "work")}),
])
def test_what_is_left_out(only: dict[str, tuple[str, ...]], kept: set[tuple[str, str]]) -> None:
    assert {(edge.source, edge.target) for edge in found(**only)} == kept


def test_a_service_with_its_argument_and_one_without() -> None:
    assert {edge.service for edge in found(services=("two",))} == {"two"}
    arguments = {edge.argument for edge in found(services=("two",))}
    assert arguments == {"*", "+b"}
    assert found(services=("three",)) == [Edge("debian", "work", "three", "*", False, "allow")]


def test_text_for_graphviz() -> None:
    several = [Edge("work", "vault", "s", "*", False, "allow"), Edge("work", "@dispvm", "s", "+a", True, "ask user=x"),
               Edge("work", "vault", "s", "*", False, "allow")]
    colours = {"work": "#cc0000"}
    nodes = '  "work" [color = "#cc0000", penwidth = 3];\n'
    vault, dispvm = '  "vault" [color = "#888888", penwidth = 3];\n', '  "@dispvm" [style = dotted];\n'
    assert graphviz(several, colours) == (
        "digraph g {\n" + nodes + vault + '  "work" -> "vault" [label="s" color=red];\n' + dispvm
        + '  "work" -> "@dispvm" [label="s" color=orange];\n}\n')
    assert '[label="" color=red]' in graphviz(several, colours, labels=False)
    full = graphviz(several, colours, full=True)
    assert '[label="s allow" color=red]' in full and '[label="s+a ask user=x" color=orange]' in full
    assert '[label=" ask user=x" color=orange]' in graphviz(several, colours, labels=False, full=True)
    assert graphviz([], {}) == "digraph g {\n}\n"
