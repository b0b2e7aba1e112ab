"""Fixtures for all tests: golden files, compared byte by byte and rewritten only when asked (`pytest --regenerate`)."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"

# The same examples on every machine, however busy: a run that fails is a change that broke something. Look for new ones with
# `--hypothesis-profile=default`. A fixture that examples share is a test's own decision; only a slow machine is excused here.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write golden files anew; then read the diff")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text must be what `tests/golden/NAME` holds."""
    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regenerate"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert text == path.read_text()

    return check


@pytest.fixture(autouse=True)
def same_process() -> Iterator[None]:
    """A program's `main` called in this process sets its umask and its environment: not for the tests that follow."""
    umask = os.umask(0o022)
    os.umask(umask)
    with mock.patch.dict(os.environ):
        yield
    os.umask(umask)
