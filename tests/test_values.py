"""The checked value types: tables of what passes and what does not."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.values import InvalidValue, PowerState, QubeName, Uuid, VolumeName

UUID = "0123abcd-0123-4567-89ab-0123456789ab"
TYPES = (QubeName, Uuid, VolumeName)


@pytest.mark.parametrize("text", ["a", "Z", "work", "sys-net", "a.b_c-9", "a" * 31, "dm", "dom0", "domain-0", "None"])
def test_qube_names(text: str) -> None:
    assert QubeName(text) == text


@pytest.mark.parametrize("text", [
    "", "a" * 32, "1a", "-a", ".a", "_a", "a b", "a\n", "\na", "a/b", "../a", "a,b", "a=b", 'a"b', "a+b", "a@b", "a:b", "a%b",
    "é", "a\0", "aé", "x-dm", "-dm", "none", "default", "Domain-0", "@adminvm", "\u0661a", "a\u0661",
])
def test_not_qube_names(text: str) -> None:
    with pytest.raises(InvalidValue):
        QubeName(text)


@pytest.mark.parametrize("text", ["", UUID[:-1], UUID + "0", UUID.upper(), UUID.replace("-", "_"), UUID + "\n", "g" + UUID[1:]])
def test_not_uuids(text: str) -> None:
    with pytest.raises(InvalidValue):
        Uuid(text)


def test_uuid() -> None:
    assert Uuid(UUID) == UUID


@pytest.mark.parametrize(("text", "fine"), [
    ("root", True), ("a", True), ("a" * 32, True), ("a-b_9", True), ("", False), ("a" * 33, False), ("9", False),
    ("Root", False), ("a.b", False), ("../x", False), ("a\n", False), ("a/b", False), ("-a", False),
])
def test_volume_names(text: str, fine: bool) -> None:
    if fine:
        assert VolumeName(text) == text
    else:
        with pytest.raises(InvalidValue):
            VolumeName(text)


def test_power_states_are_the_words_of_the_admin_api() -> None:
    assert [str(state) for state in PowerState] == [
        "Halted", "Transient", "Running", "Paused", "Suspended", "Halting", "Dying", "Crashed", "NA",
    ]
    assert f"{PowerState.RUNNING}" == "Running"


@pytest.mark.parametrize("kind", TYPES)
@given(st.text(max_size=40))
def test_any_text_is_the_value_itself_or_refused_in_one_sentence(kind: type[str], text: str) -> None:
    try:
        value = kind(text)
    except InvalidValue as error:
        assert str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 300
    else:
        assert value == text
        assert isinstance(value, kind)
