"""Which word may stand where, what it matches, what it stands for."""
from __future__ import annotations

import pytest
from tests.policy.support import facts

from cloison.policy.tokens import Column, Endpoint, TokenError, Unresolvable, parse_token

UUID = "uuid:00000000-0000-0000-0000-000000000001"
ZERO = "uuid:00000000-0000-0000-0000-000000000000"
S, T, R, Q = Column.SOURCE, Column.TARGET, Column.REDIRECT, Column.REQUEST
PLACES = {
    "work": S | T | R | Q, "dom0": S | T | R | Q, UUID: S | T | R | Q, ZERO: S | T | R | Q, "@adminvm": S | T | R | Q,
    "*": S | T, "@anyvm": S | T, "@default": T | Q, "@dispvm": T | R | Q,
    "@dispvm:dvm": S | T | R | Q, f"@dispvm:{UUID}": S | T | R | Q,
    "@dispvm:@tag:x": S | T, "@tag:x": S | T, "@type:AppVM": S | T,
}
EVERYTHING = {
    "dom0", "work", "vault", "dvm", "other-dvm", "hidden", "relay", "far", "debian",
    "@dispvm", "@dispvm:dvm", "@dispvm:other-dvm",
}


@pytest.mark.parametrize("text", PLACES)
@pytest.mark.parametrize("column", list(Column))
def test_a_word_stands_only_in_its_columns(text: str, column: Column) -> None:
    if column in PLACES[text]:
        assert parse_token(text, column).text == text
    else:
        with pytest.raises(TokenError) as caught:
            parse_token(text, column)
        assert caught.value.kind == "token"


@pytest.mark.parametrize("column", list(Column))
@pytest.mark.parametrize(("text", "kind"), [
    ("", "token-empty"), ("@tag:", "token-empty"), ("@type:", "token-empty"), ("@dispvm:", "token-empty"),
    ("@dispvm:@tag:", "token-empty"),
    ("@", "token"), ("@nothing", "token"), ("@ANYVM", "token"), ("@dispvm:@type:x", "token"), ("@dispvm:@tag:@x", "token"),
    ("@tag:@x", "token"), ("@tag", "token"), ("@dispvm:@dispvm", "token"),
])
def test_words_without_meaning(text: str, kind: str, column: Column) -> None:
    with pytest.raises(TokenError) as caught:
        parse_token(text, column)
    assert caught.value.kind == kind


@pytest.mark.parametrize(("text", "column", "sentence"), [
    ("", S, "a qube or a word for qubes is missing"), ("@tag:", S, "'@tag:' lacks what comes after the colon"),
    ("@nothing", S, "'@nothing' has no meaning"), ("@anyvm", R, "'@anyvm' can't stand here"),
])
def test_what_a_person_reads_of_a_wrong_word(text: str, column: Column, sentence: str) -> None:
    with pytest.raises(TokenError) as caught:
        parse_token(text, column)
    assert str(caught.value) == sentence


MATCHES = [
    ("*", {"dom0", "@adminvm", ZERO, "work", UUID, "vault", "@default", "@dispvm", "@dispvm:dvm", "unknown"}),
    ("@anyvm", {"work", UUID, "vault", "@default", "@dispvm", "@dispvm:dvm", "unknown"}),
    ("@adminvm", {"dom0", "@adminvm", ZERO}),
    ("dom0", {"dom0", "@adminvm", ZERO}),
    (ZERO, {"dom0", "@adminvm", ZERO}),
    ("work", {"work", UUID}),
    (UUID, {"work", UUID}),
    ("unknown", {"unknown"}),
    ("@tag:blue", {"work", UUID}),
    ("@type:AppVM", {"work", UUID, "vault"}),
    ("@type:AdminVM", {"dom0", ZERO}),
    ("@type:Nothing", set()),
    ("@default", {"@default"}),
    ("@dispvm", {"@dispvm"}),
    ("@dispvm:dvm", {"@dispvm", "@dispvm:dvm"}),
    ("@dispvm:uuid:00000000-0000-0000-0000-000000000003", {"@dispvm:dvm"}),
    ("@dispvm:@tag:blue", {"@dispvm", "@dispvm:dvm"}),
    ("@dispvm:@tag:green", set()),
]


@pytest.mark.parametrize(("token", "matched"), MATCHES)
def test_what_a_target_matches(token: str, matched: set[str]) -> None:
    system = facts()
    caller = Endpoint("work", system)
    ends = MATCHES[0][1]
    assert {end for end in ends if parse_token(token, T).matches(Endpoint(end, system, caller))} == matched


def test_a_default_disposable_that_is_missing() -> None:
    system = facts()
    end = Endpoint("@dispvm", system, Endpoint("vault", system))
    assert parse_token("@dispvm", T).matches(end)
    assert not parse_token("@dispvm:@tag:blue", T).matches(end)
    with pytest.raises(Unresolvable) as caught:
        parse_token("@dispvm:dvm", T).matches(end)
    assert str(caught.value) == "vault has no default disposable template"


def test_a_source_is_never_a_disposable_to_be() -> None:
    assert not parse_token("@dispvm:dvm", S).matches(Endpoint("@dispvm", facts()))


@pytest.mark.parametrize(("token", "targets"), [
    ("*", EVERYTHING),
    ("@anyvm", EVERYTHING - {"dom0"}),
    ("@adminvm", {"@adminvm"}),
    ("dom0", {"dom0"}),
    ("work", {"work"}),
    (UUID, {"work"}),
    ("unknown", set()),
    ("@default", set()),
    ("@dispvm", {"@dispvm"}),
    ("@dispvm:dvm", {"@dispvm:dvm"}),
    ("@dispvm:uuid:00000000-0000-0000-0000-000000000003", {"@dispvm:dvm"}),
    ("@dispvm:work", set()),
    ("@dispvm:@tag:blue", {"@dispvm:dvm"}),
    ("@tag:blue", {"work", "dvm"}),
    ("@type:TemplateVM", {"debian"}),
])
def test_what_a_word_stands_for(token: str, targets: set[str]) -> None:
    assert parse_token(token, T).expand(facts()) == targets


def test_a_template_that_does_not_exist_stands_for_nothing_sure() -> None:
    with pytest.raises(Unresolvable):
        parse_token("@dispvm:unknown", T).expand(facts())
