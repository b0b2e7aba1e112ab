"""What is refused, in which state and for whom: tables over every state of power, so that none is forgotten."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from tests.plan.test_lifecycle import system

from cloison.errors import (
    CloisonError,
    QubeError,
    QubeInUse,
    QubeNotHalted,
    QubeNotPaused,
    QubeNotRunning,
    QubeNotStarted,
)
from cloison.model.creation import Birth, create
from cloison.model.domains import CREATING, READY, REMOVING, Qube, System
from cloison.model.volumes import Pool, Volume
from cloison.plan import lifecycle
from cloison.plan.lifecycle import Do
from cloison.plan.volumes import check_halted, is_ephemeral, leaves_nothing
from cloison.values import PowerState as P

Refusal = type[CloisonError] | None

ORDERS: dict[str, Callable[[Qube], object]] = {
    "shutdown": lambda qube: lifecycle.check_shutdown(qube, force=False),
    "force": lambda qube: lifecycle.check_shutdown(qube, force=True),
    "kill": lifecycle.check_kill, "pause": lifecycle.check_pause, "unpause": lifecycle.check_unpause,
    "suspend": lifecycle.check_suspend, "remove": lifecycle.check_remove, "volume": check_halted,
}
RUNS: dict[str, Refusal] = {
    "shutdown": None, "force": None, "kill": None, "pause": None, "unpause": QubeNotPaused, "suspend": None,
    "remove": QubeNotHalted, "volume": QubeNotHalted,
}
BETWEEN = {**RUNS, "pause": QubeNotRunning, "suspend": QubeNotRunning}
BY_POWER: dict[P, Mapping[str, Refusal]] = {
    P.HALTED: {"shutdown": QubeNotStarted, "force": QubeNotStarted, "kill": QubeNotStarted, "pause": QubeNotRunning,
               "unpause": QubeNotPaused, "suspend": QubeNotRunning, "remove": None, "volume": None},
    P.RUNNING: RUNS,
    P.PAUSED: {**RUNS, "shutdown": QubeNotRunning, "pause": QubeNotRunning, "unpause": None},
    P.TRANSIENT: BETWEEN, P.HALTING: BETWEEN, P.DYING: BETWEEN,
}


def refusal(check: Callable[[], object]) -> Refusal:
    try:
        check()
    except CloisonError as error:
        assert str(error)
        return type(error)
    return None


@pytest.mark.parametrize("power", P)
def test_what_each_state_allows(power: P) -> None:
    qube = system().qube("work")
    qube.power = power
    expected = BY_POWER.get(power, BETWEEN)
    assert {order: refusal(lambda check=check: check(qube)) for order, check in ORDERS.items()} == expected  # type: ignore[misc] # a default
    lifecycle.check_start(qube)                          # nothing forbids to have it that a running qube runs
    assert bool(lifecycle.plan_start(qube)) is (power is P.HALTED)


@pytest.mark.parametrize("order", [order for order in ORDERS if order not in ("remove", "volume")])
def test_dom0_has_no_machine_to_control(order: str) -> None:
    assert refusal(lambda: ORDERS[order](system().dom0)) is QubeError


def test_dom0_is_neither_started_nor_removed() -> None:
    made = system()
    assert refusal(lambda: lifecycle.check_start(made.dom0)) is QubeNotHalted
    assert refusal(lambda: lifecycle.check_remove(made.dom0)) is not None
    check_halted(made.dom0)


@pytest.mark.parametrize(("power", "preload", "forced", "refused"), [
    (P.PAUSED, True, False, None), (P.PAUSED, False, False, QubeNotRunning), (P.PAUSED, False, True, None),
    (P.RUNNING, True, False, None),
])
def test_a_paused_qube_is_shut_down_by_force_and_one_that_waits_for_use_always(
    monkeypatch: pytest.MonkeyPatch, power: P, preload: bool, forced: bool, refused: Refusal,
) -> None:
    qube = system().qube("work")
    qube.power = power
    monkeypatch.setattr(Qube, "is_preload", property(lambda self: preload and self.name == "work"))
    assert refusal(lambda: lifecycle.check_shutdown(qube, force=forced)) is refused


@pytest.mark.parametrize(("prop", "error"), [("netvm", QubeInUse), ("audiovm", QubeInUse), ("guivm", QubeError)])
@pytest.mark.parametrize(("power", "waits", "counts"), [
    (P.RUNNING, False, True), (P.PAUSED, False, True), (P.TRANSIENT, False, True), (P.HALTED, False, False),
    (P.PAUSED, True, False),
])
def test_whose_users_run_is_shut_down_by_force_only(
    monkeypatch: pytest.MonkeyPatch, prop: str, error: type[CloisonError], power: P, waits: bool, counts: bool,
) -> None:
    made = system()
    net, work = made.qube("net"), made.qube("work")
    for qube in (made.qube("fw"), made.qube("tpl"), work):
        qube.set_text("netvm", "")
    work.store_value(prop, "net")
    net.power, work.power = P.RUNNING, power
    monkeypatch.setattr(Qube, "is_preload", property(lambda self: waits and self.name == "work"))
    counts = counts or (waits and prop == "guivm")        # its window would be gone
    assert refusal(lambda: lifecycle.check_shutdown(net, force=False)) is (error if counts else None)
    lifecycle.check_shutdown(net, force=True)
    if counts:
        with pytest.raises(error, match=f"net is the {prop} of work, which run"):
            lifecycle.check_shutdown(net, force=False)


# -- starting ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "error", "words"), [
    (lambda qube: setattr(qube, "state", REMOVING), QubeError, "being removed"),
    (lambda qube: setattr(qube, "state", CREATING), QubeError, "being made"),
    (lambda qube: qube.set_feature("prohibit-start", "stolen"), CloisonError, "may not be started: stolen"),
    (lambda qube: qube.add_tag("backup-restore-in-progress"), QubeError, "restored from a backup"),
    (lambda qube: qube.set_text("kernel", ""), CloisonError, "no kernel"),
    (lambda qube: qube.store_value("memory", 1), QubeError, "none starts with less"),
])
def test_what_forbids_a_start(change: Callable[[Qube], None], error: type[CloisonError], words: str) -> None:
    qube = system().qube("work")
    change(qube)
    for check in (lifecycle.check_start, lifecycle.plan_start):
        with pytest.raises(error, match=words):
            check(qube)


@pytest.mark.parametrize("change", [
    lambda qube: qube.set_feature("prohibit-start", "stolen"), lambda qube: qube.store_value("memory", 1),
    lambda qube: qube.add_tag("backup-restore-in-progress"), lambda qube: qube.set_text("kernel", ""),
])
def test_what_forbids_a_start_ends_no_running_qube(change: Callable[[Qube], None]) -> None:
    qube = system().qube("work")
    qube.power = P.RUNNING
    change(qube)
    assert lifecycle.plan_start(qube) == []


def test_an_empty_reason_forbids_nothing() -> None:
    qube = system().qube("work")
    qube.set_feature("prohibit-start", "")
    lifecycle.check_start(qube)


def test_a_start_without_a_netvm_starts_no_other() -> None:
    assert [(step.do, step.qube, step.why) for step in lifecycle.plan_start(system().qube("net"), "for work")] == [
        (Do.START_VOLUMES, "net", "for work"), (Do.MAKE_WARM, "net", "its root is a snapshot"), (Do.BOOT, "net", "for work")]


def test_only_a_root_that_is_thrown_away_starts_warm() -> None:
    made = system()
    work = made.qube("work")
    assert lifecycle.starts_warm(work) and not lifecycle.starts_warm(made.qube("tpl"))
    work.put_volume(replace(work.volumes["root"], snap_on_start=False, source=None))
    assert not lifecycle.starts_warm(work)


# -- disposables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source_netvm", "template_netvm", "bound", "netvm"), [
    ("", "fw", True, None), ("", "", True, None), ("", None, True, None),
    ("fw", "net", False, "fw"), ("fw", "", False, "fw"), ("fw", None, True, "fw"), ("net", None, True, "net"),
])
def test_a_disposable_never_has_more_network_than_who_asked(
    source_netvm: str, template_netvm: str | None, bound: bool, netvm: str | None,
) -> None:
    """`None`: the template uses the system's default netvm."""
    made = system()
    create(made, Birth("AppVM", "dvm", "red", "u-dvm", READY, template="tpl"))
    made.qube("work").set_text("netvm", source_netvm)
    if template_netvm is not None:
        made.qube("dvm").set_text("netvm", template_netvm)
    assert lifecycle.child_netvm(made.qube("work"), made.qube("dvm")) == (bound, netvm)
    assert lifecycle.child_netvm(made.dom0, made.qube("dvm")) == (False, None)


