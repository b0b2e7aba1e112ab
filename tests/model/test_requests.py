"""What qubes request of themselves: who is believed, what is understood, and what hostile requests cost."""
from __future__ import annotations

import pytest

from cloison.daemon.fake import FakeHost
from cloison.errors import BadRequest
from cloison.model import requests
from cloison.model.creation import Birth, create
from cloison.model.domains import READY, Qube, System
from cloison.model.labels import Label
from cloison.model.qubes import new_system
from cloison.model.volumes import Pool


@pytest.fixture
def system() -> System:
    made = new_system(FakeHost())
    made.labels["red"] = Label(1, "0xcc0000", "red")
    made.pools["p"] = Pool("p", "qcow2", {})
    for number, (klass, name) in enumerate((("TemplateVM", "tpl"), ("AppVM", "app"))):
        create(made, Birth(klass, name, "red", f"00000000-0000-4000-8000-{number + 1:012}", READY,
                           template="tpl" if klass == "AppVM" else None))
    made.journal.clear()
    return made


def request(qube: Qube, **untrusted: str) -> dict[str, str]:
    """The features afterwards."""
    entries = {name.replace("__", "."): value.encode() for name, value in untrusted.items()}
    requests.apply(qube, requests.check({name.replace("_", "-"): value for name, value in entries.items()}))
    return dict(qube.features)


CASES: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"qrexec": "1", "gui": "0", "vmexec": "1"}, {"qrexec": "1", "gui": "", "vmexec": "1"}),
    ({"qrexec": "2", "gui": "", "vmexec": "yes"}, {}),
    ({"os": "Linux", "os_distribution": "debian", "os_version": "12.5"},
     {"os-distribution": "debian", "os-version": "12.5", "os": "Linux"}),
    ({"os": "Plan9", "os_version": "v12", "os_eol": "2024-13-01"}, {}),
    ({"os_eol": "2028-06-30", "qubes_agent_version": "4.3"}, {"os-eol": "2028-06-30", "qubes-agent-version": "4.3"}),
    ({"qubes_agent_version": "4.3.1"}, {}),
    ({"supported_service__cups": "1", "supported_service__x": "0"}, {"supported-service.cups": "1"}),
    ({"supported_service__apparmor": "1"}, {"supported-service.apparmor": "1", "apparmor": "1"}),
    ({"anon_timezone": "1"}, {"anon-timezone": "1"}),
    ({"anon_timezone": "0", "unknown": "1"}, {}),
    ({"boot_mode__kernelopts__safe": "single", "boot_mode__name__safe": "Safe mode", "boot_mode__active": "safe"},
     {"boot-mode.kernelopts.safe": "single", "boot-mode.name.safe": "Safe mode", "boot-mode.active": "safe"}),
    ({"boot_mode__name__safe": "Safe mode", "boot_mode__active": "safe", "boot_mode__kernelopts__default": "x"}, {}),
    ({"boot_mode__kernelopts__a": "x", "boot_mode__kernelopts__b": "y", "boot_mode__name__a": "Same", "boot_mode__name__b": "Same"},
     {}),
]


@pytest.mark.parametrize(("asked", "features"), CASES)
def test_a_template_is_believed(system: System, asked: dict[str, str], features: dict[str, str]) -> None:
    assert request(system.qube("tpl"), **asked) == features


def test_one_made_from_a_template_may_only_tell_its_services(system: System) -> None:
    found = request(system.qube("app"), qrexec="1", os="Linux", supported_rpc__a__B="1", supported_service__x="1")
    assert found == {"supported-rpc.a.B": "1"}


def test_what_somebody_has_decided_stays(system: System) -> None:
    tpl = system.qube("tpl")
    tpl.set_feature("qrexec", "")
    assert request(tpl, qrexec="1") == {"qrexec": ""}


def test_an_advertised_set_replaces_the_old_and_an_empty_one_does_not(system: System) -> None:
    tpl = system.qube("tpl")
    request(tpl, supported_rpc__a="1", supported_rpc__b="1")
    assert request(tpl, supported_rpc__b="1", supported_rpc__c="1") == {"supported-rpc.b": "1", "supported-rpc.c": "1"}
    assert request(tpl, supported_rpc__b="0") == {"supported-rpc.b": "1", "supported-rpc.c": "1"}


def test_the_first_qrexec_finishes_the_template(system: System) -> None:
    tpl = system.qube("tpl")
    request(tpl, qrexec="1")
    assert [event.name for event in system.journal.events if event.name == "template-postinstall"] == ["template-postinstall"]
    system.journal.clear()
    request(tpl, qrexec="1")
    assert "template-postinstall" not in [event.name for event in system.journal.events]


def test_windows_gets_what_it_needs(system: System) -> None:
    tpl = system.qube("tpl")
    found = request(tpl, os="Windows", qrexec="1")
    assert (found["rpc-clipboard"], found["audio-model"], tpl.get("qrexec_timeout"), tpl.get("maxmem")) == ("1", "ich6", 6000, 0)


@pytest.mark.parametrize("untrusted", [
    {"os": b"a\nb"}, {"os": b"\xff"}, {"os": b"$(x)"}, {"x" * 257: b"1"}, {f"f{number}": b"1" for number in range(1025)},
    {"os": b"\0"}, {"os": b"'"},
])
def test_lesson_16_hostile_requests_are_refused_whole(untrusted: dict[str, bytes]) -> None:
    with pytest.raises(BadRequest):
        requests.check(untrusted)


@pytest.mark.parametrize("count", [0, 1, 1024])
def test_as_many_as_are_allowed(count: int) -> None:
    assert len(requests.check({f"f{number}": b"1" for number in range(count)})) == count
