"""A fake qubesd, fake wardens for qubes `work` and `disp1`, and the real qubesd on fake parts, in an installation of their own."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, FakeWarden, listening
from real_qubesd import real_qubesd

from cloison.client.connection import Connection
from cloison.runtime.paths import Paths


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    monkeypatch.delenv("DISPLAY", raising=False)
    return tmp_path


@pytest.fixture
def paths(root: Path) -> Paths:
    paths = Paths.from_environment()
    paths.ensure()
    return paths


@pytest.fixture
def qubesd(root: Path) -> Iterator[FakeQubesd]:
    fake = FakeQubesd(root)
    with listening(fake.run / "qubesd.sock", fake.serve), listening(fake.run / "qubesd.internal.sock", fake.serve):
        yield fake


@pytest.fixture
def warden(qubesd: FakeQubesd) -> Iterator[FakeWarden]:
    fake = FakeWarden()
    folder = qubesd.run / "qubes"
    with listening(folder / "qrexec.work", fake.serve), listening(folder / "qrexec.disp1", fake.serve):
        try:
            yield fake
        finally:
            if fake.gate is not None:
                fake.gate.set()          # nobody is kept waiting by a test that is over


@pytest.fixture
def real(root: Path) -> Iterator[Connection]:
    with real_qubesd(root) as connection:
        yield connection
