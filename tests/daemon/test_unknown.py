"""Unknown is not halted: qubes whose wardens say nothing, and qubes whose disks are held by who knows whom."""
from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.daemon.test_starts import Scene, furnish
from tests.patience import PATIENCE

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up
from cloison.daemon.wiring import DRIVERS
from cloison.errors import MachineError
from cloison.model.domains import READY, Qube
from cloison.storage.base import PoolError
from cloison.storage.qcow2 import Qcow2Pool
from cloison.values import PowerState
from cloison.wire.warden import Launch

HOLD = "import sys; file = open(sys.argv[1], 'rb+'); print('open', flush=True); sys.stdin.read()"
REFUSED = [
    ("admin.vm.Start", ""), ("admin.vm.Shutdown", ""), ("admin.vm.Shutdown", "force"), ("admin.vm.Pause", ""),
    ("admin.vm.Unpause", ""), ("admin.vm.Suspend", ""), ("admin.vm.Remove", ""), ("admin.vm.volume.CloneFrom", "private"),
    ("admin.vm.volume.Clear", "private"),
]


def play(tmp_path: Path, scenario: Callable[[Scene], Awaitable[None]], *later: Callable[[Scene], Awaitable[None]]) -> None:
    """Each with a daemon of its own, one after the other, on the same store and the same machines."""
    wardens = FakeWardens(str(tmp_path / "wardens"))

    async def run(work: Callable[[Scene], Awaitable[None]], *, first: bool) -> None:
        app = App(fake_parts(str(tmp_path), wardens=wardens, drivers=DRIVERS))
        await bring_up(app)
        if first:
            await furnish(app)
        try:
            async with asyncio.timeout(PATIENCE):
                await work(Scene(app))
        finally:
            await close_app(app)

    asyncio.run(run(scenario, first=True))
    for work in later:
        asyncio.run(run(work, first=False))


def work(scene: Scene) -> Qube:
    return scene.app.system.qube("work")


def image(scene: Scene) -> str:
    """The private volume's image that is in use."""
    volume = work(scene).volumes["private"]
    return scene.app.pool(volume.pool).path(scene.app.volumes.config(volume))


def is_dirty(scene: Scene) -> bool:
    volume = work(scene).volumes["private"]
    return scene.app.pool(volume.pool).is_dirty(scene.app.volumes.config(volume))


