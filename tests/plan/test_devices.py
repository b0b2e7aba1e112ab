"""Names, options and rules of devices, as tables."""
from __future__ import annotations

import pytest
from tests.plan.test_lifecycle import system

from cloison.devicetext import Device
from cloison.errors import BadValue, CloisonError
from cloison.model.devices import Assignment
from cloison.model.exposed import Exposed
from cloison.plan import devices as plan

STICK = Device("block", "net", "sda", "0951:1666")


def exposed(device: Device = STICK, *, writable: bool = True) -> Exposed:
    return Exposed(device, "b******", {}, writable)


@pytest.mark.parametrize(("options", "writable", "expected"), [
    ({}, True, (None, False, False)), ({}, False, (None, True, False)), ({"read-only": "TRUE"}, True, (None, True, False)),
    ({"read-only": "off"}, True, (None, False, False)), ({"read-only": "1"}, False, (None, True, False)),
    ({"frontend-dev": "xvdl", "devtype": "disk"}, True, ("xvdl", False, False)),
    ({"frontend-dev": "sdc"}, True, ("sdc", False, False)),
    ({"devtype": "cdrom"}, True, (None, True, True)), ({"devtype": "cdrom", "read-only": "yes"}, False, (None, True, True)),
])
def test_options(options: dict[str, str], writable: bool, expected: tuple[str | None, bool, bool]) -> None:
    assert plan.block_options(options, exposed(writable=writable)) == expected


@pytest.mark.parametrize(("options", "writable"), [
    ({"read-only": "no"}, False), ({"read-only": "maybe"}, True), ({"frontend-dev": "hda"}, True), ({"frontend-dev": "xvd"}, True),
    ({"frontend-dev": "xvdi;x"}, True), ({"frontend-dev": "xvdb"}, True), ({"color": "red"}, True), ({"devtype": "floppy"}, True),
    ({"devtype": "cdrom", "read-only": "no"}, True),
])
def test_options_that_can_not_be_had(options: dict[str, str], writable: bool) -> None:
    with pytest.raises(BadValue):
        plan.block_options(options, exposed(writable=writable))


@pytest.mark.parametrize(("taken", "wanted", "name"), [
    ((), None, "xvdi"), (("xvdi", "xvdk"), None, "xvdj"), (("xvdi",), "xvdz", "xvdz"),
    ([f"xvd{letter}" for letter in "ijklmnopqrstuvwxyz"], None, "xvdaa"),
])
def test_names(taken: tuple[str, ...], wanted: str | None, name: str) -> None:
    assert plan.frontend_name(taken, wanted) == name


def test_no_name_is_left() -> None:
    every: list[str] = []
    while len(every) < 18 + 26 * 26 + 4:
        every.append(plan.frontend_name(every, None))
    assert every[-1] == "xvdh" and not {"xvda", "xvdb", "xvdc", "xvdd"} & set(every)
    with pytest.raises(CloisonError, match="taken"):
        plan.frontend_name(every, None)
    with pytest.raises(CloisonError, match="xvdi is taken"):
        plan.frontend_name(["xvdi"], "xvdi")


PATTERNS = [Device("block", "net", port, identity) for port in ("sda", "*") for identity in ("0951:1666", "*")]


def test_the_most_specific_rule_counts() -> None:
    assert [plan.specificity(pattern) for pattern in PATTERNS] == [3, 2, 1, 0]
    made = system()
    for pattern, mode in zip(reversed(PATTERNS), ("ask-to-attach", "auto-attach", "required", "auto-attach"), strict=True):
        made.qube("work").put_assignment(Assignment(pattern, mode))
    covering = plan.covering(made.qube("work"), STICK)
    assert covering is not None and covering.device == PATTERNS[0]
    assert [rule.device for rule in plan.rules(made.qube("work"), "block", "auto-attach", "ask-to-attach")] == [
        PATTERNS[0], PATTERNS[2], PATTERNS[3]]
    found = plan.wanted(made.qube("work"), [exposed(), exposed(Device("block", "net", "sdb", "x"))], "auto-attach", "ask-to-attach")
    assert [(claim.device.device.port, claim.rule.mode) for claim in found] == [("sda", "auto-attach"), ("sdb", "ask-to-attach")]
    assert plan.covering(made.qube("fw"), STICK) is None


def test_who_claims_a_device() -> None:
    made = system()
    for name in ("work", "fw", "net"):
        made.qube(name).put_assignment(Assignment(PATTERNS[3], "auto-attach"))
    assert [claim.qube.name for claim in plan.claims(exposed(), made.sorted_qubes())] == ["fw", "work"]


def test_a_device_that_comes_is_not_for_its_own_qube_nor_for_rules_by_hand() -> None:
    made = system()
    made.qube("net").put_assignment(Assignment(PATTERNS[3], "required"))
    made.qube("fw").put_assignment(Assignment(PATTERNS[0], "manual"))
    made.qube("work").put_assignment(Assignment(PATTERNS[2], "ask-to-attach"))
    found = plan.claims(exposed(), made.sorted_qubes())
    assert [(claim.qube.name, claim.device, claim.rule.mode) for claim in found] == [("work", exposed(), "ask-to-attach")]
    made.qube("work").put_assignment(Assignment(PATTERNS[0], "manual"))
    assert plan.claims(exposed(), made.sorted_qubes()) == [], "the more specific rule is by hand"


def test_a_qube_that_starts_gets_nothing_of_its_own_and_block_devices_only() -> None:
    made = system()
    own = exposed(Device("block", "work", "sda", "x"))
    for rule in (PATTERNS[0], Device("block", "work", "*", "*"), Device("usb", "net", "*", "*")):
        made.qube("work").put_assignment(Assignment(rule, "required"))
    found = plan.wanted(made.qube("work"), [own, exposed(), exposed(Device("usb", "net", "1-1", "y"))], "required")
    assert [claim.device for claim in found] == [exposed()]
    assert plan.wanted(made.qube("work"), [exposed()], "auto-attach") == []
