"""Fixtures of the tools' tests: a fake qubesd, fake wardens, the real qubesd on fake parts (tests/client/tools_fixtures.py)."""
from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))

from tools_fixtures import qubesd, real, root, warden  # noqa: F401


@pytest.fixture(autouse=True)
def no_endless_wait() -> Iterator[None]:
    """A call that waits for something broken fails, also where it has no time limit of its own."""
    def too_long(*_: object) -> None:
        raise AssertionError(f"nothing happens for {PATIENCE} seconds")

    former = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)
