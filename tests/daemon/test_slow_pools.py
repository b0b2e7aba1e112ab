"""A pool on a disk that hangs: whoever uses it waits, and every other caller is served meanwhile."""
from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.admin.qubesd import Driver
from cloison.daemon import recovery
from cloison.daemon.app import App
from cloison.daemon.fake import FakeHost, ask, fake_drivers, fake_parts
from cloison.daemon.recovery import bring_up
from cloison.storage.base import Pool, VolumeConfig
from cloison.storage.fake import FakePool
from cloison.wire.warden import DiskSource


class Disk:
    """Where threads get stuck. `stuck` is what they wait in, oldest first; `hangs`: methods that do."""

    def __init__(self) -> None:
        self.hangs: set[str] = set()
        self.stuck: asyncio.Queue[str] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._released = threading.Event()

    def touch(self, method: str) -> None:
        if method in self.hangs:
            self._loop.call_soon_threadsafe(self.stuck.put_nowait, method)
            assert self._released.wait(PATIENCE), f"{method} held up what would have released it"

    def release(self) -> None:
        self._released.set()


class SlowPool(FakePool):
    """A pool on such a disk."""

    def __init__(self, name: str, folder: str, disk: Disk) -> None:
        super().__init__(name, folder)
        self._disk = disk

    def setup(self) -> None:
        self._disk.touch("setup")
        super().setup()

    def destroy(self) -> None:
        self._disk.touch("destroy")
        super().destroy()

    def space(self) -> tuple[int, int]:
        self._disk.touch("space")
        return super().space()

    def usage(self, volume: VolumeConfig) -> int:
        self._disk.touch("usage")
        return super().usage(volume)

    def revisions(self, volume: VolumeConfig) -> list[str]:
        self._disk.touch("revisions")
        return super().revisions(volume)

    def start(self, volume: VolumeConfig) -> DiskSource:
        self._disk.touch("start")
        return super().start(volume)

    def is_dirty(self, volume: VolumeConfig) -> bool:
        self._disk.touch("is_dirty")
        return super().is_dirty(volume)

    def stop(self, volume: VolumeConfig) -> None:
        self._disk.touch("stop")
        super().stop(volume)

    def remove(self, volume: VolumeConfig) -> None:
        self._disk.touch("remove")
        super().remove(volume)


async def ok(app: App, method: str, dest: str = "dom0", argument: str = "", payload: str = "") -> str:
    answer = await ask(app, method, dest, argument, payload)
    assert not answer.failure, (method, answer)
    return answer.content


def run(tmp_path: Path, scenario: Callable[[App, Disk, str], Awaitable[None]]) -> None:
    """`scenario` gets an app with a template and, in a pool `slow`, an AppVM `stuck`; and the payload that adds another pool."""
    async def go() -> None:
        disk = Disk()

        def open_slow(name: str, config: Mapping[str, str]) -> Pool:
            return SlowPool(name, config["dir_path"], disk)

        drivers: dict[str, Driver] = {**fake_drivers(), "file": replace(fake_drivers()["qcow2"], open=open_slow)}
        app = App(fake_parts(str(tmp_path), drivers=drivers))
        await bring_up(app)
        await ok(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")
        await ok(app, "admin.pool.Add", argument="file", payload=f"name=slow\ndir_path={tmp_path}/slow")
        await ok(app, "admin.vm.CreateInPool.AppVM", argument="tpl", payload="name=stuck label=red pool:private=slow")
        try:
            async with asyncio.timeout(PATIENCE):
                await scenario(app, disk, f"name=more\ndir_path={tmp_path}/more")
        finally:
            disk.release()
            await app.machines.close()
            await app.parts.wardens.close()
            app.parts.store.close()

    asyncio.run(go())


async def others_are_served(app: App) -> None:
    """Reads, changes, volumes of another pool, and a start."""
    assert "stuck" in await ok(app, "admin.vm.List")
    await ok(app, "admin.vm.property.Set", "tpl", "memory", "500")
    await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload="name=honest label=blue")
    assert "path=" in await ok(app, "admin.vm.volume.Info", "honest", "private")
    await ok(app, "admin.vm.Start", "honest")
    await ok(app, "admin.vm.Kill", "honest")
    await ok(app, "admin.vm.Remove", "honest")


