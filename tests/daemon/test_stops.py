"""What a stop leaves behind: each volume committed that can be, a warm image for the qubes of a template, numbers given once."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from tests.daemon.test_starts import Scene, furnish
from tests.patience import PATIENCE

from cloison.daemon.fake import ask, close_app, fake_app
from cloison.errors import StorageError
from cloison.model import deferred
from cloison.storage.base import VolumeConfig
from cloison.values import PowerState


def play(tmp_path: Path, scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        await furnish(app)
        try:
            async with asyncio.timeout(PATIENCE):
                await scenario(Scene(app))
        finally:
            await close_app(app)

    asyncio.run(run())


def mount(scene: Scene, name: str) -> None:
    """As the template's system does: what nothing was written to is no new commit."""
    volume = scene.app.volumes.config(scene.app.system.qube("tpl").volumes[name])
    with open(scene.pool.path(volume), "r+b") as file:
        file.write(b"mounted")


def test_a_volume_that_can_not_be_committed_keeps_no_other_from_it(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start", "tpl") == "ok"
        volumes = [scene.app.volumes.config(volume) for volume in scene.app.volumes.kept(scene.app.system.qube("tpl"))]
        assert len(volumes) > 1 and all(map(scene.pool.is_dirty, volumes))
        real, asked = scene.pool.stop, []

        def stop(volume: VolumeConfig) -> None:
            asked.append(volume.vid)
            if volume.vid == volumes[0].vid:
                raise StorageError("EIO")
            real(volume)

        scene.pool.stop = stop                                      # type: ignore[method-assign]
        assert await scene.call("admin.vm.Kill", "tpl") == "ok"
        assert set(asked) == {volume.vid for volume in volumes}
        assert [scene.pool.is_dirty(volume) for volume in volumes] == [True, *[False] * (len(volumes) - 1)]
        assert scene.power("tpl") is PowerState.HALTED

    play(tmp_path, scenario)


def test_a_template_that_has_stopped_gets_a_new_warm_image_and_loses_the_old(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        assert await scene.call("admin.vm.Kill") == "ok" and len(scene.wardens.warm_images()) == 1
        commit, dropped = scene.app.volumes.root_commit(scene.app.system.qube("tpl")), []

        async def forget(commits: Collection[str]) -> None:
            dropped.extend(commits)

        scene.wardens.forget_warm = forget                          # type: ignore[method-assign]
        assert await scene.call("admin.vm.Start", "tpl") == "ok"
        mount(scene, "root")
        made = scene.hold("warming")
        assert await scene.call("admin.vm.Shutdown", "tpl", "wait") == "ok"
        await made.reached.wait()
        made.go.set()
        assert scene.power("tpl") is PowerState.HALTED
        assert dropped == [commit] != [scene.app.volumes.root_commit(scene.app.system.qube("tpl"))]
        assert await scene.call("admin.vm.Start") == "ok" and len(scene.wardens.warm_images()) == 2

    play(tmp_path, scenario)


def test_a_template_with_absurd_settings_makes_no_warm_image(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start", "tpl") == "ok"
        assert not (await ask(scene.app, "admin.vm.property.Set", "tpl", "memory", "1")).failure
        assert await scene.call("admin.vm.Kill", "tpl") == "ok"
        for task in list(scene.app.machines.launches._preparing):
            await task
        assert scene.wardens.warm_images() == []
        assert await scene.call("admin.vm.Start", "tpl") == "QubesVMError"
        assert scene.power("tpl") is PowerState.HALTED and ("tpl", "domain-start-failed") in scene.heard

    play(tmp_path, scenario)


def test_a_change_of_netvm_that_waited_is_forgotten_with_the_machine(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        assert await scene.call("admin.vm.Pause") == "ok"
        with scene.app.transaction():
            scene.app.system.qube("work").set_feature(deferred.FEATURE, "net")
        assert await scene.call("admin.vm.Kill") == "ok"
        assert deferred.FEATURE not in scene.app.system.qube("work").features

    play(tmp_path, scenario)


def test_a_start_that_comes_while_a_stop_is_handled_waits_for_it(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        real, begun, go = scene.app.volumes.stop, asyncio.Event(), asyncio.Event()

        async def slow(qube: object) -> None:
            begun.set()
            await go.wait()
            await real(qube)                                        # type: ignore[arg-type]

        scene.app.volumes.stop = slow                               # type: ignore[method-assign, assignment]
        kill = scene.call("admin.vm.Kill")
        await begun.wait()
        assert scene.power() is PowerState.DYING
        start = scene.call("admin.vm.Start")
        await asyncio.sleep(0)
        go.set()
        assert await kill == "ok" and await start == "ok"
        assert scene.power() is PowerState.RUNNING and scene.is_dirty()
        assert [launch.xid for launch in scene.wardens.launches] == [1, 2]

    play(tmp_path, scenario)


def test_an_end_of_qubesd_waits_for_a_stop_that_is_being_handled(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        real, begun, go = scene.app.volumes.stop, asyncio.Event(), asyncio.Event()

        async def slow(qube: object) -> None:
            begun.set()
            await go.wait()
            await real(qube)                                        # type: ignore[arg-type]

        scene.app.volumes.stop = slow                               # type: ignore[method-assign, assignment]
        kill = scene.call("admin.vm.Kill")
        await begun.wait()
        close = asyncio.create_task(scene.app.machines.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not close.done()
        go.set()
        await close
        assert scene.power() is PowerState.HALTED and not scene.is_dirty()
        assert await kill == "ok"

    play(tmp_path, scenario)


def test_a_shutdown_of_a_qube_whose_machine_has_just_ended_waits_for_its_stop(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        for word in ("", "wait"):
            assert await scene.call("admin.vm.Start") == "ok"
            scene.wardens.stop(scene.app.system.qube("work").uuid)
            assert scene.power("work") is PowerState.RUNNING, "its stop has not been handled yet"
            assert await scene.call("admin.vm.Shutdown", "work", word) == "ok"
            await scene.app.machines.settled(scene.app.system.qube("work"))
            assert scene.power("work") is PowerState.HALTED

    play(tmp_path, scenario)
