"""A store that can't be written, at each write of each call that changes something: alone, with the pool, and a pool alone.

Afterwards a call that says "nothing was changed" has changed nothing, in the model, in the store and in the pools. One that says
something else has left model and pools in agreement, and the store agrees after the next change, or with the next qubesd.
"""
from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.test_volumes import GIB, INTERNAL, MIB, Disks, run

from cloison.daemon.app import App
from cloison.daemon.fake import Answer, ask, close_app, fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up
from cloison.daemon.wiring import DRIVERS
from cloison.model.domains import READY
from cloison.storage.base import PoolError
from cloison.storage.image_pool import ImagePool
from cloison.storage.volume import VolumeFiles

NOTHING = "nothing was changed"
Do = Callable[[Disks], Awaitable[Answer]]


def call(method: str, dest: str = "dom0", argument: str = "", payload: str = "", socket: str = "qubesd.sock") -> Do:
    return lambda disks: ask(disks.app, method, dest, argument, payload, socket=socket)


async def revert(disks: Disks) -> Answer:
    [revision] = await disks.revisions()
    return await ask(disks.app, "admin.vm.volume.Revert", "work", "private", revision)


async def import_(disks: Disks) -> Answer:
    begun = await ask(disks.app, "internal.vm.volume.ImportBegin", "work", "private", str(3 * MIB), socket=INTERNAL)
    if begun.failure:
        return begun
    Path(begun.content.split(" ", 1)[1]).write_bytes(b"new" * MIB)
    return await ask(disks.app, "internal.vm.volume.ImportEnd", "work", "private", "ok", socket=INTERNAL)


async def clone_to(disks: Disks) -> Answer:
    token = await disks.ok("admin.vm.volume.CloneFrom", "copy", "private")
    return await ask(disks.app, "admin.vm.volume.CloneTo", "work", "private", token)


async def seal(disks: Disks) -> Answer:
    path = Path(disks.app.parts.paths.tmp, "image")
    path.write_bytes(b"root" * MIB)
    return await ask(disks.app, "internal.cloison.SealRoot", "tpl", payload=str(path), socket=INTERNAL)


async def run_and_stop(disks: Disks) -> Answer:
    """Its volumes are committed, and what a snapshot had grown to is forgotten: both are the daemon's own doing."""
    started = await ask(disks.app, "admin.vm.Start", "work")
    if started.failure:
        return started
    grown = await ask(disks.app, "admin.vm.volume.Resize", "work", "root", str(30 * GIB))
    await ask(disks.app, "admin.vm.Pause", "work")
    netvm = await ask(disks.app, "admin.vm.property.Set", "work", "netvm", "")
    killed = await ask(disks.app, "admin.vm.Kill", "work")
    assert not killed.failure and disks.app.system.qube("work").is_halted, killed
    return next((answer for answer in (grown, netvm) if answer.failure), killed)


CALLS: dict[str, Do] = {
    "create": call("admin.vm.Create.AppVM", payload="name=new label=red"),
    "create-standalone": call("admin.vm.Create.StandaloneVM", payload="name=new label=red"),
    "create-named-disposable": call("admin.vm.Create.DispVM", argument="copy", payload="name=new label=red"),
    "create-disposable": call("admin.vm.CreateDisposable", "copy"),
    "remove": call("admin.vm.Remove", "work"),
    "resize": call("admin.vm.volume.Resize", "work", "private", str(3 * GIB)),
    "clear": call("admin.vm.volume.Clear", "work", "private"),
    "revert": revert, "import": import_, "clone-to": clone_to, "seal-root": seal, "run-and-stop": run_and_stop,
    "keep": call("admin.vm.volume.Set.revisions_to_keep", "work", "private", "3"),
    "rw": call("admin.vm.volume.Set.rw", "work", "root", "False"),
    "ephemeral": call("admin.vm.volume.Set.ephemeral", "work", "volatile", "True"),
    "pool-add": call("admin.pool.Add", argument="qcow2"),
    "pool-remove": call("admin.pool.Remove", argument="spare"),
    "pool-keep": call("admin.pool.Set.revisions_to_keep", argument="second", payload="2"),
    "pool-ephemeral": call("admin.pool.Set.ephemeral_volatile", argument="second", payload="True"),
    "assign": call("admin.vm.device.block.Assign", "work", "copy+sda+*", "device_id='*' mode='required'"),
    "property": call("admin.vm.property.Set", "work", "provides_network", "True"),
    "reset": call("admin.vm.property.Reset", "work", "memory"),
    "global": call("admin.property.Set", argument="clockvm", payload="work"),
    "feature": call("admin.vm.feature.Set", "work", "servicevm", "1"),
    "service-of-the-host": call("admin.vm.feature.Set", "dom0", "service.thing", "1"),
    "tag": call("admin.vm.tag.Set", "work", "mine"),
    "firewall": call("admin.vm.firewall.Set", "work", payload="action=drop\n"),
    "notes": call("admin.vm.notes.Set", "work", payload="a note"),
    "label": call("admin.label.Create", argument="pink", payload="0xff00ff"),
}


