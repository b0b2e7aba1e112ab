"""qubesd on a file system that is really full: `python full_disk.py DIR`, DIR a tmpfs. Run by test_full_disk.py.

Everything that gives space back, or ends something, works on the full disk; everything that takes space is refused with a sentence.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up
from cloison.daemon.space import Level
from cloison.daemon.wiring import DRIVERS

MIB = 1 << 20
SETUP = (
    ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"), ("admin.property.Set", "dom0", "default_template", "tpl"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=work label=red"), ("admin.vm.Create.AppVM", "dom0", "", "name=idle label=red"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=spare label=red"),
    ("admin.vm.property.Set", "idle", "template_for_dispvms", "True"),
    ("admin.vm.volume.Clear", "idle", "private", ""), ("admin.vm.Start", "work", "", ""),
)


def fill(root: Path) -> Path:
    """Nothing at all is left."""
    ballast = root / "ballast"
    with open(ballast, "ab", 0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    assert os.statvfs(root).f_bavail == 0
    return ballast


async def ok(app: App, method: str, dest: str = "dom0", argument: str = "", payload: str = "") -> str:
    answer = await ask(app, method, dest, argument, payload)
    assert not answer.failure, (method, answer.content)
    return answer.content


async def up(root: Path) -> App:
    app = App(fake_parts(str(root), drivers=DRIVERS, wardens=FakeWardens(str(root / "wardens"))))
    await bring_up(app)
    return app


async def remove(app: App) -> None:
    await ok(app, "admin.vm.Remove", "spare")


async def kill(app: App) -> None:
    """Its last session is committed, though the disk is full."""
    await ok(app, "admin.vm.Kill", "work")
    qube = app.system.qube("work")
    assert qube.is_halted and not await app.volumes.is_dirty(qube)


async def shut_down(app: App) -> None:
    await ok(app, "admin.vm.Shutdown", "work", "wait")
    assert not await app.volumes.is_dirty(app.system.qube("work"))


async def clear(app: App) -> None:
    await ok(app, "admin.vm.volume.Clear", "idle", "private")


async def revert(app: App) -> None:
    revision = (await ok(app, "admin.vm.volume.ListSnapshots", "idle", "private")).split()[0]
    await ok(app, "admin.vm.volume.Revert", "idle", "private", revision)


async def keep_less(app: App) -> None:
    await ok(app, "admin.vm.volume.Set.revisions_to_keep", "idle", "private", "0")


async def dispose(app: App) -> None:
    """A disposable that ran goes."""
    await ok(app, "admin.vm.Kill", "disp")
    await app.machines.settled(app.system.qubes.get("disp") or app.system.dom0)
    await ok(app, "admin.vm.Remove", "disp")


HELPS: dict[str, Callable[[App], Awaitable[None]]] = {
    "remove": remove, "kill": kill, "shut down": shut_down, "clear": clear, "revert": revert, "keep less": keep_less,
    "dispose": dispose,
}


async def helps(root: Path, what: str) -> None:
    app = await up(root)
    for step in SETUP:
        await ok(app, *step)
    await ok(app, "admin.vm.Create.DispVM", "dom0", "idle", "name=disp label=red")
    await ok(app, "admin.vm.Start", "disp")
    await app.space.look()
    assert os.path.exists(root / "data" / "reserve")
    ballast = fill(root)
    await HELPS[what](app)
    await app.space.look()
    if what == "remove":                         # others may find room in what they free themselves
        assert not os.path.exists(root / "data" / "reserve"), "it was needed, and is not made again while there is no space"
    [warning] = app.space.warnings()
    assert warning.endswith("the disk is as good as full; no further qube starts, and those that write will stop"), warning
    for method, dest, argument, payload in (
        ("admin.vm.Start", "tpl", "", ""), ("admin.vm.Start", "idle", "", "")):
        answer = await ask(app, method, dest, argument, payload)
        assert "is not started: only " in answer.content and str(root / "data") in answer.content, answer
    await close_app(app)
    fill(root)
    again = await up(root)                       # killed on a full disk, it comes up again
    os.unlink(ballast)
    await again.space.look()
    assert os.path.exists(root / "data" / "reserve") and again.space.warnings() == []
    await ok(again, "admin.vm.Start", "tpl")
    await ok(again, "admin.vm.Kill", "tpl")
    await close_app(again)


async def without_reserve(root: Path) -> None:
    """What can't be done then says so, and changes nothing."""
    app = await up(root)
    for step in SETUP:
        await ok(app, *step)
    fill(root)
    assert app.parts.store.reserves.spend(str(root / "data"))
    ballast = fill(root)
    answer = await ask(app, "admin.vm.Create.AppVM", "dom0", "", "name=new label=red")
    assert "database or disk is full; nothing was changed" in answer.content, answer
    answer = await ask(app, "admin.vm.volume.Clear", "idle", "private")
    assert answer.content.endswith("; nothing was changed"), answer
    os.unlink(ballast)
    await app.space.look()
    assert app.space._found[os.stat(root / "data").st_dev].level is Level.PLENTY
    await ok(app, "admin.vm.Create.AppVM", "dom0", "", "name=new label=red")
    await ok(app, "admin.vm.Kill", "work")
    await close_app(app)


def main() -> None:
    place = Path(sys.argv[1])
    for what in HELPS:
        root = place / "root"
        root.mkdir()
        asyncio.run(helps(root, what))
        shutil.rmtree(root)
        print(what)
    root = place / "root"
    root.mkdir()
    asyncio.run(without_reserve(root))
    print("without")


if __name__ == "__main__":
    main()
