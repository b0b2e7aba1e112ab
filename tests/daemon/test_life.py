"""A qube's life through the Admin API: events in the recorded order, refusals, failures that leave all as it was."""
from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cloison.daemon.app import App
from cloison.daemon.fake import ask, fake_app
from cloison.daemon.fake_wardens import FakeWardens
from cloison.storage.fake import FakePool

COMPUTED = ["property-reset:xid", "property-reset:stubdom_xid", "property-reset:start_time"]
START = ["domain-pre-spawn", *COMPUTED, "domain-spawn", "domain-qdb-create", "domain-pre-unpaused", "domain-unpaused",
         "domain-start"]
STOP = ["domain-stopped", *COMPUTED, "domain-shutdown"]


class Life:
    """An app with a template, an AppVM `work`, and an ear for events."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.heard: list[tuple[str, str]] = []
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

    async def ok(self, method: str, dest: str = "dom0", argument: str = "", payload: str = "", source: str = "dom0") -> str:
        answer = await ask(self.app, method, dest, argument, payload, source=source)
        assert not answer.failure, (method, answer)
        return answer.content

    async def fails(self, method: str, dest: str, argument: str = "", payload: str = "") -> str:
        answer = await ask(self.app, method, dest, argument, payload)
        assert answer.failure, (method, answer)
        return answer.failure

    def touch(self, name: str, volume: str) -> None:
        """As a guest does that mounts it."""
        with open(self.pool.path(self.app.volumes.config(self.app.system.qube(name).volumes[volume])), "r+b") as file:
            file.write(b"mounted")

    async def state(self, name: str) -> str:
        return (await self.ok("admin.vm.CurrentState", name)).rpartition("=")[2]


def live(tmp_path: Path, scenario: Callable[[Life], Awaitable[None]]) -> None:
    async def run() -> None:
        life = Life(await fake_app(str(tmp_path)))
        await life.ok("admin.vm.Create.TemplateVM", payload="name=tpl label=black")
        await life.ok("admin.property.Set", argument="default_template", payload="tpl")
        await life.ok("admin.vm.Create.AppVM", payload="name=work label=blue")
        life.heard.clear()
        try:
            await scenario(life)
            assert life.app.system.journal.rows == []
        finally:
            await life.app.live.close()
            await life.app.machines.close()
            await life.wardens.close()
            life.app.parts.store.close()

    asyncio.run(run())


def test_create_and_remove(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.Create.AppVM", payload="name=mail label=green")
        assert life.heard == [("", "domain-add"), ("mail", "domain-tag-add:created-by-dom0"), ("mail", "domain-create-on-disk")]
        life.heard.clear()
        await life.ok("admin.vm.Remove", "mail")
        assert life.heard == [("", "domain-pre-delete"), ("", "domain-delete")]
        assert await life.fails("admin.vm.Start", "mail") == "QubesVMNotFoundError"

    live(tmp_path, scenario)


def test_a_log_goes_with_its_qube_and_with_no_other(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        paths = life.app.parts.paths
        os.makedirs(paths.qube_logs, exist_ok=True)
        logs = [paths.qube_log("work"), f"{paths.qube_log('work')}.1", paths.qube_log("tpl")]
        for path in logs:
            Path(path).touch()
        await life.ok("admin.vm.Remove", "work")
        assert [os.path.exists(path) for path in logs] == [False, False, True]

    live(tmp_path, scenario)


@pytest.mark.parametrize(("payload", "failure"), [
    ("name=work label=blue", "QubesVMAlreadyExistsError"),
    ("name=x label=puce", "ProtocolError"),
    ("name=work label=puce", "ProtocolError"),
    ("name=../x what=ever label=red", "QubesValueError"),
    ("label=1 name=../x", "QubesInvalidLabelError"),
    ("name=x label=1", "QubesInvalidLabelError"),
    ("name=../x label=red", "QubesValueError"),
    ("name=a,b label=red", "QubesValueError"),
    ("name=x-dm label=red", "QubesValueError"),
    ("name=x", "ProtocolError"),
    ("name=x label=red ", "ProtocolError"),
    ("name=x name=y label=red", "ProtocolError"),
    ("name=x label=red pool=varlibqubes", "ProtocolError"),
    ("name=x label=red what=ever", "ProtocolError"),
    ("", "ProtocolError"),
])
def test_create_refusals_change_nothing(tmp_path: Path, payload: str, failure: str) -> None:
    async def scenario(life: Life) -> None:
        before = await life.ok("admin.vm.List")
        assert await life.fails("admin.vm.Create.AppVM", "dom0", "", payload) == failure
        assert await life.ok("admin.vm.List") == before
        assert life.heard == []

    live(tmp_path, scenario)


def test_create_without_disk_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        life.pool.fail.add("create")
        before = await life.ok("admin.vm.List")
        assert await life.fails("admin.vm.Create.AppVM", "dom0", "", "name=mail label=red") == "StoragePoolException"
        assert await life.ok("admin.vm.List") == before
        life.pool.fail.clear()
        await life.ok("admin.vm.Create.AppVM", payload="name=mail label=red")

    live(tmp_path, scenario)


def test_start_and_stop_with_netvm(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.Create.AppVM", payload="name=sys-net label=red")
        await life.ok("admin.vm.property.Set", "sys-net", "netvm")
        await life.ok("admin.vm.property.Set", "sys-net", "provides_network", "True")
        await life.ok("admin.vm.property.Set", "work", "netvm", "sys-net")
        life.heard.clear()
        await life.ok("admin.vm.Start", "work")
        net = ["domain-pre-start", "domain-verify-files", *START]
        assert life.heard == [("work", "domain-pre-start"), ("work", "domain-verify-files"), *(("sys-net", name) for name in net),
                              *(("work", name) for name in START)]
        assert [launch.name for launch in life.wardens.launches] == ["sys-net", "work"]
        assert [disk.role for disk in life.wardens.launches[1].disks] == ["root", "private", "volatile", "modules"]
        assert life.wardens.launches[1].warm
        assert await life.fails("admin.vm.Shutdown", "sys-net") == "QubesVMInUseError"
        life.heard.clear()
        await life.ok("admin.vm.Shutdown", "work", "wait")
        assert [name for _, name in life.heard] == ["domain-pre-shutdown", *STOP]
        assert await life.state("work") == "Halted"
        await life.ok("admin.vm.Shutdown", "sys-net", "force+wait")
        assert await life.fails("admin.vm.Shutdown", "work") == "QubesVMNotStartedError"

    live(tmp_path, scenario)


def test_start_that_fails_is_undone(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        life.wardens.refuse.add("work")
        assert await life.fails("admin.vm.Start", "work") == "QubesException"
        assert life.heard[-1] == ("work", "domain-start-failed")
        assert await life.state("work") == "Halted"
        life.wardens.refuse.clear()
        life.pool.fail.add("start")
        assert await life.fails("admin.vm.Start", "work") == "StoragePoolException"
        life.pool.fail.clear()
        await life.ok("admin.vm.Start", "work")
        assert await life.state("work") == "Running"

    live(tmp_path, scenario)


def test_a_machine_that_ends_before_its_start_returns_is_halted(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        life.wardens.faint.add("work")
        await life.ok("admin.vm.Start", "work")
        await life.app.stopped(life.app.system.qube("work"))
        assert await life.state("work") == "Halted"
        life.wardens.faint.clear()
        await life.ok("admin.vm.Start", "work")
        assert await life.state("work") == "Running"

    live(tmp_path, scenario)


def test_starts_of_one_qube_at_once_are_one_start(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await asyncio.gather(*(life.ok("admin.vm.Start", "work") for _ in range(5)))
        assert len(life.wardens.launches) == 1
        await asyncio.gather(*(life.ok("admin.vm.Create.AppVM", payload=f"name=q{n} label=red") for n in range(10)))
        qids = [qube.qid for qube in life.app.system.qubes.values()]
        assert len(set(qids)) == len(qids) == 13

    live(tmp_path, scenario)


def test_what_a_management_qube_makes_carries_its_tags(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.feature.Set", "work", "tag-created-vm-with", "mine ../x created-by-dom0")
        await life.ok("admin.vm.Create.AppVM", payload="name=made label=red", source="work")
        assert await life.ok("admin.vm.tag.List", "made") == "audiovm-dom0\ncreated-by-work\nguivm-dom0\nmine\n"

    live(tmp_path, scenario)


def test_what_a_template_saved_is_what_its_qubes_are_behind_of(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.Start", "tpl")
        assert life.wardens.launches[0].warm is None
        outdated = await life.ok("admin.vm.volume.Info", "work", "root")
        await life.ok("admin.vm.Start", "work")
        life.touch("tpl", "root")
        await life.ok("admin.vm.Shutdown", "tpl", "wait")
        assert "is_outdated=False" in outdated
        assert "is_outdated=True" in await life.ok("admin.vm.volume.Info", "work", "root")
        assert len((await life.ok("admin.vm.volume.ListSnapshots", "tpl", "root")).split()) == 1

    live(tmp_path, scenario)


def test_pause_kill_and_power_off_inside(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        for method, failure in (("Pause", "QubesVMNotRunningError"), ("Unpause", "QubesVMNotPausedError"),
                                ("Kill", "QubesVMNotStartedError"), ("Suspend", "QubesVMNotRunningError")):
            assert await life.fails(f"admin.vm.{method}", "work") == failure
            assert await life.fails(f"admin.vm.{method}", "dom0") == "QubesVMError"
        await life.ok("admin.vm.Start", "work")
        await life.ok("admin.vm.Pause", "work")
        assert await life.state("work") == "Paused"
        assert await life.fails("admin.vm.Shutdown", "work") == "QubesVMNotRunningError"
        await life.ok("admin.vm.Unpause", "work")
        life.heard.clear()
        await life.ok("admin.vm.Kill", "work")
        assert [name for _, name in life.heard] == STOP
        await life.ok("admin.vm.Start", "work")
        work = life.app.system.qube("work")
        life.wardens.stop(work.uuid)
        await life.app.stopped(work)
        assert await life.state("work") == "Halted"

    live(tmp_path, scenario)


def test_deaf_qube_times_out(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        life.wardens.deaf.add("work")
        await life.ok("admin.vm.property.Set", "work", "shutdown_timeout", "1")
        await life.ok("admin.vm.Start", "work")
        assert await life.fails("admin.vm.Shutdown", "work", "wait") == "QubesVMShutdownTimeoutError"
        await life.ok("admin.vm.Kill", "work")

    live(tmp_path, scenario)


def test_unnamed_disposable_is_gone_after_its_stop(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.property.Set", "work", "template_for_dispvms", "True")
        uuid = await life.ok("admin.vm.CreateDisposable", "work", "", "uuid")
        assert len(uuid) == 41
        name = life.app.system.qube_by_uuid(uuid[5:]).name
        await life.ok("admin.vm.Start", uuid)
        await life.ok("admin.vm.Kill", name)
        assert await life.fails("admin.vm.CurrentState", name) == "QubesVMNotFoundError"
        assert life.heard[-2:] == [("", "domain-pre-delete"), ("", "domain-delete")]

    live(tmp_path, scenario)


def test_lesson_39_a_named_disposable_stays(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.property.Set", "work", "template_for_dispvms", "True")
        await life.ok("admin.vm.Create.DispVM", "dom0", "work", "name=named label=red")
        await life.ok("admin.vm.Start", "named")
        await life.ok("admin.vm.Kill", "named")
        assert await life.state("named") == "Halted"

    live(tmp_path, scenario)


def test_lesson_28_a_child_never_gets_more_network(tmp_path: Path) -> None:
    """QSB-047, #3561: the disposable of an offline qube is offline, whatever its template and the system say."""

    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.Create.AppVM", payload="name=sys-net label=red")
        await life.ok("admin.vm.property.Set", "sys-net", "netvm")
        await life.ok("admin.vm.property.Set", "sys-net", "provides_network", "True")
        await life.ok("admin.property.Set", argument="default_netvm", payload="sys-net")
        await life.ok("admin.vm.Create.AppVM", payload="name=dvm label=red")
        await life.ok("admin.vm.property.Set", "dvm", "template_for_dispvms", "True")
        await life.ok("admin.property.Set", argument="default_dispvm", payload="dvm")
        await life.ok("admin.vm.property.Set", "work", "netvm")
        parent = "work"
        for _generation in range(3):
            child = await life.ok("admin.vm.CreateDisposable", "dvm" if parent == "work" else "dom0", source=parent)
            assert life.app.system.qube(child).get("netvm") is None
            assert life.app.system.qube(child).get("default_dispvm") == "dvm"
            parent = child
        person = await life.ok("admin.vm.CreateDisposable", "dvm")
        assert life.app.system.qube(person).get("netvm") == "sys-net"

    live(tmp_path, scenario)