def test_only_a_template_for_disposables_makes_them() -> None:
    made = system()
    with pytest.raises(CloisonError, match="work is not a template for disposables"):
        lifecycle.check_disposable(made.qube("work"))
    with pytest.raises(CloisonError, match="tpl"):
        lifecycle.check_disposable(made.qube("tpl"))
    made.qube("work").set("template_for_dispvms", True)
    lifecycle.check_disposable(made.qube("work"))


def test_each_qube_starts_once_with_the_system_and_after_its_netvm() -> None:
    made = system()
    assert lifecycle.autostart_order(made) == []
    for name in ("fw", "net", "work", "tpl"):
        made.qube(name).set_text("autostart", "True")
    order = lifecycle.autostart_order(made)
    assert sorted(order) == ["fw", "net", "tpl", "work"]
    assert order.index("net") < order.index("fw") < order.index("work")


# -- what is encrypted because it is thrown away -----------------------------------------------------------------------------


VOLATILE = Volume("volatile", "p", "appvms/work/volatile", 1000)


@pytest.mark.parametrize(("own", "pool", "expected"), [
    (None, "", False), (None, "True", True), (None, "False", False), (True, "", True), (True, "False", True),
    (False, "True", False),
])
def test_a_volume_says_more_than_its_pool(own: bool | None, pool: str, expected: bool) -> None:
    made: System = system()
    made.put_pool(Pool("p", "qcow2", {"ephemeral_volatile": pool} if pool else {}))
    work = made.qube("work")
    work.put_volume(replace(VOLATILE, ephemeral=own))
    assert is_ephemeral(work.volumes["volatile"], made.pool("p")) is expected
    assert leaves_nothing(work) is expected
    private = Volume("private", "p", "appvms/work/private", 1000, save_on_stop=True)
    assert not is_ephemeral(private, made.pool("p")), "what is kept is never lost with its key"


def test_a_qube_without_a_volatile_disk_leaves_something() -> None:
    work = system().qube("work")
    del work.volumes["volatile"]
    assert not leaves_nothing(work)
