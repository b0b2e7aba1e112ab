"""The fake pool keeps the promises of a real one."""
from pathlib import Path

import pytest
from tests.contracts.pool import PoolContract

from cloison.storage.fake import FakePool


class TestFakePool(PoolContract):
    @pytest.fixture
    def pool(self, tmp_path: Path) -> FakePool:
        pool = FakePool("fake", str(tmp_path / "pool"))
        pool.setup()
        return pool
