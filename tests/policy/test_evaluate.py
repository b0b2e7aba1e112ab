"""Decisions: what the recorded cases leave out, lessons of the past, and that nothing a caller sends is without an answer."""
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.support import entry, facts, request, rules, system_info

from cloison.policy.evaluate import Allow, Ask, Decision, Deny, Request, Response, choose, evaluate, respond
from cloison.policy.facts import facts_from_system_info

ALLOW_ALL = "s * * * allow"


def decide(text: str, asked: Request) -> Decision:
    return evaluate(rules(text), facts(), asked)


def why(decision: Decision) -> str:
    assert isinstance(decision, Deny), decision
    assert decision.text
    return decision.why


def asked(decision: Decision) -> Ask:
    assert isinstance(decision, Ask), decision
    return decision


def test_the_first_match_wins_and_no_match_denies() -> None:
    text = "s +a work vault deny\ns * work vault allow\ns * work vault deny"
    assert why(decide(text, request("vault", argument="+a"))) == "rule"
    allowed = decide(text, request("vault"))
    assert isinstance(allowed, Allow)
    assert allowed.rule.line == 2
    assert why(decide(text, request("dvm"))) == "no-match"
    assert why(decide("", request("vault"))) == "no-match"


def test_qsb_038_decided_is_what_is_executed() -> None:
    """No `$`, no spelling, no shell: an odd target is a name that doesn't exist, and what was decided comes back as it is."""
    system = facts()
    odd = ("$default", "$dispvm", "work;id", "$(id)", "vault\n", " vault", "VAULT", "@dispvm ", "\uff56ault", "../vault")
    for target in odd:
        decision = evaluate(rules("s * * @default deny\ns * * * allow"), system, request(target))
        assert isinstance(decision, Deny), target
    allowed = evaluate(rules("s * * * allow target=@dispvm"), system, request("$(id)"))
    assert isinstance(allowed, Allow)
    assert allowed.target == "@dispvm:dvm"
    assert str(respond(system, allowed)).splitlines() == [
        "user=DEFAULT", "result=allow", "target=@dispvm:dvm", "target_uuid=@dispvm:uuid:00000000-0000-0000-0000-000000000003",
        "autostart=True", "requested_target=@default",
    ]


@pytest.mark.parametrize(("service", "argument"), [
    ("", "+"), ("s", ""), ("s", "a"), ("", ""), ("s\n", "+"), ("s", "+\nuser=root"), ("s", "+\0"),
])
def test_qsb_089_empty_service_names(service: str, argument: str) -> None:
    assert why(decide("* * * * allow", request("vault", service=service, argument=argument))) == "request-service"


def test_qsb_099_a_refusal_tells_the_caller_nothing() -> None:
    """What goes back has fixed fields, and none is of a refusal, a rule, or a reason."""
    assert Response._fields == (
        "user", "target", "target_uuid", "autostart", "requested_target", "service", "policy_source",
    )
    assert not {"target", "user"} & set(Deny._fields)


def test_policy_is_decided_anew_when_a_name_changes_hands() -> None:
    text = "s * @tag:blue vault allow"
    info = system_info()
    assert isinstance(evaluate(rules(text), facts_from_system_info(info), request("vault")), Allow)
    info["domains"]["work"] = entry(99)
    assert why(evaluate(rules(text), facts_from_system_info(info), request("vault"))) == "no-match"


@pytest.mark.parametrize("target", [
    "*", "@anyvm", "@tag:blue", "@type:AppVM", "@dispvm:", "@dispvm:@tag:blue", "@", "@x", "@@",
])
def test_what_can_not_be_asked_for(target: str) -> None:
    assert why(decide(ALLOW_ALL, request(target))) == "request-target-token"


@pytest.mark.parametrize("target", ["@dispvm:work", "@dispvm:unknown", "@dispvm:uuid:00000000-0000-0000-0000-000000000001"])
def test_a_disposable_of_what_is_no_template(target: str) -> None:
    assert why(decide(ALLOW_ALL, request(target))) == "not-dispvm-template"
    assert why(decide(f"s * * * allow target={target}", request("vault"))) == "not-dispvm-template"


