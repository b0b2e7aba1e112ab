from __future__ import annotations

import pytest

from cloison.daemon.fake import FakeHost
from cloison.errors import CloisonError, QubeError, QubeNotHalted, QubeNotStarted
from cloison.model import labels
from cloison.model.catalogue import SYSTEM
from cloison.model.creation import Birth, create
from cloison.model.domains import READY, System
from cloison.model.qubes import new_system
from cloison.model.volumes import Pool
from cloison.plan import lifecycle
from cloison.plan.lifecycle import Do
from cloison.plan.volumes import check_halted
from cloison.values import PowerState


def system() -> System:
    """tpl; net (provides network), fw behind net, work behind fw."""
    made = new_system(FakeHost())
    for label in labels.DEFAULTS:
        made.journal.put("labels", SYSTEM, made.labels, label.name, label)
    made.put_pool(Pool("p", "qcow2", {}))
    made.set("default_kernel", "6.6.1")
    create(made, Birth("TemplateVM", "tpl", "black", "u-tpl", READY))
    for name in ("net", "fw", "work"):
        create(made, Birth("AppVM", name, "red", f"u-{name}", READY, template="tpl"))
    for name, netvm in (("net", ""), ("fw", "net"), ("work", "fw")):
        made.qube(name).set_text("netvm", netvm)
        if name != "work":
            made.qube(name).set_text("provides_network", "True")
    return made


def test_start_plan_says_why() -> None:
    steps = lifecycle.plan_start(system().qube("work"))
    assert [(step.do, step.qube) for step in steps] == [
        (Do.START_NETVM, "fw"), (Do.START_VOLUMES, "work"), (Do.MAKE_WARM, "work"), (Do.BOOT, "work")]
    assert steps[0].why == "netvm of work"


def test_templates_boot_cold() -> None:
    assert Do.MAKE_WARM not in [step.do for step in lifecycle.plan_start(system().qube("tpl"))]


def test_a_netvm_that_may_not_start_forbids_the_start() -> None:
    made = system()
    made.qube("net").set_feature("prohibit-start", "stolen")
    with pytest.raises(CloisonError, match="stolen"):
        lifecycle.plan_start(made.qube("work"))


def test_refusals() -> None:
    made = system()
    with pytest.raises(QubeNotHalted):
        lifecycle.check_start(made.dom0)
    made.qube("work").add_tag("backup-restore-in-progress")
    with pytest.raises(QubeError):
        lifecycle.check_start(made.qube("work"))


def test_autostart_comes_in_order_of_network() -> None:
    made = system()
    made.qube("work").set_text("autostart", "True")
    assert lifecycle.autostart_order(made) == ["net", "fw", "work"]


@pytest.mark.parametrize(("name", "netvm"), [("net", "work"), ("net", "net"), ("fw", "work"), ("work", "tpl")])
def test_no_network_loop_can_be_made(name: str, netvm: str) -> None:
    made = system()
    made.qube("work").set_text("provides_network", "True")
    with pytest.raises(CloisonError):
        made.qube(name).set_text("netvm", netvm)


@pytest.mark.parametrize(("power", "waits"), [
    (PowerState.HALTED, True), (PowerState.TRANSIENT, True), (PowerState.DYING, True), (PowerState.RUNNING, False),
    (PowerState.PAUSED, False), (PowerState.HALTING, False)])
def test_a_netvm_that_is_not_up_yet_is_started_or_waited_for(power: PowerState, waits: bool) -> None:
    made = system()
    made.qube("fw").power = power
    assert (Do.START_NETVM in [step.do for step in lifecycle.plan_start(made.qube("work"))]) is waits


def test_an_unknown_netvm_forbids_the_start() -> None:
    made = system()
    made.qube("fw").power, made.qube("fw").problem = PowerState.TRANSIENT, "it says nothing"
    with pytest.raises(QubeError, match="it says nothing"):
        lifecycle.plan_start(made.qube("work"))


CHECKS = {
    "start": lifecycle.check_start, "shutdown": lambda qube: lifecycle.check_shutdown(qube, force=False),
    "forced shutdown": lambda qube: lifecycle.check_shutdown(qube, force=True), "pause": lifecycle.check_pause,
    "unpause": lifecycle.check_unpause, "suspend": lifecycle.check_suspend, "remove": lifecycle.check_remove,
    "known": lifecycle.check_known, "change of a volume": check_halted,
}


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_but_kill_is_done_to_an_unknown_qube(check: str) -> None:
    qube = system().qube("work")
    qube.power, qube.problem = PowerState.TRANSIENT, "it says nothing"
    with pytest.raises(QubeError, match="whether work runs is not known: it says nothing"):
        CHECKS[check](qube)
    lifecycle.check_kill(qube)
    qube.problem = ""
    lifecycle.check_known(qube)
    lifecycle.check_kill(qube)
    qube.power = PowerState.HALTED
    with pytest.raises(QubeNotStarted):
        lifecycle.check_kill(qube)
