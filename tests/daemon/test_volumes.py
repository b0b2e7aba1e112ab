"""The volume and pool calls of the Admin API on real pools of both drivers, with machines that only pretend."""
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cloison.daemon.app import App
from cloison.daemon.fake import ask, fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up
from cloison.daemon.wiring import DRIVERS
from cloison.errors import StorageError
from cloison.model.domains import CREATING, REMOVING
from cloison.storage.base import PoolError, VolumeConfig
from cloison.storage.qcow2 import Qcow2Pool

GIB, MIB = 1 << 30, 1 << 20
INTERNAL = "qubesd.internal.sock"


class Disks:
    """An app with a template `tpl` and AppVMs `work` and `copy`; `copy`'s private is in the second pool."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.events: list[tuple[str, str, dict[str, str]]] = []
        app.listen(app.system.dom0, None, lambda subject, name, pairs: self.events.append((subject, name, dict(pairs))))

    @property
    def wardens(self) -> FakeWardens:
        assert isinstance(self.app.parts.wardens, FakeWardens)
        return self.app.parts.wardens

    async def ok(self, method: str, dest: str = "dom0", argument: str = "", payload: str = "", socket: str = "qubesd.sock") -> str:
        answer = await ask(self.app, method, dest, argument, payload, socket=socket)
        assert not answer.failure, (method, answer)
        return answer.content

    async def fails(
        self, method: str, dest: str = "dom0", argument: str = "", payload: str = "", socket: str = "qubesd.sock",
    ) -> str:
        answer = await ask(self.app, method, dest, argument, payload, socket=socket)
        assert answer.failure, (method, answer)
        return answer.failure

    async def info(self, qube: str = "work", volume: str = "private") -> dict[str, str]:
        text = await self.ok("admin.vm.volume.Info", qube, volume)
        return dict(line.split("=", 1) for line in text.splitlines())

    async def size(self, qube: str = "work", volume: str = "private") -> int:
        return int((await self.info(qube, volume))["size"])

    async def revisions(self, qube: str = "work", volume: str = "private") -> list[str]:
        return (await self.ok("admin.vm.volume.ListSnapshots", qube, volume)).split()

    async def import_(self, content: bytes, qube: str = "work", size: str | None = None) -> None:
        """As the Import script does it."""
        payload = str(len(content)) if size is None else size
        length, _, path = (await self.ok("internal.vm.volume.ImportBegin", qube, "private", payload, INTERNAL)).partition(" ")
        fill(Path(path), content)
        assert int(length) >= len(content)
        await self.ok("internal.vm.volume.ImportEnd", qube, "private", "ok", INTERNAL)

    def content(self, qube: str = "work", volume: str = "private") -> bytes:
        """The committed state."""
        with self._exported(qube, volume) as path:
            return path.read_bytes()

    def blocks(self, qube: str = "work", volume: str = "private") -> tuple[int, dict[int, bytes]]:
        """The same of a large volume: its size, and by its place each MiB that is not all zeros."""
        with self._exported(qube, volume) as path, path.open("rb") as file:
            size, found, place = path.stat().st_size, {}, 0
            with contextlib.suppress(OSError):       # ENXIO: only a hole is left
                while place < size:
                    place = os.lseek(file.fileno(), place, os.SEEK_DATA) // MIB * MIB
                    block = os.pread(file.fileno(), MIB, place)
                    if block.strip(b"\0"):
                        found[place] = block
                    place += MIB
            return size, found

    @contextlib.contextmanager
    def _exported(self, qube: str, volume: str) -> Iterator[Path]:
        found = self.app.system.qube(qube).volumes[volume]
        pool, config = self.app.pool(found.pool), self.app.volume_config(self.app.system.qube(qube), found)
        path = pool.export_begin(config)
        try:
            yield Path(path)
        finally:
            pool.export_end(config, path)


def fill(path: Path, content: bytes) -> None:
    """Write to the beginning of a file that is there."""
    with path.open("r+b") as file:
        file.write(content)


def run(tmp_path: Path, scenario: Callable[[Disks], Awaitable[None]]) -> None:
    async def go() -> None:
        app = App(fake_parts(str(tmp_path), drivers=DRIVERS, wardens=FakeWardens(str(tmp_path / "wardens"))))
        await bring_up(app)
        disks = Disks(app)
        if "tpl" not in app.system.qubes:
            second = f"name=second\ndir_path={tmp_path}/2\nsetup_check=False"
            await disks.ok("admin.pool.Add", argument="file-reflink", payload=second)
            await disks.ok("admin.vm.Create.TemplateVM", payload="name=tpl label=black")
            await disks.ok("admin.property.Set", argument="default_template", payload="tpl")
            await disks.ok("admin.vm.Create.AppVM", payload="name=work label=blue")
            await disks.ok("admin.vm.CreateInPool.AppVM", payload="name=copy label=red pool:private=second")
        disks.events.clear()
        try:
            await scenario(disks)
            assert app.system.journal.rows == []
        finally:
            await app.machines.close()
            await disks.wardens.close()
            app.parts.store.close()

    asyncio.run(go())


def test_revert_brings_back_content_and_size(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.import_(b"\1" * MIB)
        await disks.import_(b"\2" * 2 * MIB)
        assert await disks.size() == 2 * MIB
        await disks.ok("admin.vm.volume.Set.revisions_to_keep", "work", "private", "3")
        (old,) = await disks.revisions()
        await disks.ok("admin.vm.volume.Revert", "work", "private", f" {old}\n")
        assert await disks.size() == MIB and disks.content() == b"\1" * MIB
        assert len(await disks.revisions()) == 2, "what it was before is a revision, too"
        await disks.ok("admin.vm.volume.Clear", "work", "private")
        assert disks.content()[1080:1082] == b"\x53\xef", "an empty file system, as a new qube has"
        await disks.ok("admin.vm.volume.Revert", "work", "private", old)
        assert disks.content() == b"\1" * MIB

    run(tmp_path, scenario)


@pytest.mark.parametrize(("revision", "failure"), [
    ("77", "StoragePoolException"), ("0", "StoragePoolException"), ("1 2", "ProtocolError"), ("../1", "ProtocolError"),
    ("\N{SUPERSCRIPT ONE}", "ProtocolError"), ("9" * 100, "StoragePoolException"), ("%s", "ProtocolError"),
])
def test_revert_to_what_is_no_revision(tmp_path: Path, revision: str, failure: str) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.import_(b"\1" * MIB)
        assert await disks.fails("admin.vm.volume.Revert", "work", "private", revision) == failure
        assert disks.content() == b"\1" * MIB

    run(tmp_path, scenario)


def test_what_changes_content_is_refused_while_the_qube_runs(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.import_(b"\1" * MIB)
        token = await disks.ok("admin.vm.volume.CloneFrom", "copy", "private")
        (revision,) = await disks.revisions()
        await disks.ok("admin.vm.Start", "work")
        for method, payload in (("Revert", revision), ("Clear", ""), ("CloneTo", token), ("Set.rw", "False"),
                                ("Set.revisions_to_keep", "-1")):
            assert await disks.fails(f"admin.vm.volume.{method}", "work", "private", payload) == "QubesVMNotHaltedError"
        assert await disks.fails("internal.vm.volume.ImportBegin", "work", "private", "5", INTERNAL) == "QubesVMNotHaltedError"
        again = await disks.fails("admin.vm.volume.CloneTo", "work", "private", token)
        assert again == "QubesVolumeCopyTokenNotFoundError", "a token is used up by a failure"
        await disks.ok("admin.vm.volume.Set.revisions_to_keep", "work", "private", "0")
        await disks.ok("admin.vm.Kill", "work")
        assert disks.content() == b"\1" * MIB and await disks.revisions() == []

    run(tmp_path, scenario)


def test_a_clone_crosses_pools_both_ways(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.import_(b"\1" * MIB + bytes(8 * MIB) + b"\2" * 512)
        token = await disks.ok("admin.vm.volume.CloneFrom", "work", "private")
        assert len(token) == 32 and token.isalnum()
        await disks.ok("admin.vm.volume.CloneTo", "copy", "private", token)
        assert disks.content("copy") == disks.content() and await disks.size("copy") == await disks.size()
        assert ("copy", "domain-import-volume", {"name": "private", "source": "appvms/work/private"}) in disks.events
        await disks.ok("admin.vm.volume.Clear", "work", "private")
        back = await disks.ok("admin.vm.volume.CloneFrom", "copy", "private")
        await disks.ok("admin.vm.volume.CloneTo", "work", "private", back)
        assert disks.content() == disks.content("copy")

    run(tmp_path, scenario)


def test_a_clone_of_a_running_qube_takes_its_last_committed_state(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.import_(b"\1" * MIB)
        await disks.ok("admin.vm.Start", "work")
        token = await disks.ok("admin.vm.volume.CloneFrom", "work", "private")
        await disks.ok("admin.vm.volume.CloneTo", "copy", "private", token)
        assert disks.content("copy") == b"\1" * MIB

    run(tmp_path, scenario)


def test_clone_tokens_are_bounded_and_die_with_their_volume(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        first = await disks.ok("admin.vm.volume.CloneFrom", "work", "private")
        tokens = [await disks.ok("admin.vm.volume.CloneFrom", "work", "private") for _ in range(300)]
        assert len(set(tokens)) == 300 and len(disks.app.tokens) <= 256
        assert await disks.fails("admin.vm.volume.CloneTo", "copy", "private", first) == "QubesVolumeCopyTokenNotFoundError"
        await disks.ok("admin.vm.Remove", "work")
        await disks.ok("admin.vm.Create.AppVM", payload="name=work label=blue")
        gone = await disks.fails("admin.vm.volume.CloneTo", "copy", "private", tokens[-1])
        assert gone == "QubesVolumeCopyTokenNotFoundError", "never the volume of another qube with that name"

    run(tmp_path, scenario)


@pytest.mark.parametrize("volume", ["root", "volatile", "kernel"])
def test_what_keeps_nothing_takes_nothing(tmp_path: Path, volume: str) -> None:
    async def scenario(disks: Disks) -> None:
        token = await disks.ok("admin.vm.volume.CloneFrom", "copy", "private")
        for method, payload in (("Revert", "1"), ("Clear", ""), ("CloneTo", token)):
            assert await disks.fails(f"admin.vm.volume.{method}", "work", volume, payload) == "StoragePoolException"
        own = await disks.ok("admin.vm.volume.CloneFrom", "work", volume)
        assert await disks.fails("admin.vm.volume.CloneTo", "copy", "private", own) == "StoragePoolException"
        assert await disks.fails("internal.vm.volume.ImportBegin", "work", volume, "5", INTERNAL) == "StoragePoolException"
        assert await disks.revisions("work", volume) == []

    run(tmp_path, scenario)


def test_import_without_a_size_keeps_it_and_odd_sizes_become_whole_sectors(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.import_(b"\1" * MIB)
        await disks.import_(b"\3" * 100, size="")
        assert await disks.size() == MIB and disks.content() == b"\3" * 100 + bytes(MIB - 100)
        await disks.import_(b"\4" * 700)
        assert await disks.size() == 1024 and disks.content() == b"\4" * 700 + bytes(324)
        begin, end = disks.events[-2:]
        assert begin == ("work", "domain-volume-import-begin", {"volume": "private", "size": "700"})
        assert end == ("work", "domain-volume-import-end", {"volume": "private", "success": "True"})

    run(tmp_path, scenario)


@pytest.mark.parametrize("size", ["0", "-1", "01", "x", "1" * 20, str(1 << 60), " "])
def test_import_refuses_sizes_out_of_range(tmp_path: Path, size: str) -> None:
    async def scenario(disks: Disks) -> None:
        failure = await disks.fails("internal.vm.volume.ImportBegin", "work", "private", size, INTERNAL)
        assert failure in ("ProtocolError", "StoragePoolException")
        await disks.ok("admin.vm.Start", "work")

    run(tmp_path, scenario)


def test_an_import_that_fails_leaves_the_volume_and_tells_why(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.import_(b"\1" * MIB)
        await disks.ok("internal.vm.volume.ImportBegin", "work", "private", str(MIB), INTERNAL)
        assert await disks.fails("admin.vm.Start", "work") == "StoragePoolException"
        assert await disks.fails("internal.vm.volume.ImportBegin", "work", "private", "1", INTERNAL) == "StoragePoolException"
        answer = await ask(disks.app, "internal.vm.volume.ImportEnd", "work", "private", "fail\ndisk 100% full", socket=INTERNAL)
        assert (answer.failure, answer.content) == ("QubesException", "disk 100% full")
        assert disks.content() == b"\1" * MIB
        assert await disks.fails("internal.vm.volume.ImportEnd", "work", "private", "ok", INTERNAL) == "StoragePoolException"
        await disks.ok("admin.vm.Start", "work")

    run(tmp_path, scenario)


def test_an_import_killed_with_its_daemon_leaves_the_volume(tmp_path: Path) -> None:
    async def begin(disks: Disks) -> None:
        await disks.import_(b"\1" * MIB)
        _, _, path = (await disks.ok("internal.vm.volume.ImportBegin", "work", "private", "4096", INTERNAL)).partition(" ")
        Path(path).write_bytes(b"half")

    async def after(disks: Disks) -> None:
        assert disks.content() == b"\1" * MIB and not list(tmp_path.rglob("*.import.raw"))
        assert await disks.fails("internal.vm.volume.ImportEnd", "work", "private", "ok", INTERNAL) == "StoragePoolException"
        await disks.ok("admin.vm.Start", "work")

    run(tmp_path, begin)
    run(tmp_path, after)


# -- resize --------------------------------------------------------------------------------------------------------------


def test_live_resize_grows_disk_and_file_system(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.Start", "work")
        uuid = disks.app.system.qube("work").uuid
        await disks.ok("admin.vm.volume.Resize", "work", "private", f" {3 * GIB}\n")
        await disks.ok("admin.vm.volume.Resize", "work", "volatile", str(20 * GIB))
        await disks.ok("admin.vm.volume.Resize", "work", "root", str(12 * GIB))
        assert disks.wardens.sizes == {(uuid, "private"): 3 * GIB, (uuid, "volatile"): 20 * GIB, (uuid, "root"): 12 * GIB}
        assert disks.wardens.services == [(uuid, "qubes.ResizeDisk", f"private\n{3 * GIB}\n".encode()),
                                          (uuid, "qubes.ResizeDisk", f"root\n{12 * GIB}\n".encode())]
        assert (await disks.size(), await disks.size(volume="root")) == (3 * GIB, 12 * GIB)
        await disks.ok("admin.vm.Kill", "work")
        assert await disks.size() == 3 * GIB
        assert await disks.size(volume="root") == 10 * GIB, "a snapshot's growth is gone with it"
        await disks.ok("admin.vm.Start", "work")
        assert {disk.role: disk.size for disk in disks.wardens.launches[-1].disks if disk.role != "modules"} == {
            "root": 10 * GIB, "private": 3 * GIB, "volatile": 20 * GIB}

    run(tmp_path, scenario)


def test_a_guest_that_does_not_grow_its_file_system_costs_nothing(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        disks.wardens.deaf.add("work")
        await disks.ok("admin.vm.Start", "work")
        answer = await ask(disks.app, "admin.vm.volume.Resize", "work", "private", str(3 * GIB))
        assert answer.failure == "StoragePoolException" and "from its next start on" in answer.content
        assert await disks.size() == 3 * GIB
        disks.wardens.deaf.clear()
        await disks.ok("admin.vm.volume.Resize", "work", "private", str(3 * GIB))
        assert len(disks.wardens.services) == 1, "asking again is fine"

    run(tmp_path, scenario)


@pytest.mark.parametrize(("volume", "size", "failure"), [
    ("private", "1", "StoragePoolException"), ("private", str(1 << 50), "StoragePoolException"),
    ("private", "0", "StoragePoolException"),
    ("private", "9" * 19, "StoragePoolException"), ("private", "9" * 20, "ProtocolError"), ("private", "-5", "ProtocolError"),
    ("private", "1e9", "ProtocolError"), ("kernel", str(GIB), "StoragePoolException"), ("nope", str(GIB), "PermissionDenied"),
    ("root", str(20 * GIB), "StoragePoolException"),
])
def test_resize_refuses(tmp_path: Path, volume: str, size: str, failure: str) -> None:
    async def scenario(disks: Disks) -> None:
        assert await disks.fails("admin.vm.volume.Resize", "work", volume, size) == failure
        assert await disks.size() == 2 * GIB

    run(tmp_path, scenario)


def test_resize_of_a_paused_qube_is_refused_before_anything_grows(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.Start", "work")
        await disks.ok("admin.vm.Pause", "work")
        assert await disks.fails("admin.vm.volume.Resize", "work", "private", str(3 * GIB)) == "QubesVMNotRunningError"
        assert await disks.size() == 2 * GIB and disks.wardens.sizes == {}

    run(tmp_path, scenario)


def test_a_size_that_only_the_pool_learned_is_taken_over_at_the_next_start(tmp_path: Path) -> None:
    """qubesd killed between the pool's change and the model's."""
    async def crash(disks: Disks) -> None:
        qube = disks.app.system.qube("work")
        volume = qube.volumes["private"]
        disks.app.pool(volume.pool).resize(disks.app.volume_config(qube, volume), 3 * GIB)
        assert await disks.size() == 2 * GIB

    async def after(disks: Disks) -> None:
        assert await disks.size() == 3 * GIB

    run(tmp_path, crash)
    run(tmp_path, after)


# -- settings ------------------------------------------------------------------------------------------------------------


def test_what_a_guest_may_not_write_to_is_opened_by_nobody_for_writing(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.volume.Set.rw", "work", "private", "False")
        assert (await disks.info())["rw"] == "False"
        before = disks.blocks()
        await disks.ok("admin.vm.Start", "work")
        disk = next(disk for disk in disks.wardens.launches[-1].disks if disk.role == "private")
        assert disk.top is None and len(disk.layers) == 1, "what it writes goes to an overlay without a name"
        assert await disks.fails("admin.vm.volume.Resize", "work", "private", str(3 * GIB)) == "StoragePoolException"
        await disks.ok("admin.vm.Kill", "work")
        assert disks.blocks() == before and await disks.revisions() == []
        await disks.ok("admin.vm.Remove", "work")
        assert not list(tmp_path.rglob("appvms/work"))

    run(tmp_path, scenario)


def test_what_is_written_to_a_read_only_root_is_thrown_away(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        for volume in ("root", "volatile"):
            await disks.ok("admin.vm.volume.Set.rw", "tpl", volume, "False")
        await disks.ok("admin.vm.Start", "tpl")
        disk, _, volatile, _ = disks.wardens.launches[-1].disks
        assert volatile.role == "volatile" and not volatile.writable and volatile.layers == ()
        assert disk.role == "root" and disk.writable and disk.top is None
        await disks.ok("admin.vm.Kill", "tpl")
        assert await disks.revisions("tpl", "root") == []

    run(tmp_path, scenario)


@pytest.mark.parametrize(("keep", "failure"), [
    ("-2", "QubesValueError"), ("901", "QubesValueError"), ("--1", "ProtocolError"), ("01", "ProtocolError"), ("", "ProtocolError"),
])
def test_revisions_to_keep_has_a_range(tmp_path: Path, keep: str, failure: str) -> None:
    async def scenario(disks: Disks) -> None:
        assert await disks.fails("admin.vm.volume.Set.revisions_to_keep", "work", "private", keep) == failure

    run(tmp_path, scenario)


@pytest.mark.parametrize(("keep", "kept"), [("-1", 0), ("0", 0), ("1", 1), ("2", 2), ("900", 3)])
def test_as_many_revisions_are_kept_as_was_said(tmp_path: Path, keep: str, kept: int) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.volume.Set.revisions_to_keep", "work", "private", keep)
        for number in range(3):
            await disks.import_(bytes([number]) * 4096)
        assert len(await disks.revisions()) == kept

    run(tmp_path, scenario)


def test_only_a_volatile_volume_is_ephemeral(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        for volume in ("root", "private"):
            assert await disks.fails("admin.vm.volume.Set.ephemeral", "work", volume, "True") == "QubesValueError"
            await disks.ok("admin.vm.volume.Set.ephemeral", "work", volume, "no")
        for word in ("True", "no"):
            assert await disks.fails("admin.vm.volume.Set.ephemeral", "work", "kernel", word) == "QubesValueError"
        await disks.ok("admin.vm.volume.Set.ephemeral", "work", "volatile", "True")
        assert (await disks.info(volume="volatile"))["ephemeral"] == "True"
        await disks.ok("admin.pool.Set.ephemeral_volatile", argument="varlibqubes", payload="True")
        assert (await disks.info("copy", "volatile"))["ephemeral"] == "True"
        assert (await disks.info("copy", "root"))["ephemeral"] == "False"

    run(tmp_path, scenario)


def test_an_ephemeral_volatile_disk_has_all_encrypted_that_is_thrown_away(tmp_path: Path) -> None:
    """The root's changes and a disposable's private volume, too; what is kept, and what is not written to, is not."""
    async def scenario(disks: Disks) -> None:
        async def encrypted(qube: str) -> set[str]:
            launched = [launch for launch in disks.wardens.launches if launch.name == qube][-1].disks
            return {disk.role for disk in launched if disk.ephemeral}

        await disks.ok("admin.vm.Start", "work")
        assert await encrypted("work") == set()
        await disks.ok("admin.vm.Kill", "work")
        await disks.ok("admin.vm.volume.Set.ephemeral", "work", "volatile", "True")
        await disks.ok("admin.vm.Start", "work")
        assert await encrypted("work") == {"root", "volatile"}
        await disks.ok("admin.vm.property.Set", "work", "template_for_dispvms", "True")
        disposable = await disks.ok("admin.vm.CreateDisposable", "work")
        await disks.ok("admin.vm.Start", disposable)
        assert await encrypted(disposable) == {"root", "private", "volatile"}, "it is as its template is"
        await disks.ok("admin.pool.Set.ephemeral_volatile", argument="varlibqubes", payload="True")
        await disks.ok("admin.vm.Start", "tpl")
        assert await encrypted("tpl") == {"volatile"}

    run(tmp_path, scenario)


# -- pools ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("driver", "options", "failure"), [
    ("lvm_thin", "name=x\nvolume_group=v\nthin_pool=t", "PermissionDenied"),
    ("qcow2", "name=x", "QubesException"),
    ("qcow2", "dir_path=/tmp/x", "ProtocolError"),
    ("qcow2", "name=x\ndir_path=relative", "QubesException"),
    ("qcow2", "name=x\ndir_path=/a\ndir_path=/b", "ProtocolError"),
    ("qcow2", "name=x\ndir_path=/a\nsetup_check=1", "ProtocolError"),
    ("qcow2", "name=x\ndir_path=/a\nrevisions_to_keep=many", "ProtocolError"),
    ("qcow2", "name=x\ndir_path=/a\nrevisions_to_keep=-2", "QubesValueError"),
    ("qcow2", "name=x\ndir_path=/a\nephemeral_volatile=perhaps", "ProtocolError"),
    ("qcow2", "name=x y\ndir_path=/a", "ProtocolError"),
    ("qcow2", "name=x\nnonsense", "ProtocolError"),
    ("qcow2", "name=x\ndir_path=/proc/nowhere", "StoragePoolException"),
    ("file-reflink", "name=x\ndir_path=/proc/nowhere", "StoragePoolException"),
    ("linux-kernel", "name=x\ndir_path=/elsewhere", "QubesException"),
])
def test_a_pool_that_cannot_be_is_refused(tmp_path: Path, driver: str, options: str, failure: str) -> None:
    async def scenario(disks: Disks) -> None:
        assert await disks.fails("admin.pool.Add", argument=driver, payload=options) == failure
        assert (await disks.ok("admin.pool.List")).split() == ["varlibqubes", "linux-kernel", "second"]
        assert disks.events == []

    run(tmp_path, scenario)


def test_two_pools_never_share_a_folder(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "2")
        for folder in ("2", "link", "2/../2/"):
            answer = await ask(disks.app, "admin.pool.Add", "dom0", "qcow2", f"name=x\ndir_path={tmp_path}/{folder}")
            assert answer.failure == "StoragePoolException" and "pool second" in answer.content

    run(tmp_path, scenario)


def test_a_pools_life(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        drivers = (await disks.ok("admin.pool.ListDrivers")).splitlines()
        assert "file-reflink revisions_to_keep dir_path setup_check ephemeral_volatile" in drivers
        assert "linux-kernel dir_path" in drivers and "file revisions_to_keep dir_path ephemeral_volatile" in drivers
        folder = tmp_path / "2" / "inner"
        await disks.ok("admin.pool.Add", argument="file", payload=f"name=inner\ndir_path={folder}\nrevisions_to_keep=0\n")
        lines = (await disks.ok("admin.pool.Info", argument="inner")).splitlines()
        figures = dict(line.split("=", 1) for line in lines[5:])
        assert lines[:5] == [f"dir_path={folder}", "driver=file", "ephemeral_volatile=False", "name=inner", "revisions_to_keep=0"]
        assert list(figures) == ["size", "usage", "included_in"] and figures["included_in"] == "second"
        assert 0 < int(figures["usage"]) <= int(figures["size"])
        assert await disks.ok("admin.pool.UsageDetails", argument="linux-kernel") == ""
        details = (await disks.ok("admin.pool.UsageDetails", argument="inner")).splitlines()
        assert [line.partition("=")[0] for line in details] == ["data_size", "data_usage"]
        await disks.ok("admin.pool.Set.revisions_to_keep", argument="inner", payload="4")
        assert "revisions_to_keep=4\n" in await disks.ok("admin.pool.Info", argument="inner")
        assert await disks.fails("admin.pool.Set.revisions_to_keep", argument="inner", payload="-2") == "ProtocolError"
        assert await disks.fails("admin.pool.Set.revisions_to_keep", argument="linux-kernel", payload="1") == "QubesValueError"
        await disks.ok("admin.vm.CreateInPool.AppVM", payload="name=guest label=red pool:private=inner")
        assert await disks.ok("admin.pool.volume.List", argument="inner") == "appvms/guest/private\n"
        assert await disks.fails("admin.pool.Remove", argument="inner") == "QubesPoolInUseError"
        await disks.ok("admin.vm.Remove", "guest")
        await disks.ok("admin.pool.Remove", argument="inner")
        assert not folder.exists()
        names = [name for _, name, pairs in disks.events if pairs.get("pool") == "inner"]
        assert names == ["pool-add", "pool-pre-delete", "pool-delete"]

    run(tmp_path, scenario)


def test_a_pool_that_is_away_says_so_and_harms_nobody_else(tmp_path: Path) -> None:
    async def fill(disks: Disks) -> None:
        await disks.import_(b"\1" * 4096, "copy")

    async def away(disks: Disks) -> None:
        answer = await ask(disks.app, "admin.vm.Start", "copy")
        assert answer.failure == "StoragePoolException" and "pool second can't be used: can't set up" in answer.content
        assert await disks.size("copy") == 4096 and (await disks.info("copy"))["usage"] == "0"
        assert "size=" not in await disks.ok("admin.pool.Info", argument="second")
        await disks.ok("admin.vm.Start", "work")

    async def back(disks: Disks) -> None:
        assert disks.content("copy") == b"\1" * 4096
        await disks.ok("admin.vm.Start", "copy")

    run(tmp_path, fill)
    shutil.move(tmp_path / "2", tmp_path / "unplugged")
    (tmp_path / "2").write_text("not a folder")
    run(tmp_path, away)
    os.unlink(tmp_path / "2")
    shutil.move(tmp_path / "unplugged", tmp_path / "2")
    run(tmp_path, back)


def test_a_store_full_disk_takes_a_new_pool_back(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        disks.app.parts.store.close()
        assert await disks.fails("admin.pool.Add", argument="qcow2", payload=f"name=x\ndir_path={tmp_path}/x") != ""
        assert not (tmp_path / "x").exists()

    run(tmp_path, scenario)


def test_a_template_is_sealed_into_a_pool_on_another_file_system(tmp_path: Path) -> None:
    """/dev/shm is one."""
    with tempfile.TemporaryDirectory(prefix="cloison-", dir="/dev/shm") as elsewhere:
        async def scenario(disks: Disks) -> None:
            await disks.ok("admin.pool.Add", argument="qcow2", payload=f"name=far\ndir_path={elsewhere}/pool")
            await disks.ok("admin.vm.CreateInPool.TemplateVM", payload="name=other label=black pool=far")
            image = tmp_path / "data/tmp/root.img"
            image.write_bytes(b"\7" * MIB + bytes(MIB))
            await disks.ok("internal.cloison.SealRoot", "other", "", str(image), INTERNAL)
            assert disks.content("other", "root") == b"\7" * MIB + bytes(MIB) and not image.exists()
            assert await disks.size("other", "root") == 2 * MIB
            token = await disks.ok("admin.vm.volume.CloneFrom", "work", "private")
            await disks.ok("admin.vm.volume.CloneTo", "other", "private", token)
            assert disks.blocks("other") == disks.blocks()
            assert not [*Path(elsewhere).rglob("*import*"), *tmp_path.rglob("*.export-*")]

        run(tmp_path, scenario)


def test_snapshots_follow_their_sources_through_the_chain(tmp_path: Path) -> None:
    """A disposable's root comes of the template, its private of its AppVM; both as committed, and nothing of it is kept."""
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.property.Set", "work", "template_for_dispvms", "True")
        await disks.import_(b"\5" * MIB)
        await disks.ok("admin.vm.Create.DispVM", argument="work", payload="name=named label=red")
        root, private = await disks.info("named", "root"), await disks.info("named")
        assert (root["source"], private["source"]) == ("vm-templates/tpl/root", "appvms/work/private")
        await disks.ok("admin.vm.Start", "named")
        disk = next(disk for disk in disks.wardens.launches[-1].disks if disk.role == "private")
        assert disk.top is None and disk.writable and disk.size == MIB
        assert (await disks.info("named"))["is_outdated"] == "False"
        await disks.import_(b"\6" * MIB)
        assert (await disks.info("named"))["is_outdated"] == "True"
        await disks.ok("admin.vm.Kill", "named")
        assert (await disks.info("named"))["is_outdated"] == "False" and disks.content("named") == b"\6" * MIB
        assert not list(tmp_path.rglob("appvms/named"))

    run(tmp_path, scenario)


