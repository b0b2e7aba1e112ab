"""How many disposables are to wait, which changes matter, and which are still good: decided without touching anything."""
from __future__ import annotations

from dataclasses import replace

import pytest

from cloison.daemon.fake import FakeHost
from cloison.model.creation import Birth, create, preloaded
from cloison.model.domains import READY, Qube, System
from cloison.model.labels import Label
from cloison.model.qubes import new_system
from cloison.model.volumes import Pool
from cloison.plan import preload
from cloison.values import PowerState


@pytest.fixture
def system() -> System:
    made = new_system(FakeHost())
    made.labels["red"] = Label(1, "0xcc0000", "red")
    made.pools["p"] = Pool("p", "qcow2", {})
    for number, (klass, name, template) in enumerate((("TemplateVM", "tpl", None), ("AppVM", "dvm", "tpl"))):
        create(made, Birth(klass, name, "red", f"00000000-0000-4000-8000-{number + 1:012}", READY, template=template))
    made.qube("tpl").set_feature("qrexec", "1")
    for service in ("qubes.WaitForRunningSystem", "qubes.WaitForSession"):
        made.qube("tpl").set_feature(f"supported-rpc.{service}", "1")
    made.qube("dvm").set("template_for_dispvms", True)
    made.journal.clear()
    return made


def waiting(system: System, name: str = "disp1") -> Qube:
    qube = create(system, Birth("DispVM", name, "red", f"00000000-0000-4000-9000-{len(system.qubes):012}", READY,
                                template="dvm", dispid=len(system.qubes)))
    qube.set_feature(preload.COMPLETED, "1")
    qube.power = PowerState.PAUSED
    system.qube("dvm").set_feature(preload.LIST, " ".join([*preloaded(system.qube("dvm")), name]))
    system.journal.clear()
    return qube


@pytest.mark.parametrize(("feature", "free", "wanted"), [
    ("0", 4000, 0), ("1", 4000, 1), ("3", 4000, 3), ("3", 800, 2), ("3", 399, 0), ("100000", 10**9, preload.MOST), ("", 4000, 0),
])
def test_how_many(system: System, feature: str, free: int, wanted: int) -> None:
    dvm = system.qube("dvm")
    dvm.set_feature(preload.MAX, feature)
    assert preload.wanted(dvm, free) == wanted
    dvm.store_value("template_for_dispvms", False)
    assert preload.wanted(dvm, free) == 0


def test_what_waits_already_counts(system: System) -> None:
    waiting(system)
    system.qube("dvm").set_feature(preload.MAX, "3")
    assert preload.wanted(system.qube("dvm"), 10**6) == 2


@pytest.mark.parametrize(("prop", "value", "good"), [("memory", 500, False), ("kernelopts", "x", False), ("autostart", True, True)])
def test_one_that_differs_from_its_template_is_outdated(system: System, prop: str, value: int | str, good: bool) -> None:
    qube = waiting(system)
    assert preload.is_good(qube, outdated=False)
    assert not preload.is_good(qube, outdated=True)
    system.qube("dvm").set(prop, value)
    system.qube(qube.name).store_value("memory", 400)
    assert preload.is_good(qube, outdated=False) == good


@pytest.mark.parametrize("power", [power for power in PowerState if power is not PowerState.PAUSED])
def test_one_that_is_not_paused_is_not_ready(system: System, power: PowerState) -> None:
    qube = waiting(system)
    qube.power = power
    assert not preload.is_good(qube, outdated=False)


def wakes(system: System) -> list[tuple[str, float, bool]]:
    found = [(wake.template, wake.delay, wake.told) for wake in preload.wakes(system, system.journal.events)]
    system.journal.clear()
    return found


def used(template: Qube, left: str) -> None:
    """One has gone from the list, because somebody has it now."""
    template.set_feature(preload.LIST, left)
    template.journal.emit(template.name, "domain-preload-dispvm-used", dispvm="disp1", delay=preload.delay(template))