@contextmanager
def held(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has it open and is nobody's."""
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        yield process
        process.kill()


async def assert_untouched(scene: Scene) -> None:
    """Not halted, refused with a sentence, its disk not committed."""
    assert scene.power() is PowerState.TRANSIENT and work(scene).is_unknown
    assert "state=Transient" in await scene.text("admin.vm.List", "work")
    assert "qvm-kill work ends it" in (await scene.app.status())["problems"]["work"]
    for method, argument in REFUSED:
        answer = await ask(scene.app, method, "work", argument)
        assert answer.failure == "QubesVMError" and "qvm-kill work ends it" in answer.content, method
    assert "work" in scene.app.system.qubes and is_dirty(scene)


# -- silent wardens ------------------------------------------------------------------------------------------------------


def test_a_warden_that_falls_silent_and_speaks_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        scene.wardens.quiet(work(scene).uuid)
        await assert_untouched(scene)
        assert "the warden of work does not answer" in caplog.text
        scene.wardens.speak(work(scene).uuid, PowerState.PAUSED)
        silent, speaks = Path(scene.app.parts.paths.qube_log("work")).read_text().splitlines()
        assert "work: the warden of work does not answer; qvm-kill work ends it" in silent and "its warden answers again" in speaks
        assert scene.power() is PowerState.PAUSED and not work(scene).problem and (await scene.app.status())["problems"] == {}
        assert await scene.call("admin.vm.Unpause") == "ok"
        assert await scene.call("admin.vm.Shutdown", argument="wait") == "ok"
        assert scene.power() is PowerState.HALTED and not is_dirty(scene)

    play(tmp_path, scenario)


def test_a_silent_one_is_killed_and_its_data_is_committed(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        scene.wardens.quiet(work(scene).uuid)
        assert await scene.call("admin.vm.Kill") == "ok"
        assert scene.power() is PowerState.HALTED and not is_dirty(scene) and not work(scene).problem
        assert "were killed from outside" in Path(scene.app.parts.paths.qube_log("work")).read_text()
        assert ("work", "domain-shutdown") in scene.heard
        assert await scene.call("admin.vm.Remove") == "ok"

    play(tmp_path, scenario)


def test_the_next_qubesd_takes_a_silent_warden_for_unknown(tmp_path: Path) -> None:
    async def begin(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start", "net") == "ok"
        assert await scene.call("admin.vm.Start") == "ok"
        scene.wardens.silent.add(work(scene).uuid)

    async def next_one(scene: Scene) -> None:
        await assert_untouched(scene)
        assert scene.power("net") is PowerState.RUNNING
        assert work(scene).xid == 2 and scene.app.system.qube("net").xid == 1
        scene.wardens.speak(work(scene).uuid)
        assert scene.power() is PowerState.RUNNING and work(scene).xid == 2
        root = work(scene).volumes["root"]
        assert not scene.app.is_outdated(work(scene), root)
        assert scene.app.volumes._commits[work(scene).uuid, "root"]
        assert await scene.call("admin.vm.Kill", "net") == "ok"
        assert await scene.call("admin.vm.Start", "net") == "ok"
        assert scene.app.system.qube("net").xid == 3                         # no number is given twice
        scene.wardens.silent.add(work(scene).uuid)

    async def last(scene: Scene) -> None:
        assert await scene.call("admin.vm.Kill") == "ok"
        assert scene.power() is PowerState.HALTED and not is_dirty(scene)
        await scene.app.machines.shutdown(scene.app.system.qube("net"), force=True, wait=True)

    play(tmp_path, begin, next_one, last)


def test_a_silence_while_a_qube_starts_or_stops_changes_nothing(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        held_start = scene.hold("booting")
        start = scene.call("admin.vm.Start")
        await held_start.reached.wait()
        scene.wardens.on_event(work(scene).uuid, "silent", {})
        assert scene.power() is PowerState.TRANSIENT and not work(scene).problem
        held_start.go.set()
        assert await start == "ok" and scene.power() is PowerState.RUNNING
        assert await scene.call("admin.vm.Kill") == "ok"
        scene.wardens.on_event(work(scene).uuid, "silent", {})
        assert scene.power() is PowerState.HALTED and not work(scene).problem

    play(tmp_path, scenario)


def test_an_end_that_takes_its_time_is_dying(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        scene.wardens.on_event(work(scene).uuid, "ending", {})
        assert scene.power() is PowerState.DYING and work(scene).problem
        assert await scene.call("admin.vm.Remove") == "QubesVMNotHaltedError"
        scene.wardens.stop(work(scene).uuid)
        await scene.app.stopped(work(scene))
        assert scene.power() is PowerState.HALTED and not work(scene).problem

    play(tmp_path, scenario)


# -- disks that are held -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloison.daemon.machines.LOOK_AGAIN", 0.01)
    monkeypatch.setattr("cloison.storage.base.HELD", 0.5)


@pytest.mark.usefixtures("quick")
def test_a_machine_whose_disk_somebody_still_has_open_is_not_halted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        with held(image(scene)) as other:
            scene.wardens.stop(work(scene).uuid)
            await scene.until(lambda: work(scene).is_unknown)
            await assert_untouched(scene)
            assert "a process still has disks of work open" in caplog.text and "were not saved" not in caplog.text
            assert other.stdin is not None
            other.stdin.close()
            other.wait()
        await scene.app.stopped(work(scene))
        assert scene.power() is PowerState.HALTED and not is_dirty(scene) and not work(scene).problem

    play(tmp_path, scenario)


@pytest.mark.usefixtures("quick")
def test_a_start_that_fails_while_somebody_has_its_disk_open_leaves_the_qube_unknown(tmp_path: Path) -> None:
    """A QEMU that does not end, as one that waits for a disk that hangs."""
    async def scenario(scene: Scene) -> None:
        others: list[subprocess.Popen[bytes]] = []

        async def fail(_launch: Launch) -> None:
            others.append(stack.enter_context(held(image(scene))))
            raise MachineError("no answer")

        with ExitStack() as stack:
            scene.wardens.booting = fail
            assert (await ask(scene.app, "admin.vm.Start", "work")).content == "no answer"
            assert ("work", "domain-start-failed") in scene.heard and ("work", "domain-stopped") not in scene.heard
            assert "a process still has disks of work open; qvm-kill work ends it" in work(scene).problem
            await assert_untouched(scene)
            assert await scene.call("admin.vm.Kill") == "ok" and others[0].wait() == -signal.SIGKILL
        assert scene.power() is PowerState.HALTED and not is_dirty(scene) and not work(scene).problem

    play(tmp_path, scenario)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kill", [True, False])
def test_a_halted_qube_whose_disk_is_held_is_not_half_removed_and_needs_no_new_qubesd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool,
) -> None:
    """Its last stop could not commit, and somebody has opened the image since."""
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        with monkeypatch.context() as patch:
            patch.setattr(Qcow2Pool, "stop", lambda *_: (_ for _ in ()).throw(PoolError("can't commit", "no space")))
            assert await scene.call("admin.vm.Kill") == "ok"
        assert scene.power() is PowerState.HALTED and is_dirty(scene)
        with held(image(scene)) as other:
            for method in ("admin.vm.volume.Clear", "internal.vm.volume.ImportBegin"):
                socket = "qubesd.sock" if method.startswith("admin.") else "qubesd.internal.sock"
                answer = await ask(scene.app, method, "work", "private", socket=socket)
                assert "a process still has its image open" in answer.content, method
                assert scene.power() is PowerState.HALTED and is_dirty(scene)
            answer = await ask(scene.app, "admin.vm.Remove", "work")
            assert "a process still has disks of work open; qvm-kill work ends it" in answer.content
            assert work(scene).state == READY
            await assert_untouched(scene)
            if kill:
                assert await scene.call("admin.vm.Kill") == "ok"
            assert other.stdin is not None
            other.stdin.close()
            other.wait()
            await scene.app.stopped(work(scene))
        assert scene.power() is PowerState.HALTED and not is_dirty(scene) and not work(scene).problem
        assert await scene.call("admin.vm.Remove") == "ok"

    play(tmp_path, scenario)


@pytest.mark.usefixtures("quick")
def test_the_next_qubesd_mends_no_qube_whose_disk_is_held_and_kill_ends_who_holds_it(tmp_path: Path) -> None:
    holder: list[subprocess.Popen[bytes]] = []

    async def begin(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        scene.wardens._running.clear()
        os.unlink(tmp_path / "wardens" / f"{work(scene).uuid}.warden")
        holder.append(subprocess.Popen([sys.executable, "-c", HOLD, image(scene)], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert holder[0].stdout is not None and holder[0].stdout.readline() == b"open\n"

    async def next_one(scene: Scene) -> None:
        await assert_untouched(scene)

    async def after_that(scene: Scene) -> None:
        await assert_untouched(scene)                                        # its end changed nothing
        assert await scene.call("admin.vm.Kill") == "ok"
        assert holder[0].wait() == -9
        assert scene.power() is PowerState.HALTED and not is_dirty(scene)

    try:
        play(tmp_path, begin, next_one, after_that)
    finally:
        for process in holder:
            process.kill()
            process.communicate()


@pytest.mark.usefixtures("quick")
def test_a_disk_held_by_nobody_that_can_be_found_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("admin.vm.Start") == "ok"
        with held(image(scene)):
            monkeypatch.setattr("cloison.runtime.holders.who", lambda _path: [])
            scene.wardens.stop(work(scene).uuid)
            await scene.until(lambda: work(scene).is_unknown)
            assert "can be found" in await scene.text("admin.vm.Kill")
            assert is_dirty(scene) and scene.power() is PowerState.TRANSIENT
        await scene.app.stopped(work(scene))

    play(tmp_path, scenario)


def test_a_machine_of_a_qube_that_the_store_does_not_know_is_ended_and_its_number_not_given_again(tmp_path: Path) -> None:
    stranger = "00000000-0000-4000-8000-0000000000aa"

    async def begin(scene: Scene) -> None:
        facts = [stranger, "gone", 41, "Running", {}, [], "", ""]
        (tmp_path / "wardens" / f"{stranger}.warden").write_text(json.dumps(facts))

    async def next_one(scene: Scene) -> None:
        assert stranger not in scene.wardens.running()
        assert await scene.call("admin.vm.Start") == "ok"
        assert work(scene).xid == 42
        assert await scene.call("admin.vm.Kill") == "ok"

    play(tmp_path, begin, next_one)