@pytest.mark.parametrize(("hangs", "method", "dest", "argument"), [
    ("setup", "admin.pool.Add", "dom0", "file"), ("space", "admin.pool.Info", "dom0", "slow"),
    ("space", "admin.pool.UsageDetails", "dom0", "slow"), ("usage", "admin.vm.volume.Info", "stuck", "private"),
    ("revisions", "admin.vm.volume.ListSnapshots", "stuck", "private"), ("start", "admin.vm.Start", "stuck", ""),
    ("remove", "admin.vm.Remove", "stuck", ""),
])
def test_everybody_else_is_served_while_a_disk_hangs(tmp_path: Path, hangs: str, method: str, dest: str, argument: str) -> None:
    async def scenario(app: App, disk: Disk, more: str) -> None:
        disk.hangs.add(hangs)
        waiting = asyncio.ensure_future(ask(app, method, dest, argument, more if argument == "file" else ""))
        assert await disk.stuck.get() == hangs
        await others_are_served(app)
        assert not waiting.done()
        disk.release()
        assert (await waiting).failure == ""

    run(tmp_path, scenario)


def test_a_pool_that_is_slow_to_go_is_gone_for_everybody_at_once(tmp_path: Path) -> None:
    async def scenario(app: App, disk: Disk, more: str) -> None:
        await ok(app, "admin.pool.Add", argument="file", payload=more)
        disk.hangs.add("destroy")
        waiting = asyncio.ensure_future(ask(app, "admin.pool.Remove", argument="more"))
        assert await disk.stuck.get() == "destroy"
        await others_are_served(app)
        assert "more" not in (await ok(app, "admin.pool.List")).split()
        assert (await ask(app, "admin.pool.Info", argument="more")).failure == "PermissionDenied"
        again = asyncio.ensure_future(ask(app, "admin.pool.Add", argument="file", payload=more))
        disk.release()
        assert [answer.failure for answer in await asyncio.gather(waiting, again)] == ["", ""], "one after the other"
        assert "more" in (await ok(app, "admin.pool.List")).split() and (tmp_path / "more").is_dir()

    run(tmp_path, scenario)


def test_one_of_two_who_add_the_same_pool_is_refused_and_the_folder_stays_the_others(tmp_path: Path) -> None:
    async def scenario(app: App, disk: Disk, more: str) -> None:
        disk.hangs.add("setup")
        first = asyncio.ensure_future(ask(app, "admin.pool.Add", argument="file", payload=more))
        assert await disk.stuck.get() == "setup"
        same = asyncio.ensure_future(ask(app, "admin.pool.Add", argument="file", payload=more))
        folder = asyncio.ensure_future(ask(app, "admin.pool.Add", argument="file", payload=more.replace("name=more", "name=twin")))
        disk.release()
        answers = await asyncio.gather(first, same, folder)
        assert [answer.failure for answer in answers] == ["", "QubesPoolInUseError", "StoragePoolException"]
        assert (await ok(app, "admin.pool.List")).split() == ["varlibqubes", "linux-kernel", "slow", "more"]
        await ok(app, "admin.pool.Remove", argument="more")
        assert not (tmp_path / "more").exists()

    run(tmp_path, scenario)


def test_twenty_calls_that_hang_hold_up_none_that_do_not(tmp_path: Path) -> None:
    """More than a small machine's usual number of threads."""
    async def scenario(app: App, disk: Disk, _more: str) -> None:
        disk.hangs.add("usage")
        waiting = [asyncio.ensure_future(ask(app, "admin.vm.volume.Info", "stuck", "private")) for _ in range(20)]
        for _ in waiting:
            await disk.stuck.get()
        await others_are_served(app)
        disk.release()
        assert {answer.failure for answer in await asyncio.gather(*waiting)} == {""}

    run(tmp_path, scenario)


# -- a daemon that comes up while a disk hangs ----------------------------------------------------------------------------


