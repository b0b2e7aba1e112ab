from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from cloison.daemon.fake_wardens import FakeWardens
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer

_spec = importlib.util.spec_from_file_location("contracts_wardens", Path(__file__).parents[1] / "contracts" / "wardens.py")
assert _spec is not None and _spec.loader is not None
contract = importlib.util.module_from_spec(_spec)
sys.modules["contracts_wardens"] = contract
_spec.loader.exec_module(contract)


class TestFakeWardens(contract.WardensContract):  # type: ignore[name-defined,misc]
    @pytest.fixture(params=("memory", "folder"))
    def wardens(self, request: pytest.FixtureRequest, tmp_path: Path) -> FakeWardens:
        return FakeWardens(str(tmp_path) if request.param == "folder" else None)

    @pytest.fixture
    def launch(self) -> Launch:
        kernel = Kernel("6.6.1", "/k/vmlinuz", "/k/initramfs", "/k/modules.img")
        disk = DiskSource("root", 1 << 20, (Layer("/pool/root.1.img", "raw"),))
        return Launch("work", "00000000-0000-4000-8000-000000000001", 1, 400, 2, (disk,), kernel)