@dataclass
class Store:
    """The app's store, its writes counted from now on; those whose numbers are in `fail` fail."""

    app: App
    fail: range = range(0)
    writes: int = 0
    refused: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._write = self.app.parts.store._write_rows
        self.app.parts.store._write_rows = self._count  # type: ignore[method-assign]

    def _count(self, rows: Any) -> None:
        self.writes += 1
        if self.writes in self.fail:
            self.refused.append(self.writes)
            raise sqlite3.OperationalError("disk I/O error")
        self._write(rows)


def model(app: App) -> dict[str, object]:
    """All that is stored, as the daemon has it."""
    system = app.system
    qubes = {qube.name: (qube.uuid, qube.klass, qube.state, dict(qube.values), dict(qube.features), list(qube.tags),
                         dict(qube.volumes), dict(qube.texts), dict(qube.assignments)) for qube in system.qubes.values()}
    kept = {name: (pool.driver, dict(pool.config)) for name, pool in system.pools.items()}
    return {**qubes, "system": (dict(system.values), dict(system.labels), kept)}


def rows(app: App) -> list[str]:
    """All that is stored, as it is on disk. The numbers of rows are nobody's business."""
    with sqlite3.connect(f"file:{app.parts.paths.store}?mode=ro", uri=True) as database:
        lines = []
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f"SELECT * FROM {table}"):  # noqa: S608 the table's name is ours
                lines.append(f"{table} {row[1:] if table != 'qubes' else row}")
    database.close()
    return sorted(lines)


