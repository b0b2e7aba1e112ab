"""What every implementation of `Wardens` must do. Subclass it and provide `wardens` and `launch` fixtures."""
from __future__ import annotations

import asyncio
import dataclasses
import socket
from typing import Any

import pytest
from tests.patience import PATIENCE

from cloison.daemon.wardens import Wardens
from cloison.errors import MachineError
from cloison.wire.blocks import Block
from cloison.wire.warden import Launch


class Heard:
    """Collects events and waits for one."""

    def __init__(self, wardens: Wardens) -> None:
        self.events: list[tuple[str, str]] = []
        self._news = asyncio.Event()
        wardens.on_event = self._hear

    def _hear(self, uuid: str, event: str, _detail: dict[str, Any]) -> None:
        self.events.append((uuid, event))
        self._news.set()

    async def until(self, uuid: str, *events: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while not any((uuid, event) in self.events for event in events):
                self._news.clear()
                await self._news.wait()


class WardensContract:
    def test_start_then_kill(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            heard = Heard(wardens)
            assert await wardens.adopt() == []
            await wardens.start(launch)
            assert wardens.running() == [launch.uuid]
            await wardens.kill(launch.uuid)
            assert (launch.uuid, "stopped") in heard.events
            assert wardens.running() == []
            await wardens.close()

        asyncio.run(run())

    def test_second_start_is_refused(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            Heard(wardens)
            await wardens.start(launch)
            with pytest.raises(MachineError):
                await wardens.start(launch)
            await wardens.kill(launch.uuid)
            await wardens.close()

        asyncio.run(run())

    def test_shutdown_is_followed_by_stopped(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            heard = Heard(wardens)
            await wardens.start(launch)
            await wardens.shutdown(launch.uuid)
            await heard.until(launch.uuid, "stopped")
            assert wardens.running() == []
            await wardens.close()

        asyncio.run(run())

    def test_pause_and_unpause(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            Heard(wardens)
            await wardens.start(launch)
            await wardens.pause(launch.uuid)
            assert wardens.running() == [launch.uuid]
            await wardens.unpause(launch.uuid)
            await wardens.kill(launch.uuid)
            await wardens.close()

        asyncio.run(run())

    def test_a_disk_grows_and_one_that_is_not_there_is_an_error(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            Heard(wardens)
            await wardens.start(launch)
            await wardens.resize(launch.uuid, "root", launch.disks[0].size * 2)
            for role, size in (("nope", 1 << 30), ("modules", 1 << 30)):
                with pytest.raises(MachineError):
                    await wardens.resize(launch.uuid, role, size)
            await wardens.kill(launch.uuid)
            await wardens.close()

        asyncio.run(run())

    def test_unknown_qube_is_a_machine_error(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            Heard(wardens)
            for refused in (wardens.pause, wardens.unpause, wardens.shutdown, wardens.kill):
                with pytest.raises(MachineError):
                    await refused(launch.uuid)
            with pytest.raises(MachineError):
                await wardens.resize(launch.uuid, "root", 1 << 30)
            with pytest.raises(MachineError):
                await wardens.service(launch.uuid, "qubes.ResizeDisk", b"root\n")
            await wardens.close()

        asyncio.run(run())

    def test_lease_ends_the_qube_with_its_holder(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            heard = Heard(wardens)
            ours, theirs = socket.socketpair()
            await wardens.start(launch, theirs)
            theirs.close()
            ours.shutdown(socket.SHUT_WR)       # a caller that has asked is not a caller that has gone
            await wardens.pause(launch.uuid)
            assert wardens.running() == [launch.uuid]
            await wardens.unpause(launch.uuid)
            ours.close()
            await heard.until(launch.uuid, "stopped", "failed")
            assert wardens.running() == []
            await wardens.close()

        asyncio.run(run())

    def test_qubesdb_of_a_running_qube_is_read_and_written(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            Heard(wardens)
            await wardens.start(launch)
            await wardens.qdb_write(launch.uuid, {"/a/one": "1", "/a/two": "x y", "/b": "3"})
            assert await wardens.qdb_read(launch.uuid, "/a/") == {"/a/one": b"1", "/a/two": b"x y"}
            await wardens.qdb_write(launch.uuid, {"/a/one": None})
            assert await wardens.qdb_read(launch.uuid, "/a/") == {"/a/two": b"x y"}
            await wardens.kill(launch.uuid)
            for call in (wardens.qdb_read(launch.uuid, "/"), wardens.console(launch.uuid)):
                with pytest.raises(MachineError):
                    await call
            await wardens.close()

        asyncio.run(run())

    def test_a_device_that_no_qube_serves_is_not_attached(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            heard = Heard(wardens)
            await wardens.start(launch)
            nobody = Block("xvdi", "00000000-0000-4000-8000-0000000000ff", "sda", read_only=True)
            for refused in (wardens.attach(launch.uuid, nobody), wardens.detach(launch.uuid, "xvdi")):
                with pytest.raises(MachineError):
                    await refused
            await wardens.kill(launch.uuid)
            for refused in (wardens.attach(launch.uuid, nobody), wardens.detach(launch.uuid, "xvdi")):
                with pytest.raises(MachineError):
                    await refused
            assert not [event for _, event in heard.events if event.startswith("block-")]
            await wardens.close()

        asyncio.run(run())

    def test_a_console_is_a_terminal_of_the_host(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            Heard(wardens)
            await wardens.start(launch)
            path = await wardens.console(launch.uuid)
            assert path.startswith("/dev/")
            assert await wardens.console(launch.uuid) == path
            await wardens.kill(launch.uuid)
            await wardens.close()

        asyncio.run(run())

    def test_warm_images_are_kept_and_forgotten(self, wardens: Wardens, launch: Launch) -> None:
        async def run() -> None:
            Heard(wardens)
            said: list[str] = []
            first = await wardens.ensure_warm(launch, said.append)
            assert await wardens.ensure_warm(dataclasses.replace(launch, name="other"), said.append) == first
            images = wardens.warm_images()
            assert (first is None) == (not images)
            await wardens.forget_warm(["no-such-commit"])
            assert wardens.warm_images() == images
            await wardens.close()

        asyncio.run(run())