@pytest.mark.parametrize(("target", "reached"), [
    ("vault", "vault"), ("dom0", "dom0"), ("@adminvm", "dom0"), ("@dispvm", "@dispvm:dvm"),
    ("@dispvm:other-dvm", "@dispvm:other-dvm"),
])
def test_where_an_allowed_call_goes(target: str, reached: str) -> None:
    for text in (ALLOW_ALL, f"s * * * allow target={target}"):
        decision = decide(text, request(target))
        assert isinstance(decision, Allow)
        assert decision.target == reached


@pytest.mark.parametrize("target", ["", "@default", "unknown"])
def test_no_target(target: str) -> None:
    assert why(decide(ALLOW_ALL, request(target))) == "allow-without-target"


def test_without_a_default_disposable() -> None:
    assert why(decide(ALLOW_ALL, request("@dispvm", source="vault"))) == "no-default-dispvm"
    later = f"s * * @dispvm:dvm allow\n{ALLOW_ALL} target=dom0"
    assert why(decide(later, request("@dispvm", source="vault"))) == "no-default-dispvm"
    assert why(decide("s * * * ask target=@dispvm autostart=no", request("@dispvm", source="vault"))) == "ask-no-targets"


@pytest.mark.parametrize(("target", "allowed"), [("work", True), ("dom0", True), ("vault", False), ("@dispvm", False)])
def test_autostart_no(target: str, allowed: bool) -> None:
    decision = decide("s * * * allow autostart=no notify=yes", request(target, source="relay"))
    assert isinstance(decision, Allow) is allowed
    assert decision.notify


def test_the_list_to_choose_from() -> None:
    text = "s * work vault deny\ns * * @tag:blue ask\ns * * @anyvm ask\ns * work @adminvm ask"
    decision = asked(decide(text, request("@default")))
    assert decision.targets == {
        "debian", "dvm", "far", "other-dvm", "relay", "dom0", "@dispvm:dvm", "@dispvm:other-dvm",
    }       # not the source, nor what is internal, nor what an earlier rule denies
    assert decision.default is None


@pytest.mark.parametrize(("default", "selected"), [
    ("vault", "vault"), ("unknown", None), ("hidden", None), ("@dispvm", "@dispvm:dvm"), ("@adminvm", None),
    ("@dispvm:unknown", None),
])
def test_what_is_preselected_is_among_the_choices(default: str, selected: str | None) -> None:
    assert asked(decide(f"s * * @anyvm ask default_target={default}", request("vault"))).default == selected


def test_the_answer_must_be_one_of_the_choices() -> None:
    system = facts()
    question = asked(evaluate(rules("s * * @anyvm ask user=root"), system, request("@default")))
    chosen = choose(question, "vault")
    assert isinstance(chosen, Allow)
    assert str(respond(system, chosen)).startswith("user=root\nresult=allow\ntarget=vault\n")
    for target in ("dom0", "work", "hidden", "unknown", "", "@dispvm", "vault "):
        assert why(choose(question, target)) == "not-offered"


def test_a_choice_that_can_not_be_carried_out() -> None:
    system = facts()
    for target in ("@dispvm", "unknown", "@dispvm:unknown"):
        chosen = choose(asked(evaluate(rules(f"s * * * ask target={target}"), system, request("vault"))), target)
        assert isinstance(chosen, Allow)
        assert why(_denied(respond(system, chosen))) == "unknown-target"


def _denied(response: object) -> Deny:
    assert isinstance(response, Deny)
    return response


def test_what_does_not_exist_is_asked_for_nowhere() -> None:
    assert why(decide("s * * @anyvm ask", request("vault", source="ghost"))) == "unknown-source"
    assert why(decide("s * * @anyvm ask\ns * * @dispvm:unknown ask", request("vault"))) == "unknown-template"


@pytest.mark.parametrize(("text", "target"), [
    ("s * * @anyvm ask", "vault"), ("s * * @dispvm:@tag:blue deny\ns * * * allow target=vault", "@dispvm"),
])
def test_where_the_callers_disposable_template_matters_and_does_not_exist_the_call_is_denied(text: str, target: str) -> None:
    info = system_info()
    info["domains"]["work"]["default_dispvm"] = "gone"
    decision = evaluate(rules(text), facts_from_system_info(info), request(target))
    assert isinstance(decision, Deny)
    assert decision.why == "unknown-template"


def test_a_qube_can_not_call_itself() -> None:
    decision = decide(ALLOW_ALL, request("work"))
    assert isinstance(decision, Allow)
    assert why(_denied(respond(facts(), decision))) == "loopback"


