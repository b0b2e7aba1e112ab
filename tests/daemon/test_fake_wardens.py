from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.contracts.wardens import WardensContract

from cloison.daemon.fake_wardens import FakeWardens
from cloison.values import PowerState
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer


class TestFakeWardens(WardensContract):
    @pytest.fixture(params=("memory", "folder"))
    def wardens(self, request: pytest.FixtureRequest, tmp_path: Path) -> FakeWardens:
        return FakeWardens(str(tmp_path) if request.param == "folder" else None)

    @pytest.fixture
    def launch(self) -> Launch:
        kernel = Kernel("6.6.1", "/k/vmlinuz", "/k/initramfs", "/k/modules.img")
        disk = DiskSource("root", 1 << 20, (Layer("/pool/root.1.img", "raw"),))
        return Launch("work", "00000000-0000-4000-8000-000000000001", 1, 400, 2, (disk,), kernel)

    def test_a_paused_one_is_taken_over_paused(self, wardens: FakeWardens, launch: Launch) -> None:
        async def run() -> None:
            await wardens.start(launch)
            await wardens.pause(launch.uuid)
            assert [(each.uuid, each.state) for each in await wardens.adopt()] == [(launch.uuid, PowerState.PAUSED)]

        asyncio.run(run())
