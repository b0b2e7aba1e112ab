"""Life cycles of qubes, each with all that it does in its order: `tests/golden/life/NAME.txt` (see `recorder`).

A change of a golden file is a change of what is done, or when: read the diff with care (`pytest --regenerate`).
"""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.daemon.recorder import INTERNAL, Recorder, recorder

from cloison.daemon.fake import close_app
from cloison.daemon.store import Store
from cloison.model.domains import CREATING, REMOVING
from cloison.model.journal import Row
from cloison.wire.agent import NO_PRIVATE

Scene = Callable[[Recorder], Awaitable[None]]
SCENES: dict[str, Scene] = {}


def scene(do: Scene) -> Scene:
    SCENES[do.__name__] = do
    return do


def touch(r: Recorder, name: str, volume: str = "private") -> None:
    """As a guest does that writes to it."""
    with open(r.pool.path(r.app.volumes.config(r.app.system.qube(name).volumes[volume])), "r+b") as file:
        file.write(b"written")


def uuid(r: Recorder, name: str) -> str:
    return r.app.system.qube(name).uuid


@scene
async def create_and_remove(r: Recorder) -> None:
    for klass, name in (("TemplateVM", "tpl2"), ("AppVM", "mail"), ("StandaloneVM", "alone"), ("RemoteVM", "far")):
        await r.call(f"admin.vm.Create.{klass}", "dom0", "", f"name={name} label=red")
    await r.call("admin.vm.CreateInPool.AppVM", "dom0", "tpl", "name=pooled label=red pool=varlibqubes")
    await r.call("admin.vm.Start", "mail")
    await r.call("admin.vm.Remove", "mail")
    await r.call("admin.vm.Kill", "mail")
    for name in ("tpl", "tpl2", "mail", "alone", "far", "pooled"):
        await r.call("admin.vm.Remove", name)


@scene
async def create_fails(r: Recorder) -> None:
    r.pool.fail.add("create")
    await r.call("admin.vm.Create.AppVM", "dom0", "", "name=mail label=red")
    await r.call("admin.vm.CreateDisposable", "dvm")


@scene
async def start_and_stop(r: Recorder) -> None:
    await r.call("admin.vm.property.Set", "work", "netvm", "net")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.Start", "work")
    touch(r, "work")
    await r.call("admin.vm.Shutdown", "net", "wait")
    await r.call("admin.vm.Shutdown", "work", "wait")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.Shutdown", "work")
    await r.call("admin.vm.Shutdown", "net", "force+wait")


@scene
async def starts_that_fail(r: Recorder) -> None:
    r.wardens.refuse.add("work")
    await r.call("admin.vm.Start", "work")
    r.wardens.refuse.clear()
    r.pool.fail.add("start")
    await r.call("admin.vm.Start", "work")
    r.pool.fail.clear()
    await r.call("admin.vm.feature.Set", "work", "prohibit-start", "no")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.feature.Remove", "work", "prohibit-start")
    await r.call("admin.vm.property.Set", "work", "memory", "1")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.property.Reset", "work", "memory")
    await r.call("admin.vm.property.Set", "work", "netvm", "net")
    r.wardens.refuse.add("net")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.CreateDisposable", "dvm")
    r.wardens.refuse.add("disp1000")
    await r.call("admin.vm.Start", "disp1000")
    r.wardens.refuse.clear()
    r.wardens.faint.add("work")
    await r.call("admin.vm.Start", "work")


@scene
async def ends_by_themselves(r: Recorder) -> None:
    for event in ("stopped", "failed"):
        await r.call("admin.vm.Start", "work")
        await r.happens(f"its machine has {event}", lambda event=event: r.wardens.stop(uuid(r, "work"), event))  # type: ignore[misc]
    await r.call("admin.vm.Start", "work")
    touch(r, "work")
    r.pool.fail.add("stop")
    await r.call("admin.vm.Kill", "work")
    r.pool.fail.clear()
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.Kill", "work")


@scene
async def pause_and_go_on(r: Recorder) -> None:
    for method in ("Pause", "Unpause", "Kill", "Shutdown", "Suspend"):
        await r.call(f"admin.vm.{method}", "work")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.Pause", "work")
    await r.call("admin.vm.Pause", "work")
    await r.call("admin.vm.Unpause", "work")
    await r.call("admin.vm.Unpause", "work")
    await r.call("admin.vm.Pause", "work")
    await r.call("admin.vm.Shutdown", "work")
    await r.call("admin.vm.Shutdown", "work", "force+wait")


@scene
async def no_disk_space(r: Recorder) -> None:
    await r.call("admin.vm.Start", "work")
    for state in ("running", "halting"):
        await r.happens("it finds no space", lambda: r.wardens.fill(uuid(r, "work"), "/disk"))
        await r.call("admin.vm.Unpause", "work")
        await r.call("admin.vm.Shutdown", "work", "wait")
        await r.happens("there is space", lambda state=state: r.wardens.free(uuid(r, "work"), state))  # type: ignore[misc]
    await r.happens("it finds no space", lambda: r.wardens.fill(uuid(r, "work"), "/disk"))
    await r.call("admin.vm.Pause", "work")
    await r.happens("there is space", lambda: r.wardens.free(uuid(r, "work")))
    await r.call("admin.vm.Kill", "work")