@pytest.mark.parametrize(("source", "claimed", "reason"), [
    ("relay", "unknown", "requested-source-unknown"), ("relay", "work", "requested-source-not-remote"),
    ("work", "far", "requested-source-wrong-relay"), ("relay", "@adminvm", "requested-source-unknown"),
    ("relay", "dom0", "requested-source-not-remote"),
])
def test_a_relay_speaks_only_for_its_own(source: str, claimed: str, reason: str) -> None:
    assert why(decide(ALLOW_ALL, request("vault", source=source, requested_source=claimed))) == reason


def test_calls_from_and_to_another_machine() -> None:
    system = facts()
    incoming = evaluate(rules("s * far vault allow"), system, request("vault", source="relay", requested_source="far"))
    assert isinstance(incoming, Allow)
    assert str(respond(system, incoming)).endswith("requested_target=vault\npolicy_source=far")
    outgoing = evaluate(rules("s * work far allow user=root"), system, request("far", argument="+a"))
    assert isinstance(outgoing, Allow)
    assert str(respond(system, outgoing)) == (
        "user=DEFAULT\nresult=allow\ntarget=relay\ntarget_uuid=uuid:00000000-0000-0000-0000-000000000006\n"
        "autostart=True\nrequested_target=far\nservice=test.Transport+far+s+a"
    )


@pytest.mark.parametrize(("changes", "reason"), [
    ({"relayvm": None}, "relayvm-unset"), ({"relayvm": "gone"}, "relayvm-unset"), ({"transport_rpc": None}, "transport-unset"),
    ({"transport_rpc": ""}, "transport-unset"),
])
def test_a_remote_qube_without_a_way(changes: dict[str, Any], reason: str) -> None:
    info = system_info()
    info["domains"]["far"].update(changes)
    system = facts_from_system_info(info)
    decision = evaluate(rules(ALLOW_ALL), system, request("far"))
    assert isinstance(decision, Allow)
    assert why(_denied(respond(system, decision))) == reason


NAMES = st.sampled_from([
    "work", "vault", "dvm", "dom0", "@adminvm", "@default", "@dispvm", "@dispvm:dvm", "@dispvm:", "far", "relay", "ghost",
    "uuid:00000000-0000-0000-0000-000000000001", "*", "@tag:blue", "", "\0",
])
TOKENS = st.sampled_from([
    "*", "@anyvm", "@adminvm", "work", "@dispvm:dvm", "@dispvm:ghost", "@dispvm:@tag:blue", "@tag:blue", "@type:AppVM", "ghost",
])
ACTIONS = st.sampled_from([
    "allow", "allow target=@dispvm", "allow target=ghost", "allow target=@dispvm:ghost", "allow autostart=no", "deny",
    "ask", "ask target=@dispvm", "ask default_target=@dispvm", "ask target=far", "ask autostart=no",
])


@given(st.lists(st.tuples(TOKENS, TOKENS, ACTIONS), max_size=6), NAMES | st.text(), NAMES | st.text(), NAMES | st.text())
def test_every_request_has_an_answer(lines: list[tuple[str, str, str]], source: str, target: str, claimed: str) -> None:
    system = facts()
    policy = rules("\n".join(f"s * {' '.join(line)}" for line in lines))
    decision = evaluate(policy, system, Request("s", "+", source, target, claimed))
    if isinstance(decision, Ask):
        assert decision.targets
        assert decision.default is None or decision.default in decision.targets
        decision = choose(decision, min(decision.targets))
    if isinstance(decision, Allow):
        response = respond(system, decision)
        assert isinstance(response, Deny) or all("=" in line for line in str(response).splitlines())
    else:
        assert why(decision)


@given(st.text(), st.text(), st.text())
def test_an_answer_is_never_split_by_what_was_asked_for(target: str, argument: str, source: str) -> None:
    """Each field of the answer stays on its line: the target comes from the facts, never from the request."""
    system = facts()
    policy = rules("s * * @default allow target=far\ns * * * allow")
    decision = evaluate(policy, system, request(target, source, f"+{argument}"))
    if isinstance(decision, Allow):
        response = respond(system, decision)
        if not isinstance(response, Deny):
            assert len(str(response).split("\n")) == len([line for line in str(response).split("\n") if "=" in line])
