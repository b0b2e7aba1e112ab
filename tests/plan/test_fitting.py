"""Values that can't work on this machine: taken when they are set, as in Qubes OS, and refused at the start with what helps."""
from __future__ import annotations

import pytest
from tests.plan.test_lifecycle import system

from cloison.errors import NotEnoughMemory, QubeError
from cloison.plan import fitting, lifecycle

HOST_MEMORY, HOST_CPUS = 32768, 8               # FakeHost's
MOST = 2**63 - 1


@pytest.mark.parametrize(("prop", "value", "error", "words"), [
    ("memory", 1, QubeError, ("1 MiB", "128", "qvm-prefs work memory")),
    ("memory", 127, QubeError, ("127 MiB", "128")),
    ("memory", HOST_MEMORY + 1, NotEnoughMemory, ("32769 MiB", "32768", "qvm-prefs work memory")),
    ("memory", MOST, NotEnoughMemory, (str(MOST),)),
    ("vcpus", 17, QubeError, ("17 processors", "16 are the most", "with 8", "qvm-prefs work vcpus")),
    ("vcpus", MOST, QubeError, (str(MOST),)),
])
def test_what_does_not_fit_is_set_and_not_started(prop: str, value: int, error: type[Exception], words: tuple[str, ...]) -> None:
    qube = system().qube("work")
    qube.set_text(prop, str(value))
    with pytest.raises(error) as caught:
        lifecycle.plan_start(qube)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("prop", "value"), [
    ("memory", 128), ("memory", HOST_MEMORY), ("vcpus", 1), ("vcpus", 16), ("maxmem", MOST), ("qrexec_timeout", MOST),
    ("shutdown_timeout", MOST)])
def test_what_fits_is_started(prop: str, value: int) -> None:
    qube = system().qube("work")
    qube.set_text(prop, str(value))
    assert lifecycle.plan_start(qube)


def test_an_inherited_value_is_looked_at_too() -> None:
    made = system()
    made.qube("tpl").set_text("memory", "1")
    with pytest.raises(QubeError, match="qvm-prefs work memory"):
        lifecycle.plan_start(made.qube("work"))


@pytest.mark.parametrize(("cpus", "most"), [(1, 8), (2, 8), (4, 8), (5, 10), (64, 128)])
def test_a_small_machine_lets_a_qube_have_eight(cpus: int, most: int) -> None:
    assert fitting.most_vcpus(cpus) == most


@pytest.mark.parametrize(("wanted", "waits"), [(1, 300), (300, 300), (301, 301), (1 << 20, 1 << 20), (MOST, 1 << 20)])
def test_a_start_waits_for_its_agent_no_longer_than_can_be_told(wanted: int, waits: int) -> None:
    assert fitting.start_timeout(300, wanted) == waits
