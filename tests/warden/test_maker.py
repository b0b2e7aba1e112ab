"""A warm image in the making whose machine stops by itself: an error at once that says why, and nothing is left."""
from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import tempfile
from pathlib import Path

import pytest
from tests.warden.test_main import Place

from cloison.hypervisor.base import MachineSpec
from cloison.hypervisor.fake import FakeMachine
from cloison.warden import maker
from cloison.wire.warden import Kernel, Lines


@pytest.mark.parametrize(("why", "sentence"), [
    ("io-error", "no warm image was made: {warm} is full"),
    ("internal-error", "no warm image was made: its machine stopped: internal-error"),
])
def test_a_machine_that_stops_by_itself(why: str, sentence: str) -> None:
    with tempfile.TemporaryDirectory(prefix="cloison-") as folder:
        place = Place(Path(folder))
        parts = [str(Path(folder, name)) for name in ("vmlinuz", "initramfs", "modules")]
        for part in parts:
            Path(part).write_bytes(bytes(512))
        launch = dataclasses.replace(place.launch, kernel=Kernel("6.1", *parts))

        async def run() -> list[dict[str, object]]:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                def machine(spec: MachineSpec) -> FakeMachine:
                    return FakeMachine(spec, lambda each, _port: each.write(why))

                async with asyncio.timeout(30):
                    await maker.make(place.paths, launch, theirs, machine)
                return Lines().feed(ours.recv(65536))

        said = asyncio.run(run())
        assert said[-1] == {"error": sentence.format(warm=place.paths.warm)}
        assert os.listdir(place.paths.warm) == []
