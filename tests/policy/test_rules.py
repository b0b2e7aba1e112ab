"""The index by service keeps the order of the files."""
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.policy.support import rules

from cloison.policy.rules import Rules


@given(st.lists(st.sampled_from(["a", "b", "*"])))
def test_the_index_holds_what_may_apply_in_order(services: list[str]) -> None:
    parsed = rules("\n".join(f"{service} * x y deny" for service in services))
    for service in ("a", "b", "c"):
        assert [rule.line for rule in parsed.for_service(service)] == [
            number for number, each in enumerate(services, 1) if each in (service, "*")
        ]


def test_no_rules() -> None:
    assert list(Rules([]).for_service("a")) == []
