"""Explanations: the rule that decided, the nearest other one, and a suggestion that has been tried."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.support import entry, facts, request, rules, system_info

from cloison.policy.evaluate import evaluate
from cloison.policy.explain import MAX_PASSED, MAX_SHOWN, describe, explain, verb_of
from cloison.policy.facts import facts_from_system_info
from cloison.policy.rules import Rules


def told(text: str, target: str, **more: str) -> list[str]:
    return describe(explain(rules(text), facts(), request(target, **more)))


def test_a_denial_by_a_rule() -> None:
    assert told("s * work @anyvm deny\ns * @tag:blue vault allow", "vault") == [
        "outcome:  denied: a.policy:1 denies it",
        "decided:  a.policy:1",
        "          s * work @anyvm deny",
        "nearest:  a.policy:2 would decide otherwise, if it came earlier",
        "          s * @tag:blue vault allow",
        "to allow exactly this, put before all other rules:",
        "          s + work vault allow",
    ]


def test_a_denial_by_no_rule() -> None:
    lines = told("s +a dvm vault allow\ns +a work vault allow", "vault", argument="+b")
    assert lines[:7] == [
        "outcome:  denied: no rule is for this call",
        "earlier rules for this service that did not apply:",
        "          s +a dvm vault allow",
        "            a.policy:1: other argument and source",
        "          s +a work vault allow",
        "            a.policy:2: other argument",
        "nearest:  a.policy:2 would decide otherwise, if it were for this argument",
    ]


def test_the_last_of_many_earlier_rules_are_shown() -> None:
    lines = told("s * dvm vault allow\n" * 20 + "s * work vault deny", "vault")
    assert lines[1:4] == [
        "decided:  a.policy:21",
        "          s * work vault deny",
        f"earlier rules for this service that did not apply (the last {MAX_PASSED} of 20):",
    ]
    assert lines[5] == f"            a.policy:{21 - MAX_PASSED}: other source"


def test_a_question() -> None:
    lines = told("s * work @anyvm ask default_target=vault", "dvm")
    assert lines[0] == "outcome:  a person is asked"
    assert lines[3:5] == [
        "choices:  @dispvm:dvm, @dispvm:other-dvm, debian, dvm, far, other-dvm, relay, vault",
        "selected: vault",
    ]
    assert lines[-1] == "          s + work dvm allow"


def test_a_long_question_fits_on_a_screen() -> None:
    info = system_info()
    info["domains"] |= {f"q{number}": entry(number) for number in range(100, 200)}
    lines = describe(explain(rules("s * * @anyvm ask"), facts_from_system_info(info), request("vault")))
    assert lines[3].endswith(f", and {108 - MAX_SHOWN} more")
    assert lines[4] == "selected: none beforehand"


def test_an_allowance() -> None:
    lines = told("s * work vault allow target=dom0 user=root", "vault")
    assert lines[0] == "outcome:  allowed, to dom0 as root"
    assert lines[-1] == "          s + work vault deny"
    assert told("s * work vault allow", "vault")[0] == "outcome:  allowed, to vault as its default user"


def test_no_target_is_asked_for_where_another_rule_offers_one() -> None:
    assert told("s * work vault ask", "")[-2:] == [
        "to ask exactly this, put before all other rules:",
        "          s + work @default ask",
    ]
    assert told("", "") == ["outcome:  denied: no rule is for this call"]


@pytest.mark.parametrize(("target", "more"), [("@tag:x", {}), ("@dispvm:work", {}), ("vault", {"requested_source": "work"})])
def test_what_no_rule_can_help(target: str, more: dict[str, str]) -> None:
    lines = told("s * * * allow", target, **more)
    assert len(lines) == 1
    assert lines[0].startswith("outcome:  denied: ")


def test_what_has_no_spelling_in_a_rule_is_not_suggested() -> None:
    for argument in ("+a b", "+a\nx * * * allow", "+é"):
        assert explain(rules(""), facts(), request("vault", argument=argument)).suggestion is None


@given(
    st.sampled_from(["deny", "ask", "allow", "allow target=@dispvm"]),
    st.sampled_from(["vault", "@dispvm", "dom0", "@adminvm", "@dispvm:dvm"]),
)
def test_a_suggestion_changes_the_outcome(action: str, target: str) -> None:
    policy = rules(f"s * work * {action}")
    found = explain(policy, facts(), request(target))
    assert found.suggestion is not None
    changed = evaluate(Rules([found.suggestion, *policy.all]), facts(), request(target))
    assert verb_of(changed) is found.suggestion.action.verb
    assert verb_of(changed) is not verb_of(found.decision)