def test_which_changes_matter(system: System) -> None:
    dvm = system.qube("dvm")
    dvm.set_feature(preload.MAX, "2")
    assert wakes(system) == [("dvm", 0.0, True)]
    dvm.set_feature(preload.MAX, "2")
    assert wakes(system) == []
    dvm.set("memory", 600)
    assert wakes(system) == []
    qube = waiting(system)
    dvm.set("memory", 700)
    assert wakes(system) == [("dvm", preload.AFTER_CHANGE, True)]
    dvm.set("autostart", True)
    assert wakes(system) == []
    used(dvm, "")
    assert wakes(system) == [("dvm", preload.DEFAULT_DELAY, False)]
    dvm.set_feature(preload.LIST, qube.name)
    assert wakes(system) == []
    system.dom0.set_feature(preload.MAX, "1")
    assert wakes(system) == []
    system.set("default_dispvm", "dvm")
    assert wakes(system) == [("dvm", 0.0, True)]
    dvm.remove_feature(preload.MAX)
    assert wakes(system) == [], "dom0's stands for it"
    system.dom0.remove_feature(preload.MAX)
    assert wakes(system) == [("dvm", 0.0, True)]
    dvm.set_feature(preload.MAX, "1")
    dvm.remove_feature(preload.MAX)
    assert wakes(system) == [("dvm", 0.0, True), ("dvm", 0.0, False)]


def test_a_negative_delay_waits_until_none_is_left(system: System) -> None:
    dvm = system.qube("dvm")
    dvm.set_feature(preload.DELAY, "-5")
    waiting(system, "disp1")
    waiting(system, "disp2")
    used(dvm, "disp2")
    assert wakes(system) == []
    used(dvm, "")
    assert wakes(system) == [("dvm", 5.0, False)]


@pytest.mark.parametrize(("text", "seconds"), [
    (None, preload.DEFAULT_DELAY), ("", 0.0), ("0", 0.0), ("2.5", 2.5), ("-1", -1.0), ("soon", preload.DEFAULT_DELAY),
])
def test_the_delay_is_the_templates_or_dom0s(system: System, text: str | None, seconds: float) -> None:
    dvm = system.qube("dvm")
    assert preload.delay(dvm) == preload.DEFAULT_DELAY
    for holder, other in ((system.dom0, dvm), (dvm, system.dom0)):
        if text is not None:
            holder.features[preload.DELAY] = text
        assert preload.delay(dvm) == seconds
        if other is dvm and text is not None:
            system.dom0.set_feature(preload.DELAY, "77")


@pytest.mark.parametrize(("delay", "there", "most", "wake"), [
    ("3", 0, "1", 5.0), ("3", 1, "2", 5.0), ("9", 0, "1", 9.0), ("3", 1, "1", None), ("3", 2, "1", None), ("3", 0, "0", None),
    ("-9", 0, "1", 5.0), ("-9", 1, "2", None),
])
def test_a_gap_that_somebody_meets_is_filled_after_a_while(
    system: System, delay: str, there: int, most: str, wake: float | None,
) -> None:
    dvm = system.qube("dvm")
    dvm.set_feature(preload.DELAY, delay)
    dvm.set_feature(preload.MAX, most)
    for number in range(there):
        waiting(system, f"disp{number}")
    found = preload.gap(dvm)
    assert (found and (found.template, found.delay, found.told, found.stale)) == (wake and ("dvm", wake, True, False))


@pytest.mark.parametrize(("dom0s", "default", "own", "most"), [
    (None, None, "2", 2), (None, "dvm", "2", 2), ("5", "dvm", "2", 5), ("5", None, "2", 2), ("0", "dvm", "2", 0),
    ("x", "dvm", "2", 0),
    ("101", "dvm", None, 100), (None, None, "101", 100), (None, None, "100", 100), (None, None, "-1", 0), (None, None, None, 0),
])
def test_dom0s_number_stands_for_the_default_templates(
    system: System, dom0s: str | None, default: str | None, own: str | None, most: int,
) -> None:
    dvm = system.qube("dvm")
    if dom0s is not None:
        system.dom0.features[preload.MAX] = dom0s
    if own is not None:
        dvm.features[preload.MAX] = own
    system.set("default_dispvm", default)
    assert preload.maximum(dvm) == most


def test_memory_that_is_to_stay_free_is_left(system: System) -> None:
    dvm = system.qube("dvm")
    dvm.set_feature(preload.MAX, "3")
    system.dom0.set_feature(preload.THRESHOLD, "1000")
    assert [preload.wanted(dvm, free) for free in (0, 1399, 1400, 2199, 2200, 99999)] == [0, 0, 1, 2, 3, 3]
    dvm.set_feature(preload.MAX, "1")
    waiting(system, "disp1")
    waiting(system, "disp2")
    assert preload.wanted(dvm, 99999) == 0


