"""Questions to a person, and notices: each field with what it may hold, at its bounds, and everything else refused."""
from __future__ import annotations

import json
from typing import Any

import pytest

from cloison.errors import PeerError
from cloison.wire import ask
from cloison.wire.ask import MAX_ANSWER, RESOLUTIONS, Notice, Question

QUESTION = {"source": "work", "service": "test.S", "argument": "+a", "targets": ["vault", "@dispvm:dvm"], "default_target": "vault",
            "icons": {"work": "appvm-red", "@dispvm:dvm": ""}}
NOTICE = {"resolution": "deny", "service": "test.S", "argument": "+", "source": "work", "target": "@default"}
UUID = "uuid:12345678-1234-1234-1234-123456789abc"


def said(service: str, fields: object, words: str = "dom0 name dom0") -> bytes:
    return f"{service} {words}\0".encode() + json.dumps(fields).encode()


def test_both_there_and_back() -> None:
    question = Question("work", "test.S", "+a", ("@dispvm:dvm", "vault"), "vault", {"work": "appvm-red", "@dispvm:dvm": ""})
    assert ask.parse(said("policy.Ask", QUESTION)) == ask.parse(ask.encode_question(question)) == question
    notice = Notice("deny", "test.S", "+", "work", "@default")
    assert ask.parse(said("policy.Notify", NOTICE)) == ask.parse(ask.encode_notice(notice)) == notice
    assert ask.encode_question(question).startswith(b"policy.Ask dom0 name dom0\0")
    assert ask.encode_notice(notice).startswith(b"policy.Notify dom0 name dom0\0")


@pytest.mark.parametrize(("field", "good", "bad"), [
    ("source", ["a", "a" * 63, "@dispvm:dvm", "@adminvm", "@default", "@dispvm", UUID, f"@dispvm:{UUID}", "a_b.c-d"],
     ["", "a" * 64, "1a", "@anyvm", "@dispvm:", "a b", "a\n", "é", "uuid:x", f"{UUID}0", 1, None, ["a"]]),
    ("service", ["a", "a" * 255, "9.-_"], ["", "a" * 256, "a+b", "a/b", "a b", "a\n", None]),
    ("argument", ["+", "+" + "a" * 65000, "+a+b"], ["", "a", "+" + "a" * 65001, "+a b", "+é", None]),
])
def test_texts_of_a_question_and_of_a_notice(field: str, good: list[str], bad: list[object]) -> None:
    for service, fields in (("policy.Ask", QUESTION), ("policy.Notify", NOTICE)):
        for text in good:
            assert getattr(ask.parse(said(service, {**fields, field: text})), field) == text
        for wrong in bad:
            with pytest.raises(PeerError):
                ask.parse(said(service, {**fields, field: wrong}))
        with pytest.raises(PeerError):
            ask.parse(said(service, {key: value for key, value in fields.items() if key != field}))


@pytest.mark.parametrize("fields", [
    {**QUESTION, "targets": []}, {**QUESTION, "targets": None}, {**QUESTION, "targets": "vault"}, {**QUESTION, "targets": ["a b"]},
    {**QUESTION, "targets": ["vault", 1]}, {**QUESTION, "default_target": "other"}, {**QUESTION, "default_target": None},
    {**QUESTION, "icons": None}, {**QUESTION, "icons": []}, {**QUESTION, "icons": {"a b": "x"}},
    {**QUESTION, "icons": {"a": "x" * 129}}, {**QUESTION, "icons": {"a": "x/y"}}, {**QUESTION, "icons": {"a": 1}},
])
def test_what_is_no_question(fields: dict[str, Any]) -> None:
    with pytest.raises(PeerError):
        ask.parse(said("policy.Ask", fields))


def test_targets_are_each_there_once_and_icons_may_be_none() -> None:
    found = ask.parse(said("policy.Ask", {**QUESTION, "targets": ["b", "a", "b"], "default_target": "", "icons": {"b": "x" * 128}}))
    assert isinstance(found, Question) and found.targets == ("a", "b") and found.icons == {"b": "x" * 128}
    assert found.default_target == ""


@pytest.mark.parametrize(("count", "fine"), [(2, True), (3, False)])
@pytest.mark.parametrize("field", ["targets", "icons"])
def test_so_many_targets_and_icons(monkeypatch: pytest.MonkeyPatch, field: str, count: int, fine: bool) -> None:
    monkeypatch.setattr(ask, "MAX_TARGETS", 2)
    names = [f"a{number}" for number in range(count)]
    fields = {**QUESTION, "default_target": "", field: names if field == "targets" else dict.fromkeys(names, "x")}
    if fine:
        assert len(getattr(ask.parse(said("policy.Ask", fields)), field)) == count
    else:
        with pytest.raises(PeerError):
            ask.parse(said("policy.Ask", fields))


@pytest.mark.parametrize("resolution", [*RESOLUTIONS, "", "Deny", None, 1])
def test_resolutions(resolution: object) -> None:
    data = said("policy.Notify", {**NOTICE, "resolution": resolution})
    if resolution in RESOLUTIONS:
        assert isinstance(found := ask.parse(data), Notice) and found.resolution == resolution
    else:
        with pytest.raises(PeerError):
            ask.parse(data)


@pytest.mark.parametrize("data", [
    b"", b"policy.Ask dom0", b"policy.Ask\0{}", said("policy.Other", QUESTION), said("policy.Ask", [QUESTION]),
    said("policy.Ask", 1),
    b"policy.Ask dom0\0{", b"policy.Ask dom0\0\xff", b"policy.Ask dom0\0" + b"[" * 100_000, said("policy.Notify", QUESTION),
    said("policy.Ask", NOTICE), b"policy.Ask dom0 " + json.dumps(QUESTION).encode(),
])
def test_what_is_neither(data: bytes) -> None:
    with pytest.raises(PeerError):
        ask.parse(data)


def test_an_argument_of_the_call_itself_means_nothing() -> None:
    assert isinstance(ask.parse(said("policy.Ask+x", QUESTION)), Question)


@pytest.mark.parametrize(("answer", "choice"), [
    (b"deny", None), (b" deny\n", None), (b"deny".ljust(MAX_ANSWER + 1), None), (b"allow:" + b"a" * 63, "a" * 63),
    (b"allow:a".ljust(MAX_ANSWER), "a"),
])
def test_answers(answer: bytes, choice: str | None) -> None:
    assert ask.parse_answer(answer) == choice


@pytest.mark.parametrize("answer", [
    b"allow:a".ljust(MAX_ANSWER + 1), b"", b"allow", b"allow:", b"deny allow:a", b"allow:a\0", b"allow:" + b"a" * 64, b"\xff",
    b"xallow:a", b"DENY",
])
def test_what_is_no_answer(answer: bytes) -> None:
    with pytest.raises(PeerError):
        ask.parse_answer(answer)


def test_an_answer_as_it_is_said() -> None:
    assert ask.encode_answer(None) == b"deny" and ask.encode_answer("vault") == b"allow:vault"