def test_a_qube_and_its_disposables_start_from_the_template_that_it_has_now(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.Create.TemplateVM", payload="name=new label=black")
        await disks.ok("admin.vm.property.Set", "work", "template_for_dispvms", "True")
        await disks.ok("admin.vm.Create.DispVM", argument="work", payload="name=named label=red")
        await disks.ok("admin.vm.volume.Set.revisions_to_keep", "work", "private", "3")
        before = await disks.info()
        await disks.ok("admin.vm.property.Set", "work", "template", "new")
        for qube in ("work", "named"):
            assert (await disks.info(qube, "root"))["source"] == "vm-templates/new/root"
            await disks.ok("admin.vm.Start", qube)
            root = next(disk for disk in disks.wardens.launches[-1].disks if disk.role == "root")
            assert {Path(layer.path).parent.name for layer in root.layers} == {"new"}
            await disks.ok("admin.vm.Kill", qube)
        assert await disks.info() == before              # what is its own is as it was
        assert (await disks.info("named"))["source"] == "appvms/work/private"

    run(tmp_path, scenario)


def test_what_a_running_snapshot_was_taken_of_is_known_to_the_next_daemon_too(tmp_path: Path) -> None:
    async def start(disks: Disks) -> None:
        await disks.ok("admin.vm.Start", "work")
        assert (await disks.info(volume="root"))["is_outdated"] == "False"

    async def change(disks: Disks) -> None:
        assert await disks.ok("admin.vm.CurrentState", "work") != ""
        assert (await disks.info(volume="root"))["is_outdated"] == "False"
        await disks.ok("admin.vm.volume.Clear", "tpl", "root")
        assert (await disks.info(volume="root"))["is_outdated"] == "True"

    async def after(disks: Disks) -> None:
        assert (await disks.info(volume="root"))["is_outdated"] == "True"
        await disks.ok("admin.vm.Kill", "work")
        assert (await disks.info(volume="root"))["is_outdated"] == "False"

    run(tmp_path, start)
    run(tmp_path, change)
    run(tmp_path, after)


def test_a_volume_that_vanished_is_an_error_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        pool = disks.app.pool("varlibqubes")
        assert isinstance(pool, Qcow2Pool)
        shutil.rmtree(Path(pool.folder, "appvms/work"))
        for method, payload in (("Clear", ""), ("Resize", str(3 * GIB)), ("Revert", "1")):
            assert await disks.fails(f"admin.vm.volume.{method}", "work", "private", payload) == "StoragePoolException"
        assert await disks.fails("admin.vm.Start", "work") == "StoragePoolException"
        assert (await disks.ok("admin.vm.CurrentState", "work")).startswith("mem=0")
        await disks.ok("admin.vm.Start", "copy")
        config = VolumeConfig("appvms/work/private", "private", disks.app.volume_config(
            disks.app.system.qube("work"), disks.app.system.qube("work").volumes["private"]).kind, GIB)
        assert not pool.is_dirty(config)

    run(tmp_path, scenario)


@pytest.mark.parametrize("failing", ["root", "private"])
def test_one_volume_that_can_not_be_committed_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str,
) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.Create.StandaloneVM", payload="name=alone label=red")
        await disks.ok("admin.vm.Start", "alone")
        pool, real = disks.app.pool("varlibqubes"), Qcow2Pool.stop
        assert isinstance(pool, Qcow2Pool)

        def stop(_pool: Qcow2Pool, config: VolumeConfig) -> None:
            if config.name == failing:
                raise StorageError("it can't")
            real(pool, config)

        with monkeypatch.context() as patch:
            patch.setattr(Qcow2Pool, "stop", stop)
            await disks.ok("admin.vm.Kill", "alone")
        qube = disks.app.system.qube("alone")
        dirty = {name: pool.is_dirty(disks.app.volume_config(qube, qube.volumes[name])) for name in ("root", "private")}
        assert dirty == {"root": failing == "root", "private": failing == "private"} and qube.is_halted
        await disks.ok("admin.vm.Start", "alone")
        await disks.ok("admin.vm.Kill", "alone")
        assert not await disks.app.volumes.is_dirty(qube), "the next stop commits it"

    run(tmp_path, scenario)


