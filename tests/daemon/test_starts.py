"""A start under way: who sees it, who can end it, what is left of one that was given up."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.daemon.sockets import request, served
from tests.patience import PATIENCE

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_app
from cloison.daemon.fake_wardens import FakeWardens
from cloison.storage.fake import FakePool
from cloison.values import PowerState
from cloison.wire.warden import Launch


class Held:
    """Something that a start waits in, until it is let go or cancelled."""

    def __init__(self) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self.cancelled = 0

    async def __call__(self, _launch: Launch) -> None:
        self.reached.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Scene:
    def __init__(self, app: App) -> None:
        self.app = app
        self.heard: list[tuple[str, str]] = []
        self.tasks: list[asyncio.Task[str]] = []
        app.listen(app.system.dom0, None, lambda subject, name, _: self.heard.append((subject, name)))

    @property
    def wardens(self) -> FakeWardens:
        assert isinstance(self.app.parts.wardens, FakeWardens)
        return self.app.parts.wardens

    @property
    def pool(self) -> FakePool:
        pool = self.app.pool("varlibqubes")
        assert isinstance(pool, FakePool)
        return pool

    def hold(self, where: str) -> Held:
        held = Held()
        setattr(self.wardens, where, held)
        return held

    def power(self, name: str = "work") -> PowerState:
        return self.app.system.qube(name).power

    def is_dirty(self, name: str = "work") -> bool:
        volume = self.app.system.qube(name).volumes["private"]
        return self.pool.is_dirty(self.app.volumes.config(volume))

    def call(self, method: str, dest: str = "work", argument: str = "") -> asyncio.Task[str]:
        async def run() -> str:
            answer = await ask(self.app, method, dest, argument)
            return answer.failure or "ok"

        task = asyncio.create_task(run())
        self.tasks.append(task)
        return task

    async def text(self, method: str, dest: str = "work") -> str:
        return (await ask(self.app, method, dest)).content

    async def until(self, true: Callable[[], bool]) -> None:
        """Looked at after each event."""
        news = asyncio.Event()
        stop = self.app.listen(self.app.system.dom0, None, lambda *_: news.set())
        while not true():
            await news.wait()
            news.clear()
        stop()

    def undone(self, name: str = "work") -> bool:
        """As before the start: nothing runs, no disk is in use, and it was told."""
        return (self.power(name) is PowerState.HALTED and not self.is_dirty(name) and not self.wardens.running()
                and self.app.system.qube(name).xid == -1 and (name, "domain-start-failed") in self.heard)


async def furnish(app: App) -> None:
    for method, dest, argument, payload in (
        ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"),
        ("admin.property.Set", "dom0", "default_template", "tpl"),
        ("admin.vm.Create.AppVM", "dom0", "", "name=work label=blue"), ("admin.vm.Create.AppVM", "dom0", "", "name=net label=red"),
        ("admin.vm.property.Set", "net", "provides_network", "True"),
    ):
        assert not (await ask(app, method, dest, argument, payload)).failure


def play(tmp_path: Path, scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        await furnish(app)
        scene = Scene(app)
        try:
            async with asyncio.timeout(PATIENCE):
                await scenario(scene)
        finally:
            for task in scene.tasks:
                task.cancel()
            await close_app(app)

    asyncio.run(run())


WHERE = ["warming", "booting"]


@pytest.mark.parametrize("where", WHERE)
def test_a_starting_qube_is_transient_and_is_neither_removed_nor_changed(tmp_path: Path, where: str) -> None:
    async def scenario(scene: Scene) -> None:
        held = scene.hold(where)
        start = scene.call("admin.vm.Start")
        await held.reached.wait()
        assert "state=Transient" in await scene.text("admin.vm.List")
        assert "work" in (await scene.app.status())["qubes"]
        assert await scene.call("admin.vm.Remove") == "QubesVMNotHaltedError"
        assert await scene.call("admin.vm.Pause") == "QubesVMNotRunningError"
        assert await scene.call("admin.vm.volume.Clear", argument="private") == "QubesVMNotHaltedError"
        held.go.set()
        assert await start == "ok" and scene.power() is PowerState.RUNNING
        assert scene.app.machines.starts[scene.app.system.qube("work").uuid] == "warm"

    play(tmp_path, scenario)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("method", "argument"), [
    ("admin.vm.Kill", ""), ("admin.vm.Shutdown", ""), ("admin.vm.Shutdown", "force+wait")])
def test_kill_and_shutdown_end_a_start(tmp_path: Path, where: str, method: str, argument: str) -> None:
    async def scenario(scene: Scene) -> None:
        held = scene.hold(where)
        start = scene.call("admin.vm.Start")
        await held.reached.wait()
        scene.heard.clear()
        assert await scene.call(method, argument=argument) == "ok"
        assert scene.undone() and held.cancelled == 1
        assert await start == "QubesVMError"
        assert scene.app.system.qube("work").start_time is None
        assert await scene.call(method, argument=argument) == "QubesVMNotStartedError"
        held.go.set()
        assert await scene.call("admin.vm.Start") == "ok" and scene.power() is PowerState.RUNNING

    play(tmp_path, scenario)


def test_who_waits_in_line_does_not_start_what_was_killed(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        held = scene.hold("warming")
        starts = [scene.call("admin.vm.Start") for _ in range(3)]
        await held.reached.wait()
        assert await scene.call("admin.vm.Kill") == "ok"
        assert [await start for start in starts] == ["QubesVMError"] * 3
        assert scene.undone() and held.cancelled == 1

    play(tmp_path, scenario)


def test_who_waits_in_line_goes_on_when_the_first_has_gone(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        held = scene.hold("warming")
        first, second = scene.call("admin.vm.Start"), scene.call("admin.vm.Start")
        await held.reached.wait()
        first.cancel()
        await asyncio.wait({first})
        held.go.set()
        assert await second == "ok" and scene.power() is PowerState.RUNNING

    play(tmp_path, scenario)


def test_a_qube_killed_while_its_netvm_starts(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert not (await ask(scene.app, "admin.vm.property.Set", "work", "netvm", "net")).failure
        held = scene.hold("warming")
        start = scene.call("admin.vm.Start")
        await held.reached.wait()
        assert scene.power("net") is scene.power("work") is PowerState.TRANSIENT
        assert await scene.call("admin.vm.Kill", "net") == "ok"
        assert await start == "QubesVMError"
        assert scene.undone("net") and scene.undone("work")

    play(tmp_path, scenario)


def test_a_client_waits_for_a_netvm_that_others_start(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert not (await ask(scene.app, "admin.vm.property.Set", "work", "netvm", "net")).failure
        held = scene.hold("booting")
        net = scene.call("admin.vm.Start", "net")
        await held.reached.wait()
        work = scene.call("admin.vm.Start")
        held.go.set()
        assert (await net, await work) == ("ok", "ok")
        assert [launch.name for launch in scene.wardens.launches] == ["net", "work"]

    play(tmp_path, scenario)


def test_autostart_goes_on_with_the_next_when_one_is_killed(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        for name in ("net", "work"):
            assert not (await ask(scene.app, "admin.vm.property.Set", name, "autostart", "True")).failure
        held = scene.hold("booting")
        autostart = asyncio.create_task(scene.app.autostart())
        await held.reached.wait()
        held.go.set()
        assert scene.power("net") is PowerState.TRANSIENT
        assert await scene.call("admin.vm.Kill", "net") == "ok"
        await autostart
        assert scene.power("net") is PowerState.HALTED and scene.power("work") is PowerState.RUNNING

    play(tmp_path, scenario)


def test_an_end_of_qubesd_while_a_start_is_under_way_leaves_it_undone(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        held = scene.hold("warming")
        start = scene.call("admin.vm.Start")
        await held.reached.wait()
        start.cancel()
        start.cancel()
        await asyncio.wait({start})
        assert start.cancelled() and scene.undone()

    play(tmp_path, scenario)


def test_disks_that_are_being_made_ready_are_waited_for_before_they_are_stopped(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        ready, begun = asyncio.Event(), asyncio.Event()
        real, order = scene.app.volumes.start, []

        async def slow(qube: object) -> object:
            begun.set()
            await ready.wait()
            order.append("started")
            return await real(qube)                                     # type: ignore[arg-type]

        scene.app.volumes.start = slow                                  # type: ignore[method-assign, assignment]
        start = scene.call("admin.vm.Start")
        await begun.wait()
        kill = scene.call("admin.vm.Kill")
        await asyncio.sleep(0)
        assert not kill.done() and scene.power() is PowerState.TRANSIENT
        ready.set()
        assert await kill == "ok" and await start == "QubesVMError"
        assert order == ["started"] and scene.undone()

    play(tmp_path, scenario)


def test_a_start_whose_disks_never_answer_is_said_not_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloison.daemon.starts.GIVE_UP_TIME", 0.01)

    async def scenario(scene: Scene) -> None:
        ready, begun = asyncio.Event(), asyncio.Event()

        async def hangs(_qube: object) -> object:
            begun.set()
            await ready.wait()
            return ()

        scene.app.volumes.start = hangs                                 # type: ignore[method-assign, assignment]
        start = scene.call("admin.vm.Start")
        await begun.wait()
        assert "do not answer" in await scene.text("admin.vm.Kill")
        assert scene.power() is PowerState.TRANSIENT
        ready.set()
        assert await start == "QubesVMError"

    play(tmp_path, scenario)


def test_a_kill_as_the_machine_comes_up_ends_the_machine(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def attach(_qube: object) -> None:
            begun.set()
            await go.wait()

        scene.app.attachments.attach_wanted = attach                    # type: ignore[method-assign]
        start = scene.call("admin.vm.Start")
        await begun.wait()
        assert scene.power() is PowerState.RUNNING
        kill = scene.call("admin.vm.Kill")
        await asyncio.sleep(0)
        go.set()
        assert await start == "ok" and await kill == "ok"
        await scene.app.stopped(scene.app.system.qube("work"))
        assert scene.power() is PowerState.HALTED and not scene.wardens.running() and not scene.is_dirty()

    play(tmp_path, scenario)


def test_a_disposable_killed_while_it_starts_is_gone(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert not (await ask(scene.app, "admin.vm.property.Set", "work", "template_for_dispvms", "True")).failure
        name = (await ask(scene.app, "admin.vm.CreateDisposable", "work")).content
        held = scene.hold("booting")
        start = scene.call("admin.vm.Start", name)
        await held.reached.wait()
        assert await scene.call("admin.vm.Kill", name) == "ok"
        assert await start == "QubesVMError" and name not in scene.app.system.qubes

    play(tmp_path, scenario)


# -- callers that go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", WHERE)
def test_a_start_ends_with_its_caller(tmp_path: Path, where: str) -> None:
    async def scenario(app: App, path: str) -> None:
        await furnish(app)
        scene = Scene(app)
        held = scene.hold(where)
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b"admin.vm.Start+ dom0 name work\0")
        writer.write_eof()
        await held.reached.wait()
        writer.close()
        await scene.until(scene.undone)
        assert held.cancelled == 1
        held.go.set()
        assert await request(path, b"admin.vm.Start+ dom0 name work\0") == b"0\0"
        assert scene.power() is PowerState.RUNNING

    served(tmp_path, scenario)


def test_a_disposable_that_nobody_waits_for_any_more_is_gone(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        await furnish(app)
        assert not (await ask(app, "admin.vm.property.Set", "work", "template_for_dispvms", "True")).failure
        scene = Scene(app)
        held = scene.hold("warming")
        before = list(app.system.qubes)
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b"cloison.Disposable+ dom0 name work\0")
        writer.write_eof()
        await held.reached.wait()
        assert len(app.system.qubes) == len(before) + 1
        writer.close()
        await scene.until(lambda: list(app.system.qubes) == before)
        assert held.cancelled == 1 and not scene.wardens.running()

    served(tmp_path, scenario)


def test_other_calls_go_on_without_their_caller(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        await furnish(app)
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b"admin.vm.Create.AppVM+ dom0 name dom0\0name=mail label=green")
        writer.write_eof()
        writer.close()
        await Scene(app).until(lambda: "mail" in app.system.qubes and app.system.qube("mail").state == "ready")

    served(tmp_path, scenario)