def pools(root: Path) -> dict[str, object]:
    """Records and images of all volumes, and the folders of pools."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        inside = any(part in path.parts for part in ("appvms", "vm-templates"))
        if inside and path.suffix == ".json":
            found[str(path)] = path.read_text()
        elif inside:
            found[str(path)] = path.stat().st_size if path.is_file() else None
    return found


def assert_agreed(app: App) -> None:
    """Each volume of the model is in its pool, and as large as it says; none is half made."""
    for qube in app.system.qubes.values():
        if qube.state != READY:
            continue
        for volume in qube.volumes.values():
            if volume.save_on_stop or volume.snap_on_start:
                assert app.pool(volume.pool).size(app.volume_config(qube, volume)) == volume.size, (qube.name, volume.name)
            if volume.save_on_stop and qube.is_halted:
                assert not app.pool(volume.pool).is_dirty(app.volume_config(qube, volume)), (qube.name, volume.name)


def assert_no_strangers(app: App, root: Path) -> None:
    """No file of a qube that there is not."""
    names = set(app.system.qubes)
    for path in root.rglob("*"):
        if path.parent.name in ("appvms", "vm-templates"):
            assert path.name in names, path


async def prepared(disks: Disks, root: Path) -> None:
    await disks.import_(b"old" * MIB)
    await disks.ok("admin.vm.property.Set", "work", "memory", "500")
    await disks.ok("admin.vm.property.Set", "copy", "template_for_dispvms", "True")
    await disks.ok("admin.pool.Add", argument="qcow2", payload=f"name=spare\ndir_path={root}/spare")


async def attempt(disks: Disks, name: str, root: Path) -> Answer:
    if name == "pool-add":
        return await call("admin.pool.Add", argument="qcow2", payload=f"name=third\ndir_path={root}/third")(disks)
    return await CALLS[name](disks)


async def again(root: Path) -> App:
    app = App(fake_parts(str(root), drivers=DRIVERS, wardens=FakeWardens(str(root / "wardens"))))
    await bring_up(app)
    return app


def settle(app: App) -> Awaitable[None]:
    return asyncio.wait_for(_settle(app), 30)


async def _settle(app: App) -> None:
    await app.live.settled()
    await app.preloads.settled()


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("name", CALLS)
def test_store_and_pools_agree_wherever_the_store_fails(tmp_path: Path, name: str, forever: bool) -> None:
    """The n-th write fails, for every n until none is left; then once more the same with all that follow."""
    number, failed = 0, True
    while failed:
        number += 1
        root = tmp_path / str(number)
        root.mkdir()
        failed = _fails_at(root, name, range(number, 1000 if forever else number + 1))
        assert number < 12
    assert number > 1, "the call writes at least once"


def _fails_at(root: Path, name: str, fail: range) -> bool:
    """Whether so many writes came that one failed."""
    seen: list[bool] = []

    async def scenario(disks: Disks) -> None:
        app = disks.app
        await prepared(disks, root)
        before = (model(app), rows(app), pools(root))
        store = Store(app, fail)
        answer = await attempt(disks, name, root)
        await settle(app)
        seen.append(bool(store.refused))
        if not store.refused:
            assert not answer.failure, answer
            assert (model(app), rows(app), pools(root)) != before or name == "run-and-stop"
        elif name == "run-and-stop":                # these are several calls; the end is told whatever could not be stored
            started = "domain-start" in [what for _, what, _ in disks.events]
            assert not started or ("work", "domain-shutdown") in [(who, what) for who, what, _ in disks.events]
        elif answer.failure and NOTHING in answer.content:
            assert (model(app), rows(app), pools(root)) == before, answer.content
        elif answer.failure:
            assert " but " in answer.content or "when qubesd starts" in answer.content, answer.content
        assert_agreed(app)
        store.fail = range(0)
        await disks.ok("admin.vm.tag.Set", "copy", "the-next-change")
        if not any(qube.state != READY for qube in app.system.qubes.values()):
            kept = model(app)
            fresh = App(fake_parts(str(root), drivers=DRIVERS))
            fresh.parts.store.load(fresh.system)
            assert model(fresh) == kept, "the store agrees after the next change"
            fresh.parts.store.close()

    run(root, scenario)

    async def next_daemon() -> None:
        app = await again(root)
        assert_agreed(app)
        assert_no_strangers(app, root)
        assert all(qube.state == READY for qube in app.system.qubes.values())
        await close_app(app)

    asyncio.run(next_daemon())
    return seen[0]


@pytest.mark.parametrize("both", [False, True], ids=["pool", "pool-and-store"])
@pytest.mark.parametrize("name", [
    "create", "create-standalone", "remove", "resize", "clear", "revert", "import", "clone-to", "seal-root"])
def test_a_pool_whose_records_can_not_be_written(
    tmp_path: Path, name: str, both: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At each of its records; with `both` the store fails from the same moment on."""
    number, failed = 0, True
    while failed:
        number += 1
        root = tmp_path / str(number)
        root.mkdir()
        with monkeypatch.context() as patch:
            failed = _pool_fails_at(root, name, number, both, patch)
        assert number < 8
    assert number > 1


