from __future__ import annotations

import pytest

from cloison.daemon.fake import FakeHost
from cloison.errors import CloisonError, QubeError, QubeNotHalted
from cloison.model import labels
from cloison.model.catalogue import SYSTEM
from cloison.model.creation import Birth, create
from cloison.model.domains import READY, System
from cloison.model.qubes import new_system
from cloison.model.volumes import Pool
from cloison.plan import lifecycle
from cloison.plan.lifecycle import Do


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