@scene
async def a_silent_warden(r: Recorder) -> None:
    await r.call("admin.vm.Start", "work")
    await r.happens("it says nothing", lambda: r.wardens.quiet(uuid(r, "work")))
    for method in ("Pause", "Unpause", "Shutdown", "Start", "Remove"):
        await r.call(f"admin.vm.{method}", "work")
    await r.happens("it answers", lambda: r.wardens.speak(uuid(r, "work")))
    await r.happens("it says nothing", lambda: r.wardens.quiet(uuid(r, "work")))
    await r.call("admin.vm.Kill", "work")


@scene
async def what_a_qube_says_at_its_start(r: Recorder) -> None:
    r.wardens.notes["work"] = f"{NO_PRIVATE}: damaged"
    await r.call("admin.vm.Start", "work")
    touch(r, "work")
    await r.call("admin.vm.Shutdown", "work", "wait")
    await r.call("admin.vm.volume.ListSnapshots", "work", "private")


@scene
async def a_template_changes(r: Recorder) -> None:
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.Start", "tpl")
    touch(r, "tpl", "root")
    await r.call("admin.vm.Shutdown", "tpl", "wait")
    await r.call("admin.vm.volume.Info", "work", "root")
    await r.call("admin.vm.Kill", "work")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.volume.Info", "work", "root")
    await r.call("admin.vm.Start", "tpl")
    await r.call("admin.vm.Shutdown", "tpl", "wait")


@scene
async def disposables(r: Recorder) -> None:
    await r.call("admin.vm.CreateDisposable", "work")
    await r.call("admin.vm.CreateDisposable", "dvm", source="work")
    await r.call("admin.vm.Start", "disp1000")
    await r.call("admin.vm.Shutdown", "disp1000", "wait")
    await r.call("admin.vm.CreateDisposable", "dvm", "uuid")
    await r.call("admin.vm.Remove", "disp1001")
    await r.call("admin.vm.Create.DispVM", "dom0", "dvm", "name=named label=red")
    await r.call("admin.vm.Start", "named")
    await r.call("admin.vm.Kill", "named")


@scene
async def volumes_change(r: Recorder) -> None:
    await r.call("admin.vm.volume.Resize", "work", "private", str(3 << 30))
    await r.call("admin.vm.volume.Resize", "work", "private", "1")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.volume.Resize", "work", "private", str(4 << 30))
    await r.call("admin.vm.volume.Resize", "work", "root", str(30 << 30))
    for call in (("Clear", ""), ("Revert", "1"), ("Set.revisions_to_keep", "2"), ("Set.rw", "False"), ("Set.ephemeral", "True")):
        await r.call(f"admin.vm.volume.{call[0]}", "work", "private", call[1])
    touch(r, "work")
    await r.call("admin.vm.Shutdown", "work", "wait")
    await r.call("admin.vm.volume.Revert", "work", "private", "77")
    [revision] = (await r.call("admin.vm.volume.ListSnapshots", "work", "private")).split()
    await r.call("admin.vm.volume.Revert", "work", "private", revision)
    await r.call("admin.vm.volume.Clear", "work", "private")
    await r.call("admin.vm.volume.Set.rw", "work", "root", "False")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.Kill", "work")
    await r.call("admin.vm.volume.Set.rw", "work", "private", "False")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.Kill", "work")


@scene
async def volumes_are_imported_and_cloned(r: Recorder) -> None:
    for status in ("ok", "fail"):
        path = (await r.call("internal.vm.volume.ImportBegin", "work", "private", str(1 << 20), socket=INTERNAL)).split(" ", 1)[1]
        await r.call("admin.vm.Start", "work")
        Path(path).write_bytes(b"new" * 512)
        await r.call("internal.vm.volume.ImportEnd", "work", "private", status, socket=INTERNAL)
    await r.call("internal.vm.volume.ImportEnd", "work", "private", "ok", socket=INTERNAL)
    token = await r.call("admin.vm.volume.CloneFrom", "net", "private")
    await r.call("admin.vm.volume.CloneTo", "work", "private", token)
    await r.call("admin.vm.volume.CloneTo", "work", "private", token)
    token = await r.call("admin.vm.volume.CloneFrom", "work", "private")
    await r.call("admin.vm.Start", "net")
    await r.call("admin.vm.volume.CloneTo", "net", "private", token)
    await r.call("admin.vm.Remove", "work")


@scene
async def a_root_is_sealed(r: Recorder) -> None:
    image = Path(r.app.parts.paths.tmp, "image")
    image.write_bytes(b"root" * 512)
    await r.call("internal.cloison.SealRoot", "tpl", "", str(image), socket=INTERNAL)
    await r.call("internal.cloison.SealRoot", "tpl", "", "/etc/passwd", socket=INTERNAL)
    await r.call("admin.vm.Start", "tpl")
    image.write_bytes(b"root" * 512)
    await r.call("internal.cloison.SealRoot", "tpl", "", str(image), socket=INTERNAL)