def _pool_fails_at(root: Path, name: str, number: int, both: bool, patch: pytest.MonkeyPatch) -> bool:
    count = 0

    async def scenario(disks: Disks) -> None:
        app = disks.app
        await prepared(disks, root)
        before = (model(app), rows(app), pools(root))
        store = Store(app)

        def fails(real: Callable[..., Any]) -> Callable[..., Any]:
            def write(*args: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    store.fail = range(1, 1000) if both else range(0)
                    raise PoolError("can't write a record", "input/output error", "Look at the disk.")
                return real(*args)
            return write

        with patch.context() as inner:
            inner.setattr(VolumeFiles, "write", fails(VolumeFiles.write))
            if name == "remove":
                inner.setattr(ImagePool, "remove", fails(ImagePool.remove))
            answer = await attempt(disks, name, root)
            await settle(app)
        if count >= number:
            assert answer.failure, name
            if name != "remove" and not both:
                assert (model(app), pools(root)) == (before[0], before[2]), answer
            assert_agreed(app)
        store.fail = range(0)

    run(root, scenario)

    async def next_daemon() -> None:
        app = await again(root)
        assert_agreed(app)
        assert_no_strangers(app, root)
        await close_app(app)

    asyncio.run(next_daemon())
    return count >= number


def test_a_new_qube_has_nothing_of_an_earlier_one_whose_pool_was_away(tmp_path: Path) -> None:
    """It could be removed all the same; what it had must not become another's."""
    async def scenario(disks: Disks) -> None:
        await disks.import_(b"secret" * MIB, qube="copy")
        pool = disks.app.volumes._open.pop("second")
        disks.app.volumes._closed["second"] = "its disk is not there"
        await disks.ok("admin.vm.Remove", "copy")
        disks.app.volumes._open["second"] = pool
        await disks.ok("admin.vm.CreateInPool.AppVM", payload="name=copy label=red pool:private=second")
        assert b"secret" not in disks.content("copy")[:MIB]
        assert await disks.size("copy") == 2 * GIB

    run(tmp_path, scenario)


def test_files_that_can_not_be_removed_keep_the_qube_doomed_and_the_next_try_removes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(disks: Disks) -> None:
        with monkeypatch.context() as patch:
            def fail(*_: object) -> None:
                raise PoolError("can't remove volume appvms/work/private", "input/output error")
            patch.setattr(ImagePool, "remove", fail)
            answer = await ask(disks.app, "admin.vm.Remove", "work")
        assert "work is removed but for this: can't remove volume appvms/work/private: input/output error" in answer.content
        assert "It never starts again" in answer.content
        assert "work is being removed" in (await ask(disks.app, "admin.vm.Start", "work")).content
        await disks.ok("admin.vm.Remove", "work")
        assert "work" not in disks.app.system.qubes
        assert_no_strangers(disks.app, tmp_path)

    run(tmp_path, scenario)


def test_what_is_owed_is_paid_once_and_not_for_a_qube_that_is_gone(tmp_path: Path) -> None:
    async def owing(disks: Disks) -> None:
        store = Store(disks.app, range(2, 3))
        answer = await CALLS["resize"](disks)
        assert answer.content.startswith(f"volume private of work has {3 * GIB} bytes from the next start on, but the store ")
        assert disks.app.system.qube("work").volumes["private"].size == 3 * GIB and len(disks.app._owed) == 1
        store.fail = range(0)

    async def scenario(disks: Disks) -> None:
        await owing(disks)
        await disks.ok("admin.vm.tag.Set", "copy", "the-next-change")
        assert disks.app._owed == {}
        await disks.ok("admin.vm.volume.Resize", "work", "private", str(4 * GIB))
        await disks.ok("admin.vm.volume.Clear", "work", "private")
        qube = disks.app.system.qube("work")
        disks.app._owed[qube, "private"] = None
        disks.app.system.qubes.pop("work")          # gone, as it is after its removal
        disks.app.parts.store._database.execute("DELETE FROM qubes WHERE name = 'work'")
        await disks.ok("admin.vm.tag.Set", "copy", "another")
        assert disks.app._owed == {}

    run(tmp_path, scenario)