@pytest.mark.parametrize("failing", ["root", "private"])
def test_one_volume_that_can_not_be_removed_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str,
) -> None:
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.Create.StandaloneVM", payload="name=alone label=red")
        pool, real = disks.app.pool("varlibqubes"), Qcow2Pool.remove
        assert isinstance(pool, Qcow2Pool)

        def remove(_pool: Qcow2Pool, config: VolumeConfig) -> None:
            if config.name == failing:
                raise StorageError("it can't")
            real(pool, config)

        with monkeypatch.context() as patch:
            patch.setattr(Qcow2Pool, "remove", remove)
            assert await disks.fails("admin.vm.Remove", "alone")
        folder = Path(pool.folder, "appvms", "alone")
        assert sorted(path.suffix for path in folder.iterdir() if path.suffix == ".json") == [".json"]
        assert (folder / f"{failing}.json").exists()
        await disks.ok("admin.vm.Remove", "alone")
        assert not folder.exists()

    run(tmp_path, scenario)


def test_what_the_pool_says_of_sizes_is_taken_over_at_a_stop_and_by_snapshots(tmp_path: Path) -> None:
    async def scenario(disks: Disks) -> None:
        work, tpl = disks.app.system.qube("work"), disks.app.system.qube("tpl")
        for qube, name in ((work, "private"), (tpl, "root")):
            volume = qube.volumes[name]
            disks.app.pool(volume.pool).resize(disks.app.volume_config(qube, volume), 20 * GIB)
        await disks.ok("admin.vm.Start", "work")
        await disks.ok("admin.vm.Kill", "work")
        assert work.volumes["private"].size == 20 * GIB == work.volumes["root"].size
        await disks.app.volumes.follow_pool(tpl)
        assert tpl.volumes["root"].size == 20 * GIB

    run(tmp_path, scenario)