def test_lesson_30_a_child_uses_its_parents_network_not_the_default(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        for name in ("sys-net", "sys-tor"):
            await life.ok("admin.vm.Create.AppVM", payload=f"name={name} label=red")
            await life.ok("admin.vm.property.Set", name, "netvm")
            await life.ok("admin.vm.property.Set", name, "provides_network", "True")
        await life.ok("admin.property.Set", argument="default_netvm", payload="sys-net")
        await life.ok("admin.vm.Create.AppVM", payload="name=dvm label=red")
        await life.ok("admin.vm.property.Set", "dvm", "template_for_dispvms", "True")
        await life.ok("admin.vm.property.Set", "work", "netvm", "sys-tor")
        child = life.app.system.qube(await life.ok("admin.vm.CreateDisposable", "dvm", source="work"))
        assert [netvm.name for netvm in child.netvms()] == ["sys-tor"]

    live(tmp_path, scenario)


HOSTILE = [",", "=", '"', "'", "\n", "../../x", "a,b=c", "%s%n", "\x00", "\x1b[31m", "x" * 70000, "{}", "$(reboot)", "-", " ", "é"]


def test_lesson_40_hostile_property_corpus(tmp_path: Path) -> None:
    """QSB-066: whatever a property is set to, it is refused in one sentence or read back unchanged, line by line."""

    async def scenario(life: Life) -> None:
        for name in life.app.system.qube("work").properties:
            for text in HOSTILE:
                answer = await ask(life.app, "admin.vm.property.Set", "work", name, text.encode())
                listing = (await life.ok("admin.vm.property.GetAll", "work")).splitlines()
                assert len(listing) == 48, (name, text)
                if not answer.failure:
                    value = (await life.ok("admin.vm.property.Get", "work", name)).split(" ", 2)[2]
                    assert value == text, (name, text)
                if name in ("mac", "kernel", "ip", "memory") or (name == "default_user" and text not in (",", "-")):
                    assert answer.failure, (name, text)

    live(tmp_path, scenario)


def test_failed_store_write_changes_nothing(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        before = await life.ok("admin.vm.property.GetAll", "work")
        life.app.parts.store.close()
        assert await life.fails("admin.vm.property.Set", "work", "memory", "1000") != ""
        assert await life.fails("admin.vm.tag.Set", "work", "x") != ""
        assert await life.ok("admin.vm.property.GetAll", "work") == before
        assert "x\n" not in await life.ok("admin.vm.tag.List", "work")
        assert life.heard == []

    live(tmp_path, scenario)


def test_services_reach_a_running_qube(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.Start", "work")
        uuid = life.app.system.qube("work").uuid
        await life.ok("admin.vm.feature.Set", "work", "service.cups", "1")
        await life.ok("admin.vm.feature.Set", "work", "vm-config.a", "b c")
        await life.app.live.settled()
        assert life.wardens.qdb[uuid]["/qubes-service/cups"] == "1"
        assert life.wardens.qdb[uuid]["/vm-config/a"] == "b c"
        await life.ok("admin.vm.feature.Remove", "work", "service.cups")
        await life.app.live.settled()
        assert "/qubes-service/cups" not in life.wardens.qdb[uuid]

    live(tmp_path, scenario)


def test_seal_root_makes_a_commit_and_forgets_the_warm_image(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        image = tmp_path / "data" / "tmp" / "new.img"
        image.write_bytes(bytes(1 << 20))
        answer = await ask(life.app, "internal.cloison.SealRoot", "tpl", "", str(image), socket="qubesd.internal.sock")
        assert not answer.failure, answer
        assert "size=1048576\n" in await life.ok("admin.vm.volume.Info", "work", "root")
        assert ("tpl", "domain-template-sealed") in life.heard
        outside = tmp_path / "data" / "store.sqlite"
        answer = await ask(life.app, "internal.cloison.SealRoot", "tpl", "", str(outside), socket="qubesd.internal.sock")
        assert answer.failure == "StoragePoolException"
        assert outside.exists()

    live(tmp_path, scenario)


def test_volume_calls(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        assert await life.fails("admin.vm.volume.Info", "work", "nope") == "PermissionDenied"
        assert await life.fails("admin.vm.volume.Resize", "work", "private", "12x") == "ProtocolError"
        await life.ok("admin.vm.volume.Resize", "work", "private", "3000000000")
        assert "size=3000000000\n" in await life.ok("admin.vm.volume.Info", "work", "private")
        assert await life.fails("admin.vm.volume.Resize", "work", "private", "1") == "StoragePoolException"
        await life.ok("admin.vm.volume.Clear", "work", "private")
        revision = (await life.ok("admin.vm.volume.ListSnapshots", "work", "private")).split()[-1]
        await life.ok("admin.vm.volume.Revert", "work", "private", revision + "\n")
        assert await life.fails("admin.vm.volume.Revert", "work", "private", "77") == "StoragePoolException"
        token = await life.ok("admin.vm.volume.CloneFrom", "work", "private")
        assert len(token) == 32
        await life.ok("admin.vm.Create.AppVM", payload="name=copy label=red")
        await life.ok("admin.vm.volume.CloneTo", "copy", "private", token)
        assert "size=3000000000\n" in await life.ok("admin.vm.volume.Info", "copy", "private")
        again = await life.fails("admin.vm.volume.CloneTo", "copy", "private", token)
        assert again == "QubesVolumeCopyTokenNotFoundError"
        await life.ok("admin.vm.volume.Set.revisions_to_keep", "work", "private", "-1")
        assert await life.fails("admin.vm.volume.Set.ephemeral", "work", "private", "True") == "QubesValueError"

    live(tmp_path, scenario)


def test_pools_labels_firewall_devices_notes(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.pool.Add", argument="qcow2", payload=f"name=big\ndir_path={tmp_path}/big\n")
        assert await life.ok("admin.pool.List") == "varlibqubes\nlinux-kernel\nbig\n"
        assert await life.fails("admin.pool.Add", "dom0", "qcow2", f"name=big\ndir_path={tmp_path}/x") == "QubesPoolInUseError"
        assert await life.fails("admin.pool.Remove", "dom0", "varlibqubes") == "QubesPoolInUseError"
        await life.ok("admin.pool.Remove", argument="big")
        await life.ok("admin.label.Create", argument="pink", payload="0xFF00aa")
        assert await life.ok("admin.label.Get", argument="9") == "0xff00aa"
        assert await life.fails("admin.label.Remove", "dom0", "red") == "ProtocolError"
        await life.ok("admin.label.Remove", argument="pink")
        rule = "action=accept dsthost=10.0.0.0/8 proto=tcp dstports=80-90 comment=a b c"
        await life.ok("admin.vm.firewall.Set", "work", "", rule)
        assert await life.ok("admin.vm.firewall.Get", "work") == rule.replace("dsthost", "dst4") + "\n"
        await life.ok("admin.vm.firewall.Set", "work", "", "")
        assert await life.ok("admin.vm.firewall.Get", "work") == ""
        assigned = "device_id='*' port_id='sda' devclass='block' backend_domain='dom0' mode='auto-attach' _read-only='yes'"
        await life.ok("admin.vm.device.block.Assign", "work", "dom0+sda+_", "mode='auto-attach' _read-only='yes'")
        assert await life.ok("admin.vm.device.block.Assigned", "work") == f"dom0+sda:* {assigned}\n"
        twice = await life.fails("admin.vm.device.block.Assign", "work", "dom0+sda+_", "mode='auto-attach'")
        assert twice == "DeviceAlreadyAssigned"
        await life.ok("admin.vm.device.block.Unassign", "work", "dom0+sda+_")
        await life.ok("admin.vm.notes.Set", "work", "", "a\x1b[31mb\n")
        assert await life.ok("admin.vm.notes.Get", "work") == "a_[31mb\n"

    live(tmp_path, scenario)


def problem(life: Life) -> str:
    return life.app.system.qube("work").note


def test_what_a_qube_says_of_itself_is_told_while_it_runs(tmp_path: Path) -> None:
    """As its word, not ours; and of this run of it only."""
    async def scenario(life: Life) -> None:
        life.wardens.notes["work"] = "the private volume can't be mounted"
        await life.ok("admin.vm.Start", "work")
        assert problem(life) == "work says: the private volume can't be mounted"
        assert (await life.app.status())["problems"] == {"work": problem(life)}
        await life.ok("admin.vm.Kill", "work")
        assert problem(life) == ""
        life.wardens.notes.clear()
        await life.ok("admin.vm.Start", "work")
        assert problem(life) == ""
        assert (await life.app.status())["problems"] == {}

    live(tmp_path, scenario)


@pytest.mark.parametrize("said", ["", "the private volume can't be mounted (invalid argument), so it runs without", "no swap"])
def test_what_runs_without_its_private_volume_pushes_no_older_state_out(tmp_path: Path, said: str) -> None:
    """And what it wrote, as somebody who repairs it by hand does, is kept. Who writes nothing leaves all as it was."""
    async def scenario(life: Life) -> None:
        def write(content: bytes) -> None:
            with open(life.pool.path(private), "r+b") as file:
                file.write(content)

        def begins_with(content: bytes) -> bool:
            with open(life.pool.path(private), "rb") as file:
                return file.read(len(content)) == content

        async def session(note: str, content: bytes) -> None:
            life.wardens.notes["work"] = note
            await life.ok("admin.vm.Start", "work")
            write(content)
            await life.ok("admin.vm.Kill", "work")

        private = life.app.volumes.config(life.app.system.qube("work").volumes["private"])
        await session("", b"good")
        await session("", b"bad!")
        good = life.pool.revisions(private)
        await session(said, b"")
        assert life.pool.revisions(private) == good
        await session(said, b"more")
        assert (life.pool.revisions(private) == good) == said.startswith("the private")
        assert begins_with(b"more")
        await life.ok("admin.vm.volume.Revert", "work", "private", life.pool.revisions(private)[0])
        assert begins_with(b"good" if said.startswith("the private") else b"bad!")

    live(tmp_path, scenario)
