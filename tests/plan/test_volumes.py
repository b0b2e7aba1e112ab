"""What a resize takes, and what forbids it."""
from __future__ import annotations

from dataclasses import replace

import pytest
from tests.plan.test_lifecycle import system

from cloison.errors import BadValue, CloisonError, QubeError, QubeNotRunning, StorageError
from cloison.model.domains import Qube
from cloison.model.volumes import Volume
from cloison.plan.volumes import Growth, check_ephemeral, check_halted, check_revisions, check_saved, plan_resize
from cloison.values import PowerState

PRIVATE = Volume("private", "p", "appvms/work/private", 1000, save_on_stop=True)
ROOT = Volume("root", "p", "appvms/work/root", 1000, snap_on_start=True, source="vm-templates/t/root")
VOLATILE = Volume("volatile", "p", "appvms/work/volatile", 1000)
KERNEL = Volume("kernel", "k", "", 0, rw=False)


@pytest.fixture
def qube() -> Qube:
    return system().qube("work")


@pytest.mark.parametrize(("power", "volume", "answer"), [
    (PowerState.HALTED, PRIVATE, Growth.OFFLINE), (PowerState.HALTED, VOLATILE, Growth.OFFLINE),
    (PowerState.HALTED, ROOT, StorageError), (PowerState.HALTED, KERNEL, StorageError),
    (PowerState.HALTED, replace(PRIVATE, rw=False), StorageError), (PowerState.HALTED, replace(PRIVATE, size=1002), StorageError),
    (PowerState.RUNNING, PRIVATE, Growth.FILE_SYSTEM), (PowerState.RUNNING, ROOT, Growth.FILE_SYSTEM),
    (PowerState.RUNNING, VOLATILE, Growth.DISK), (PowerState.PAUSED, PRIVATE, QubeNotRunning),
    (PowerState.TRANSIENT, PRIVATE, QubeError), (PowerState.HALTING, PRIVATE, QubeError),
    (PowerState.DYING, PRIVATE, QubeError),
])
def test_resize(qube: Qube, power: PowerState, volume: Volume, answer: Growth | type[CloisonError]) -> None:
    qube.power = power
    if isinstance(answer, Growth):
        assert plan_resize(qube, volume, 1001) is answer
    else:
        with pytest.raises(answer, match=r"\w+") as raised:
            plan_resize(qube, volume, 1001)
        assert type(raised.value) is answer, "its hint is about what helps here"


def test_a_qube_of_which_nothing_is_known_is_not_asked_to_grow(qube: Qube) -> None:
    qube.power, qube.problem = PowerState.TRANSIENT, "its warden does not answer; qvm-kill work ends it"
    for check in (lambda: plan_resize(qube, PRIVATE, 1001), lambda: check_halted(qube)):
        with pytest.raises(QubeError, match="qvm-kill work ends it") as raised:
            check()
        assert not raised.value.hint


def test_checks(qube: Qube) -> None:
    check_saved(qube, PRIVATE)
    check_ephemeral(VOLATILE)
    check_halted(qube)
    for keep in (-1, 0, 1, 900):
        check_revisions(keep)
    for refused in (lambda: check_saved(qube, ROOT), lambda: check_saved(qube, KERNEL)):
        with pytest.raises(StorageError, match="keeps nothing"):
            refused()
    for wrong in (-2, 901):
        with pytest.raises(BadValue, match="revisions_to_keep"):
            check_revisions(wrong)
    for volume in (PRIVATE, ROOT, KERNEL):
        with pytest.raises(BadValue, match="ephemeral"):
            check_ephemeral(volume)
