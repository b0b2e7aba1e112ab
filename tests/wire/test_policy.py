"""What is said to the policy daemon, and to the agent that asks: total over hostile bytes."""
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import ask, policy
from cloison.wire.policy import Query

QUERY = Query("work", "@dispvm:dvm", "qubes.Filecopy+a", "remote", True, True)
NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,30}", fullmatch=True)


@pytest.mark.parametrize("query", [QUERY, Query("work", "", "s"), Query("work", "net", "s+", just_evaluate=True)])
def test_a_query_survives(query: Query) -> None:
    data = policy.encode_query(query)
    assert policy.is_whole(data)
    assert not policy.is_whole(data[:-1])
    assert policy.parse_query(data) == policy.parse_query(data[:-2]) == query


@pytest.mark.parametrize("query", [Query("work", "a\nresult=allow", "s"), Query("work", "é", "s"), Query("work\n\n", "", "s")])
def test_no_line_can_be_smuggled_in(query: Query) -> None:
    with pytest.raises(PeerError):
        policy.encode_query(query)


@given(st.binary(max_size=200) | st.lists(st.sampled_from([
    b"source=work", b"intended_target=", b"service_and_arg=s", b"requested_source=r", b"just_evaluate=yes",
    b"assume_yes_for_ask=no", b"", b"=", b"source", b"x=1"]), max_size=9).map(b"\n".join))
def test_a_query_is_understood_or_refused(untrusted: bytes) -> None:
    try:
        query = policy.parse_query(untrusted)
    except PeerError:
        return
    assert query.source and query.untrusted_service
    assert policy.parse_query(policy.encode_query(query)) == query


def test_a_request_beyond_the_limit() -> None:
    assert not policy.is_whole(b"x" * policy.MAX_REQUEST)
    with pytest.raises(PeerError):
        policy.is_whole(b"x" * (policy.MAX_REQUEST + 1))


HEAD = b"policy.EvalGUI+test.S+a gui name dom0\0"


@pytest.mark.parametrize(("windows", "owner"), [(True, "gui"), (False, "")])
def test_an_evaluation(windows: bool, owner: str) -> None:
    assert policy.parse_evaluation(HEAD + b"work\0vault", windows=windows) == Query(
        "work", "vault", "test.S+a", assume_yes=True, just_evaluate=True, window_owner=owner)


@pytest.mark.parametrize(("untrusted", "fine"), [
    (HEAD + b"a" * 31 + b"\0" + b"b" * 63, True), (HEAD + b"a" * 32 + b"\0b", False), (HEAD + b"a\0" + b"b" * 64, False),
    (HEAD + b"\0b", False), (HEAD + b"a\0", False), (HEAD + b"ab", False), (HEAD[:-1] + b"a", False), (HEAD + b"a\0b\0", False),
    (b"policy.EvalGUI+ gui\0a\0b", False), (b"policy.EvalGUI gui\0a\0b", False), (b"policy.EvalGUI+s\0a\0b", False),
    (b"x+" + b"s" * (policy.MAX_DESCRIPTOR - 4) + b" g\0a\0b", True), (HEAD + b"a!\0b", False),
    (b"x+" + b"s" * (policy.MAX_DESCRIPTOR + policy.MAX_EVALUATION - 8) + b" g\0a\0b", True),
    (b"x+" + b"s" * (policy.MAX_DESCRIPTOR + policy.MAX_EVALUATION - 7) + b" g\0a\0b", False),
])
def test_lengths_and_forms_of_an_evaluation(untrusted: bytes, fine: bool) -> None:
    if fine:
        assert policy.parse_evaluation(untrusted, windows=True).just_evaluate
    else:
        with pytest.raises(PeerError):
            policy.parse_evaluation(untrusted, windows=True)


@given(st.binary(max_size=200), st.booleans())
def test_an_evaluation_is_understood_or_refused(untrusted: bytes, windows: bool) -> None:
    for data in (untrusted, b"policy.EvalSimple+s work\0" + untrusted):
        try:
            query = policy.parse_evaluation(data, windows=windows)
        except PeerError:
            continue
        assert query.just_evaluate and query.assume_yes and 1 <= len(query.source) <= 31 and 1 <= len(query.untrusted_target) <= 63


@given(st.builds(ask.Question, NAMES, NAMES, st.just("+"), st.lists(NAMES, min_size=1, max_size=5, unique=True).map(
    lambda names: tuple(sorted(names))), st.just(""), st.dictionaries(NAMES, NAMES, max_size=3)))
def test_a_question_survives(question: ask.Question) -> None:
    assert ask.parse(ask.encode_question(question)) == question


@given(st.binary(max_size=100) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["source", "service", "argument", "targets", "default_target", "icons", "resolution", "target"]), inner),
).map(lambda value: json.dumps(value).encode()))
def test_a_question_is_understood_or_refused(untrusted: bytes) -> None:
    for service in (b"policy.Ask", b"policy.Notify"):
        for data in (untrusted, service + b" dom0 name dom0\0" + untrusted):
            try:
                ask.parse(data)
            except PeerError:
                continue


@pytest.mark.parametrize(("data", "chosen"), [(b"deny", None), (b"deny\n", None), (b"allow:work", "work"),
                                              (b"allow:@dispvm:dvm\n", "@dispvm:dvm")])
def test_an_answer(data: bytes, chosen: str | None) -> None:
    assert ask.parse_answer(data) == chosen
    assert ask.parse_answer(ask.encode_answer(chosen)) == chosen


@given(st.binary(max_size=200))
def test_any_other_answer_is_refused(untrusted: bytes) -> None:
    try:
        chosen = ask.parse_answer(untrusted)
    except PeerError:
        return
    assert chosen is None or untrusted.strip() == f"allow:{chosen}".encode()


@pytest.mark.parametrize("length", [0, 1, 255, 256])
def test_lengths_of_a_service(length: int) -> None:
    question = ask.Question("work", "s" * length, "+", ("net",), "", {})
    if 1 <= length <= 255:
        assert ask.parse(ask.encode_question(question)) == question
    else:
        with pytest.raises(PeerError):
            ask.parse(ask.encode_question(question))