@scene
async def devices(r: Recorder) -> None:
    await r.call("admin.vm.Start", "net")
    await r.call("admin.vm.Start", "work")
    folder = "/qubes-block-devices"
    tree = {f"{folder}/sda/desc": "DISK ()", f"{folder}/sda/size": "1000", f"{folder}/sda/mode": "w"}
    await r.wardens.qdb_write(uuid(r, "net"), tree)
    await r.happens("it has a device", lambda: r.wardens.on_event(uuid(r, "net"), "qdb-change", {"path": folder}))
    await r.call("admin.vm.device.block.Attach", "work", "net+sda+_", "_read-only='yes'")
    await r.call("admin.vm.device.block.Attach", "work", "net+sda+_")
    await r.call("admin.vm.device.block.Detach", "work", "net+sda+_")
    await r.call("admin.vm.device.block.Detach", "work", "net+sda+_")
    await r.call("admin.vm.device.block.Assign", "work", "net+sda+_", "mode='required'")
    await r.call("admin.vm.Kill", "work")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.Remove", "net")
    await r.call("admin.vm.Kill", "net")
    await r.call("admin.vm.Kill", "work")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.device.block.Unassign", "work", "net+sda+_")


@scene
async def settings_of_a_running_qube(r: Recorder) -> None:
    await r.call("admin.vm.property.Set", "work", "netvm", "net")
    await r.call("admin.vm.Start", "work")
    await r.call("admin.vm.firewall.Set", "work", "", "action=accept dst4=1.2.3.0/24 expire=1700000100\naction=drop\n")
    await r.call("admin.vm.feature.Set", "work", "service.cups", "1")
    await r.call("admin.vm.feature.Remove", "work", "service.cups")
    await r.call("admin.vm.property.Set", "work", "keyboard_layout", "de++")
    r.host.time += 200
    await r.happens("rules end", r.app.live.expire)
    await r.call("admin.vm.Pause", "work")
    await r.call("admin.vm.property.Set", "work", "netvm", "")
    await r.call("admin.vm.Unpause", "work")
    await r.call("admin.vm.property.Set", "work", "netvm", "net")
    await r.call("admin.vm.Kill", "net")


@scene
async def qubesd_is_killed(r: Recorder) -> None:
    await r.call("admin.vm.Create.StandaloneVM", "dom0", "", "name=alone label=red")
    await r.call("admin.vm.CreateDisposable", "dvm")
    for name in ("net", "work", "alone", "disp1000", "tpl"):
        await r.call("admin.vm.Start", name)
    await r.call("admin.vm.Pause", "net")
    touch(r, "work")
    await r.restart(lambda: r.wardens.stop(uuid(r, "work")))
    await r.call("admin.vm.Unpause", "net")
    await r.call("admin.vm.Start", "work")
    await r.restart(lambda: r.wardens.stop(uuid(r, "disp1000")))
    await r.restart(lambda: r.wardens.silent.add(uuid(r, "alone")))
    await r.happens("it answers", lambda: r.wardens.speak(uuid(r, "alone")))
    for name in ("net", "work", "alone", "tpl"):
        await r.call("admin.vm.Shutdown", name, "force+wait")


@scene
async def what_was_half_done_when_qubesd_was_killed(r: Recorder) -> None:
    def halve() -> None:
        """As a store says it when it comes between two transactions."""
        store = Store(r.app.parts.store.path)
        for name, state in (("net", REMOVING), ("work", CREATING)):
            store.write([Row("qubes", r.app.system.qube(name).qid, "state", state)])
        store.close()

    await r.restart(halve)


@pytest.mark.parametrize("name", SCENES)
def test_a_life_cycle_does_this_in_this_order(
        tmp_path: Path, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`tpl` is the default template; of it are `net`, which provides network, `dvm` for disposables, and `work`."""
    monkeypatch.setenv("TZ", "UTC")

    async def run() -> str:
        r = await recorder(str(tmp_path))
        logger = logging.getLogger("cloison")
        level = logger.level
        try:
            await r.call("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black")
            await r.call("admin.property.Set", "dom0", "default_template", "tpl")
            for qube in ("net", "dvm", "work"):
                await r.call("admin.vm.Create.AppVM", "dom0", "", f"name={qube} label=red")
                await r.call("admin.vm.property.Set", qube, "netvm", "")
            await r.call("admin.vm.property.Set", "net", "provides_network", "True")
            await r.call("admin.vm.property.Set", "dvm", "template_for_dispvms", "True")
            r.lines.clear()
            logger.addHandler(r)
            logger.setLevel(logging.INFO)
            await SCENES[name](r)
        finally:
            logger.removeHandler(r)
            logger.setLevel(level)
            await close_app(r.app)
        return "\n".join(r.lines).lstrip() + "\n"

    golden(f"life/{name}.txt", asyncio.run(run()))