@pytest.mark.parametrize("lacks", ["volume", "feature"])
def test_one_that_is_not_ready_or_has_another_disk_is_no_good(system: System, lacks: str) -> None:
    qube = waiting(system)
    assert preload.is_good(qube, outdated=False)
    if lacks == "volume":
        dvm = system.qube("dvm")
        dvm.put_volume(replace(dvm.volumes["private"], size=dvm.volumes["private"].size + 1))
    else:
        qube.remove_feature(preload.COMPLETED)
    assert not preload.is_good(qube, outdated=False)


@pytest.mark.parametrize(("own", "source_netvm", "given"), [
    ("net", "net", True), ("net", "", False), ("", "net", False), ("", "", True), ("other", "net", False),
])
def test_who_may_have_one_that_uses_the_systems_netvm(system: System, own: str, source_netvm: str, given: bool) -> None:
    """One with another network than its source has is nobody's; dom0 may have any."""
    for name in ("net", "other", "work"):
        create(system, Birth("AppVM", name, "red", f"u-{name}", READY, template="tpl"))
    for name in ("net", "other"):
        system.qube(name).set_text("netvm", "")
        system.qube(name).set_text("provides_network", "True")
    qube = waiting(system)
    qube.store_value("netvm", own or None)
    system.qube("work").set_text("netvm", source_netvm)
    assert preload.is_for(qube, system.qube("work"), system.qube("dvm")) is given
    assert preload.is_for(qube, system.dom0, system.qube("dvm"))


@pytest.mark.parametrize(("guivm", "features", "session"), [
    (True, ("gui", "supported-feature.late-gui-daemon"), True), (True, ("gui",), False), (False, ("gui",), False),
    (True, ("supported-feature.late-gui-daemon",), False), (False, ("gui", "supported-feature.late-gui-daemon"), False),
])
def test_a_session_is_waited_for_where_there_can_be_one(
    system: System, guivm: bool, features: tuple[str, ...], session: bool,
) -> None:
    qube = waiting(system)
    qube.set_text("guivm", "dom0" if guivm else "")
    for name in features:
        system.qube("tpl").set_feature(name, "1")
    assert preload.services(qube) == ["qubes.WaitForRunningSystem", *(["qubes.WaitForSession"] if session else [])]


def all_of(system: System) -> list[preload.Wake]:
    found = list(preload.wakes(system, system.journal.events))
    system.journal.clear()
    return found


def test_a_template_that_stops_makes_those_of_its_children_stale(system: System) -> None:
    for name in ("tpl", "dvm"):
        system.journal.emit(name, "domain-shutdown")
    assert all_of(system) == []
    waiting(system)
    for name in ("tpl", "dvm"):
        system.journal.emit(name, "domain-shutdown")
        assert all_of(system) == [preload.Wake("dvm", "a template was shut down", preload.AFTER_SHUTDOWN, stale=True)]


@pytest.mark.parametrize("name", ["template", "template_for_dispvms"])
def test_another_template_matters_where_there_are_some_or_are_to_be(system: System, name: str) -> None:
    def change(new: str = "b") -> list[tuple[str, bool]]:
        system.journal.emit("dvm", f"property-set:{name}", name=name, newvalue=new, oldvalue="a")
        return [(wake.reason, wake.told) for wake in all_of(system)]

    assert change() == []
    system.qube("dvm").features[preload.MAX] = "1"
    assert (change(), change("a")) == ([(f"{name} has changed", True)], [])
    waiting(system)
    system.qube("dvm").features[preload.MAX] = "0"
    assert (change(), change("a")) == ([(f"{name} has changed", False)], [])


def test_another_default_template_matters_to_those_whose_number_changes(system: System) -> None:
    create(system, Birth("AppVM", "dvm2", "red", "u-dvm2", READY, template="tpl"))
    system.qube("dvm2").set("template_for_dispvms", True)
    system.set("default_dispvm", "dvm")
    assert all_of(system) == [], "dom0 says nothing"
    system.dom0.set_feature(preload.MAX, "2")
    all_of(system)
    system.qube("dvm2").features[preload.MAX] = "2"
    system.set("default_dispvm", "dvm2")
    assert [wake.template for wake in all_of(system)] == ["dvm"], "for the other it is the same number"
    system.set("default_dispvm", "dvm2")
    assert all_of(system) == []
