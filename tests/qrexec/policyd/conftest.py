"""The real qubesd, which policy asks for its facts."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.real_qubesd import real_qubesd
from tests.qrexec.policy_place import Place

from cloison.client.connection import Connection


@pytest.fixture
def qubesd(place: Place, tmp_path: Path) -> Iterator[Connection]:
    """On fake parts, in the place's installation."""
    with real_qubesd(tmp_path) as connection:
        yield connection