class Installation:
    """A store and pools that outlive their daemons: `tpl` in the default pool, `stuck` in `slow`, which starts by itself."""

    def __init__(self, tmp_path: Path, disk: Disk) -> None:
        self._path, self._pools, self._disk, self._host = tmp_path, dict[str, Pool](), disk, FakeHost()

    def _open(self, name: str, config: Mapping[str, str]) -> Pool:
        if name not in self._pools:
            folder = config["dir_path"]
            self._pools[name] = FakePool(name, folder) if name == "varlibqubes" else SlowPool(name, folder, self._disk)
        return self._pools[name]

    async def daemon(self) -> App:
        driver = replace(fake_drivers()["qcow2"], open=self._open)
        app = App(fake_parts(str(self._path), drivers={**fake_drivers(), "qcow2": driver, "file": driver}, host=self._host))
        await bring_up(app)
        return app

    async def furnish(self) -> None:
        """It was lost while `stuck` ran, as in a power cut."""
        app = await self.daemon()
        await ok(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")
        await ok(app, "admin.pool.Add", argument="file", payload=f"name=slow\ndir_path={self._path}/slow")
        await ok(app, "admin.vm.CreateInPool.AppVM", argument="tpl", payload="name=stuck label=red pool:private=slow")
        await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload="name=eager label=red")
        for name in ("stuck", "eager"):
            await ok(app, "admin.vm.property.Set", name, "autostart", "True")
        await ok(app, "admin.vm.Start", "stuck")
        await self.end(app)

    async def end(self, app: App) -> None:
        await app.close()
        await app.preloads.close()
        await app.machines.close()
        app.parts.store.close()


def come_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str, scenario: Callable[[App, Disk], Awaitable[None]]) -> None:
    monkeypatch.setattr(recovery, "POOL_TIME", 0.2)

    async def go() -> None:
        disk = Disk()
        installation = Installation(tmp_path, disk)
        await installation.furnish()
        disk.hangs.add(hangs)
        try:
            async with asyncio.timeout(PATIENCE):
                app = await installation.daemon()
                await scenario(app, disk)
                await installation.end(app)
        finally:
            disk.release()

    asyncio.run(go())


def test_a_pool_that_hangs_does_not_hold_up_the_daemons_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its qubes say why they can't be used; when it answers they are mended, and are as good as the others."""
    async def scenario(app: App, disk: Disk) -> None:
        await others_are_served(app)
        assert "slow" in await ok(app, "admin.pool.List")
        assert "size=" not in await ok(app, "admin.pool.Info", argument="slow")
        assert await ok(app, "admin.pool.UsageDetails", argument="slow") == ""
        assert "size=" in await ok(app, "admin.vm.volume.Info", "stuck", "private"), "as the model knows it"
        for call in (("admin.vm.Start", "stuck"), ("admin.vm.volume.Clear", "stuck", "private"),
                     ("admin.vm.CreateInPool.AppVM", "dom0", "tpl", "name=another label=red pool:private=slow")):
            answer = await ask(app, *call)
            assert answer.failure == "StoragePoolException" and "pool slow can't be used: it has not answered yet" in answer.content
        assert "another" not in app.system.qubes
        disk.release()
        await asyncio.gather(*app.recovering)
        assert not await app.volumes.is_dirty(app.system.qube("stuck")), "what the power cut left is committed"
        await ok(app, "admin.vm.Start", "stuck")
        assert "size=" in await ok(app, "admin.pool.Info", argument="slow")

    come_up(tmp_path, monkeypatch, "setup", scenario)


def test_a_pool_that_hangs_later_holds_up_its_own_qubes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(app: App, disk: Disk) -> None:
        await others_are_served(app)
        starting = asyncio.ensure_future(ask(app, "admin.vm.Start", "stuck"))
        await others_are_served(app)
        assert not starting.done()
        disk.release()
        assert (await starting).failure == ""

    come_up(tmp_path, monkeypatch, "is_dirty", scenario)


def test_what_starts_by_itself_starts_when_its_pool_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(app: App, disk: Disk) -> None:
        started: asyncio.Queue[str] = asyncio.Queue()
        app.listen(app.system.dom0, None, lambda qube, name, _: started.put_nowait(qube) if name == "domain-start" else None)
        starting = asyncio.ensure_future(app.autostart())
        assert await started.get() == "eager"
        disk.release()
        assert await started.get() == "stuck"
        await starting

    come_up(tmp_path, monkeypatch, "setup", scenario)


def test_a_daemon_ends_while_a_pool_hangs_and_the_next_one_mends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(app: App, disk: Disk) -> None:
        assert app.recovering
        await app.close()
        assert not app.recovering

    come_up(tmp_path, monkeypatch, "setup", scenario)
