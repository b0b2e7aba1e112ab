"""What GetSystemInfo answers, and what is not such an answer."""
from __future__ import annotations

from typing import Any

import pytest
from tests.policy.support import entry, facts

from cloison.policy import facts as module
from cloison.policy.facts import MAX_QUBES, MAX_TEXT, BadFacts, facts_from_system_info


def test_a_system() -> None:
    system = facts()
    work = system.qubes["work"]
    assert system.qubes["uuid:00000000-0000-0000-0000-000000000001"] is work
    assert work.tags == {"blue"}
    assert (work.klass, work.default_dispvm, work.running, work.internal) == ("AppVM", "dvm", True, False)
    assert not system.qubes["vault"].running
    assert system.disposables == {"@dispvm:dvm", "@dispvm:other-dvm"}
    assert system.hidden == {"hidden", "@dispvm:hidden"}
    assert system.template("work") is None
    assert system.template("uuid:00000000-0000-0000-0000-000000000003") is system.qubes["dvm"]


@pytest.mark.parametrize("state", [
    "Halted", "Paused", "Suspended", "Transient", "Halting", "Crashed", "Dying", "NA", "running", "",
])
def test_only_running_is_running(state: str) -> None:
    assert not facts_from_system_info({"domains": {"a": entry(1, power_state=state)}}).qubes["a"].running


@pytest.mark.parametrize("changes", [
    {"type": None}, {"type": 1}, {"tags": None}, {"tags": "x"}, {"tags": [1]}, {"tags": ["x" * (MAX_TEXT + 1)]},
    {"template_for_dispvms": "False"}, {"template_for_dispvms": None}, {"template_for_dispvms": 1}, {"default_dispvm": 1},
    {"power_state": None}, {"uuid": None}, {"uuid": "0" * (MAX_TEXT + 1)}, {"relayvm": []}, {"transport_rpc": {}},
])
def test_a_wrong_type_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadFacts):
        facts_from_system_info({"domains": {"a": entry(1, **changes)}})


@pytest.mark.parametrize("key", ["type", "tags", "template_for_dispvms", "power_state", "uuid"])
def test_a_missing_key_is_refused(key: str) -> None:
    qube = entry(1)
    del qube[key]
    with pytest.raises(BadFacts, match="a"):
        facts_from_system_info({"domains": {"a": qube}})


@pytest.mark.parametrize("data", [
    None, [], {}, {"domains": None}, {"domains": []},
    {"domains": {"": entry(1)}}, {"domains": {"a": None}}, {"domains": {1: entry(1)}},
    {"domains": {"x" * (MAX_TEXT + 1): entry(1)}}, {"domains": dict.fromkeys(range(MAX_QUBES + 1))},
])
def test_another_shape_is_refused(data: object) -> None:
    with pytest.raises(BadFacts):
        facts_from_system_info(data)


@pytest.mark.parametrize(("bound", "system"), [
    ("MAX_QUBES", {"a": entry(1), "b": entry(2)}), ("MAX_TAGS", {"a": entry(1, tags=["x", "y"])}),
])
def test_so_many_qubes_and_tags_and_not_one_more(
    monkeypatch: pytest.MonkeyPatch, bound: str, system: dict[str, Any],
) -> None:
    monkeypatch.setattr(module, bound, 2)
    assert facts_from_system_info({"domains": system}).names == set(system)
    monkeypatch.setattr(module, bound, 1)
    with pytest.raises(BadFacts):
        facts_from_system_info({"domains": system})


@pytest.mark.parametrize("key", ["type", "uuid", "default_dispvm", "relayvm", "transport_rpc", "power_state"])
def test_the_longest_texts(key: str) -> None:
    facts_from_system_info({"domains": {"a": entry(1, **{key: "x" * MAX_TEXT})}})
    with pytest.raises(BadFacts):
        facts_from_system_info({"domains": {"a": entry(1, **{key: "x" * (MAX_TEXT + 1)})}})


@pytest.mark.parametrize(("key", "attribute"), [
    ("default_dispvm", "default_dispvm"), ("relayvm", "relayvm"), ("transport_rpc", "transport_rpc"),
])
def test_absent_null_and_empty_are_none(key: str, attribute: str) -> None:
    absent = entry(1)
    del absent[key]
    for qube in (absent, entry(1, **{key: None}), entry(1, **{key: ""})):
        assert getattr(facts_from_system_info({"domains": {"a": qube}}).qubes["a"], attribute) is None
    assert getattr(facts_from_system_info({"domains": {"a": entry(1, **{key: "b"})}}).qubes["a"], attribute) == "b"


def test_the_largest_values() -> None:
    system = facts_from_system_info({"domains": {"x" * MAX_TEXT: entry(1, tags=["y" * MAX_TEXT])}})
    assert len(system.names) == 1
