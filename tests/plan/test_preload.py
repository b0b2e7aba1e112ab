"""How many disposables are to wait, which changes matter, and which are still good: decided without touching anything."""
from __future__ import annotations

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