@pytest.mark.parametrize(("do", "damaged"), [
    ("revert", True), *((do, damaged) for do in ("import", "clear", "clone") for damaged in (True, False)),
])
def test_what_a_stop_could_not_commit_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str, damaged: bool,
) -> None:
    """A session that is whole becomes a revision first; one that is damaged is given up. Neither is called in use."""
    async def scenario(disks: Disks) -> None:
        await disks.ok("admin.vm.Start", "work")
        top = Path((await disks.info())["path"])
        if damaged:
            top.write_bytes(b"junk")
        else:
            image = bytearray(top.read_bytes())
            image[3 << 16:(3 << 16) + 8] = (4 << 16).to_bytes(8, "big")     # as a guest's write would: a cluster in the table
            top.write_bytes(image)
            monkeypatch.setattr(Qcow2Pool, "stop", lambda *_: (_ for _ in ()).throw(PoolError("can't commit", "no space")))
        await disks.ok("admin.vm.Kill", "work")
        monkeypatch.undo()
        assert disks.app.system.qube("work").is_halted
        before = await disks.revisions()
        if do == "import":
            await disks.import_(b"new" * MIB)
        elif do == "clone":
            token = await disks.ok("admin.vm.volume.CloneFrom", "copy", "private")
            await disks.ok("admin.vm.volume.CloneTo", "work", "private", token)
        elif do == "clear":
            await disks.ok("admin.vm.volume.Clear", "work", "private")
        else:
            assert before == ["1"]
            await disks.ok("admin.vm.volume.Revert", "work", "private", "1")
        pool = disks.app.pool("varlibqubes")
        config = disks.app.volume_config(disks.app.system.qube("work"), disks.app.system.qube("work").volumes["private"])
        assert not pool.is_dirty(config) and top.exists() is not damaged
        await disks.ok("admin.vm.Start", "work")

    run(tmp_path, scenario)


@pytest.mark.parametrize("state", [CREATING, REMOVING])
def test_a_qube_that_was_half_made_or_removed_goes_when_its_disk_is_let_go(tmp_path: Path, state: str) -> None:
    async def scenario(disks: Disks) -> None:
        app = disks.app
        await disks.ok("admin.vm.Start", "work")
        qube, top = app.system.qube("work"), Path((await disks.info())["path"])
        fd = os.open(top, os.O_RDONLY)
        app.machines.on_event(qube.uuid, "stopped", {})
        with app.transaction():
            qube.set_state(state)
        os.close(fd)
        await app.machines.settled(qube)
        assert "work" not in app.system.qubes and not top.parent.exists()

    run(tmp_path, scenario)
