"""How long a test waits before it fails: whatever takes longer hangs. Slow machines fail no test, so this measures no speed."""
from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

PATIENCE = 30.0            # seconds


@pytest.fixture(autouse=True)
def no_endless_wait(request: pytest.FixtureRequest) -> Iterator[None]:
    """For a conftest.py to import: a test that waits for something broken fails, also where it has no time limit of its own."""
    if request.node.get_closest_marker("boot") or request.node.get_closest_marker("slow"):
        yield                  # a guest takes its time to boot
        return

    def too_long(*_: object) -> None:
        raise AssertionError(f"nothing happens for {PATIENCE} seconds")

    former = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)
