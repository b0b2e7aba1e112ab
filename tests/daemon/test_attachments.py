"""Block devices attached, taken back and lost; by hand, by rule, by asking; with qubes that run beside no machine."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

import pytest
from tests.patience import PATIENCE

from cloison.daemon.app import App
from cloison.daemon.attachments import Attachments
from cloison.daemon.fake import FakeHost, ask, fake_app, fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up
from cloison.devicetext import Device
from cloison.errors import MachineError
from cloison.model.qubes import new_system
from cloison.wire.blocks import Block

FOLDER = "/qubes-block-devices"
SDA = {f"{FOLDER}/sda/desc": "USB_DISK (MYLABEL)", f"{FOLDER}/sda/size": "1000", f"{FOLDER}/sda/mode": "w"}
SDB = {f"{FOLDER}/sdb/desc": "CARD ()", f"{FOLDER}/sdb/mode": "r"}
Heard = list[tuple[str, str, dict[str, str]]]


class Scene:
    """`usb` has devices, `work` and `other` run."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.heard: Heard = []
        app.listen(app.system.dom0, None, lambda subject, name, pairs: self.heard.append((subject, name, dict(pairs))))

    @property
    def wardens(self) -> FakeWardens:
        assert isinstance(self.app.parts.wardens, FakeWardens)
        return self.app.parts.wardens

    def uuid(self, name: str) -> str:
        return self.app.system.qube(name).uuid

    async def plug(self, entries: dict[str, str | None] | dict[str, str]) -> None:
        await self.wardens.qdb_write(self.uuid("usb"), dict(entries))
        self.app.parts.wardens.on_event(self.uuid("usb"), "qdb-change", {"path": FOLDER})
        await self.app.live.settled()
        await self.app.attachments.settled()

    async def call(self, verb: str, dest: str = "work", argument: str = "", payload: str = "", devclass: str = "block") -> str:
        """What was answered, or the class of the exception."""
        answer = await ask(self.app, f"admin.vm.device.{devclass}.{verb}", dest, argument, payload)
        return answer.failure or answer.content

    def devices(self) -> Heard:
        """What was told of devices since the last look."""
        told = [each for each in self.heard if each[1].startswith("device-") and "list-change" not in each[1]]
        self.heard.clear()
        return told


async def furnished(app: App) -> Scene:
    await ask(app, "admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black")
    for name in ("usb", "work", "other"):
        await ask(app, "admin.vm.Create.AppVM", "dom0", "tpl", f"name={name} label=red")
        assert not (await ask(app, "admin.vm.Start", name)).failure
    return Scene(app)


def play(tmp_path: Path, scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        scene = await furnished(app)
        await scene.plug(SDA)
        scene.heard.clear()
        await scenario(scene)
        await app.live.close()
        await app.attachments.close()
        await app.machines.close()
        app.parts.store.close()

    asyncio.run(run())


def test_attach_list_detach_and_their_events(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("Attach", "work", "usb+sda+_", "_read-only='yes'") == ""
        told = {"device": "usb:sda::None", "options": "{'read-only': 'yes'}"}
        assert scene.devices() == [("work", "device-pre-attach:block", told), ("work", "device-attach:block", told)]
        line = ("usb+sda::None device_id=':None' port_id='sda' devclass='block' backend_domain='usb' mode='manual' "
                "frontend_domain='work' _frontend-dev='xvdi' _read-only='yes'\n")
        assert await scene.call("Attached") == await scene.call("Attached", argument="usb+sda") == line
        assert await scene.call("Attached", argument="usb+sdb") == await scene.call("Attached", "other") == ""
        assert "attachment='work'" in await scene.call("Available", "usb")
        assert await scene.call("Assign", "work", "usb+sda+_", "mode='auto-attach'") == ""
        assert "mode='auto-attach'" in await scene.call("Attached")
        scene.devices()
        assert await scene.call("Detach", "work", "usb+sda+_") == ""
        port = {"port": "usb:sda"}
        assert scene.devices() == [("work", "device-pre-detach:block", port), ("work", "device-detach:block", port)]
        assert await scene.call("Attached") == "" and "attachment" not in await scene.call("Available", "usb")

    play(tmp_path, scenario)


def test_an_attached_device_is_waited_for_but_no_qube_that_will_not_say(tmp_path: Path) -> None:
    """The caller can use it at once; a qube that has no such service, or fails it, has it all the same."""
    async def scenario(scene: Scene) -> None:
        wardens = scene.app.parts.wardens
        assert isinstance(wardens, FakeWardens)
        assert await scene.call("Attach", "work", "usb+sda") == ""
        assert wardens.services == [(scene.uuid("work"), "cloison.AwaitDisk", b"xvdi\n")]
        await scene.plug(SDB)
        with mock.patch.object(wardens, "service", side_effect=MachineError("cloison.AwaitDisk failed in the qube")):
            assert await scene.call("Attach", "work", "usb+sdb") == ""
        assert "_frontend-dev='xvdj'" in await scene.call("Attached")

    play(tmp_path, scenario)


def test_a_paused_qube_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await ask(scene.app, "admin.vm.Pause", "work")
        assert await scene.call("Attach", "work", "usb+sda") == ""
        assert isinstance(scene.app.parts.wardens, FakeWardens) and scene.app.parts.wardens.services == []

    play(tmp_path, scenario)


def test_refusals_as_the_reference_has_them(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        for dest, argument, payload, failure in (
            ("work", "usb+sdx", "", "ProtocolError"), ("work", "nobody+sda", "", "QubesVMNotFoundError"),
            ("usb", "usb+sda", "", "QubesValueError"), ("work", "usb+sda", "_color='red'", "QubesValueError"),
            ("work", "usb+sda", "_frontend-dev='hda'", "QubesValueError"),
            ("work", "usb+sda", "_devtype='floppy'", "QubesValueError"),
            ("work", "usb+sda", "_devtype='cdrom' _read-only='no'", "QubesValueError"),
            ("dom0", "usb+sda", "", "QubesException"), ("dom0", "usb+_+_", "mode='x'", "ProtocolError"),
            ("work", "usb+sda", "", ""), ("work", "usb+sda", "", "DeviceAlreadyAttached"),
            ("other", "usb+sda", "", "DeviceAlreadyAttached"),
        ):
            assert await scene.call("Attach", dest, argument, payload) == failure, (dest, argument, payload)
        await scene.plug(SDB)
        assert await scene.call("Attach", "work", "usb+sdb", "_read-only='no'") == "QubesValueError"
        assert await scene.call("Attach", "work", "usb+sdb", "_frontend-dev='xvdi'") == "QubesException"
        assert await scene.call("Attach", "work", "usb+sdb") == ""
        assert "_frontend-dev='xvdj' _read-only='yes'" in await scene.call("Attached")
        assert await scene.call("Detach", "other", "usb+sda") == "DeviceNotAssigned"
        await ask(scene.app, "admin.vm.Kill", "work")
        assert await scene.call("Attach", "work", "usb+sda") == "QubesVMNotRunningError"
        assert await scene.call("Detach", "work", "usb+sda") == "DeviceNotAssigned"

    play(tmp_path, scenario)


def test_a_disc_is_a_disk_that_is_read_only_and_listed_as_what_it_was_asked_for(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("Attach", "work", "usb+sda", "_devtype='cdrom'") == ""
        assert "_frontend-dev='xvdi' _read-only='yes' _devtype='cdrom'\n" in await scene.call("Attached")
        found = next(each for each in await scene.wardens.adopt() if each.name == "work")
        assert [(block.name, block.read_only, block.disc) for block in found.blocks] == [("xvdi", True, True)]

    play(tmp_path, scenario)


def test_dom0_can_have_rules_and_no_devices(tmp_path: Path) -> None:
    """As Qubes OS: a rule for dom0 is kept, listed and given up; no device of a qube comes to the host by it."""
    async def scenario(scene: Scene) -> None:
        for devclass in ("block", "pci", "usb", "mic"):
            line = (f"usb+sda:* device_id='*' port_id='sda' devclass='{devclass}' backend_domain='usb' mode='auto-attach' "
                    "frontend_domain='dom0'\n")
            payload = "mode='auto-attach' frontend_domain='dom0'"
            assert await scene.call("Assign", "dom0", "usb+sda+_", payload, devclass) == ""
            assert await scene.call("Assign", "dom0", "usb+sda+_", payload, devclass) == "DeviceAlreadyAssigned"
            assert await scene.call("Assigned", "dom0", devclass=devclass) == line
            assert await scene.call("Set.assignment", "dom0", "usb+sda+_", "required", devclass) == ""
            assert "mode='required'" in await scene.call("Assigned", "dom0", "usb+sda", devclass=devclass)
        assert (await ask(scene.app, "admin.vm.Remove", "usb")).failure == "QubesVMNotHaltedError"
        await scene.plug(dict.fromkeys(SDA))
        await scene.plug(SDA)
        assert await scene.call("Attached", "dom0") == "" and "attachment" not in await scene.call("Available", "usb")
        for devclass in ("block", "pci", "usb", "mic"):
            assert await scene.call("Unassign", "dom0", "usb+sda+_", devclass=devclass) == ""
        assert await scene.call("Assign", "other", "usb+sda+_", "mode='auto-attach'") == ""

    play(tmp_path, scenario)


@pytest.mark.parametrize(("argument", "payload", "line"), [
    ("usb+sda", "", "usb+sda:* device_id='*' port_id='sda'"),
    ("usb+a@b+_", "", "usb+a@b:* device_id='*' port_id='a@b'"),
    ("usb++_", "", "usb+:* device_id='*' port_id=''"),
    ("usb+" + "a" * 255 + "+_", "", f"usb+{'a' * 255}:* device_id='*' port_id='{'a' * 255}'"),
    ("usb+sda+Flash_Disk", "", "usb+sda:Flash_Disk device_id='Flash_Disk' port_id='sda'"),     # a serial number's own `_`
    ("usb+_+1+2++_______", "", "usb+*:1:2::?****** device_id='1:2::?******' port_id='*'"),
    ("usb+sda+_", "device_id='a b'", "usb+sda:a b device_id='a b' port_id='sda'"),
    ("_+sda+_", "", "*+sda:* device_id='*' port_id='sda'"),
    ("usb+sda+_", "frontend_domain='other'", "frontend_domain='other'"),
])
def test_rules_may_name_what_no_device_is_called(tmp_path: Path, argument: str, payload: str, line: str) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.call("Assign", "work", argument, f"mode='ask-to-attach' {payload}") == ""
        assert line in await scene.call("Assigned")
        scene.app.parts.store.load(again := new_system(FakeHost()))
        assert again.qube("work").assignments == scene.app.system.qube("work").assignments

    play(tmp_path, scenario)


@pytest.mark.parametrize(("argument", "payload"), [
    ("usb", ""), ("+sda", ""), ("usb+a b", ""), ("usb+a\n", ""), ("usb+" + "a" * 256, ""), ("usb+sda+" + "a" * 1025, ""),
    ("usb+sda", f"device_id='{'a' * 1025}'"), ("usb+sda", "frontend_domain='nobody'"), ("usb+sda", "frontend_domain=''"),
    ("_+sda", "frontend_domain='work'"), ("usb+sda", "mode='x'"),
])
def test_a_rule_that_can_not_be_listed_is_refused(tmp_path: Path, argument: str, payload: str) -> None:
    async def scenario(scene: Scene) -> None:
        for dest in ("work", "dom0"):
            answer = await scene.call("Assign", dest, argument, payload if "mode" in payload else f"mode='required' {payload}")
            assert answer == "ProtocolError"
            assert await scene.call("Assigned", dest) == ""

    play(tmp_path, scenario)


def test_a_place_with_two_rules_is_no_single_device(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        for identity in ("_", "1"):
            assert await scene.call("Assign", "work", f"usb+sda+{identity}", "mode='auto-attach'") == ""
        assert await scene.call("Assigned", argument="usb+sda") == "DeviceNotFound"
        assert len((await scene.call("Assigned")).splitlines()) == 2

    play(tmp_path, scenario)


@pytest.mark.parametrize(("devclass", "backend", "argument"), [("usb", "usb", "usb+2-1.4"), ("mic", "dom0", "dom0+mic")])
def test_other_classes_are_listed_and_can_not_be_attached(tmp_path: Path, devclass: str, backend: str, argument: str) -> None:
    async def scenario(scene: Scene) -> None:
        stick = "/qubes-usb-devices/2-1_4"
        await scene.plug({f"{stick}/desc": "0951:1666 Kingston Data\\x20Traveler A1", f"{stick}/interfaces": ":080650:030101:"})
        listed = await scene.call("Available", backend, devclass=devclass)
        expected = {
            "usb": "2-1.4:0951:1666:A1:u080650u030101 device_id='0951:1666:A1:u080650u030101' port_id='2-1.4' devclass='usb' "
                   "backend_domain='usb' vendor='Kingston' product='Data Traveler' serial='A1' interfaces='u080650u030101'\n",
            "mic": "mic:dom0:mic::m000000 device_id='dom0:mic::m000000' port_id='mic' devclass='mic' backend_domain='dom0' "
                   "name='microphone' manufacturer='built-in' interfaces='m000000'\n",
        }
        assert listed == expected[devclass]
        assert await scene.call("Attach", "work", argument, devclass=devclass) == "QubesException"
        assert await scene.call("Detach", "work", argument, devclass=devclass) == "DeviceNotAssigned"
        assert await scene.call("Attached", devclass=devclass) == ""

    play(tmp_path, scenario)


def test_a_warden_that_can_not_attach_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        async def refuse(_block: Block) -> None:
            raise MachineError("it is in use in its qube")

        scene.wardens.attaching = refuse
        answer = await ask(scene.app, "admin.vm.device.block.Attach", "work", "usb+sda", "")
        assert answer.failure == "QubesException" and "it is in use in its qube" in answer.content
        assert await scene.call("Attached") == "" and "attachment" not in await scene.call("Available", "usb")
        assert [name for _, name, _ in scene.devices()] == ["device-pre-attach:block"]

    play(tmp_path, scenario)


def test_two_who_want_the_same_device_at_once(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        both = await asyncio.gather(scene.call("Attach", "work", "usb+sda"), scene.call("Attach", "other", "usb+sda"))
        assert sorted(both) == ["", "DeviceAlreadyAttached"]

    play(tmp_path, scenario)


def test_a_device_that_goes_while_it_is_attached_is_not(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        async def gone(block: Block) -> None:
            scene.app.parts.wardens.on_event(scene.uuid("work"), "block-lost", {"name": block.name})

        scene.wardens.attaching = gone
        assert await scene.call("Attach", "work", "usb+sda") == "QubesException"
        assert await scene.call("Attached") == ""

    play(tmp_path, scenario)


def test_a_qube_that_stops_while_it_is_given_a_device_has_lost_none(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        async def stop(_block: Block) -> None:
            scene.app.attachments.stopped(scene.app.system.qube("work"))

        scene.wardens.attaching = stop
        assert await scene.call("Attach", "work", "usb+sda") == "QubesException"
        assert [name for _, name, _ in scene.devices()] == ["device-pre-attach:block"]
        assert "attachment" not in await scene.call("Available", "usb")

    play(tmp_path, scenario)


@pytest.mark.parametrize("who", ["usb", "work"])
def test_when_either_qube_stops_the_device_is_detached(tmp_path: Path, who: str) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.call("Attach", "work", "usb+sda")
        scene.devices()
        await ask(scene.app, "admin.vm.Kill", who)
        assert ("work", "device-detach:block", {"port": "usb:sda"}) in scene.devices()
        assert await scene.call("Attached") == ""

    play(tmp_path, scenario)


def test_lesson_38_the_next_daemon_asks_the_wardens(tmp_path: Path) -> None:
    async def run() -> None:
        folder = str(tmp_path / "wardens")
        wardens = FakeWardens(folder)
        wardens.notes["work"] = "no home"
        app = App(fake_parts(str(tmp_path), wardens=wardens))
        await bring_up(app)
        scene = await furnished(app)
        await scene.plug(SDA)
        await scene.call("Attach", "work", "usb+sda", "_read-only='yes'")
        app.parts.store.close()

        again = App(fake_parts(str(tmp_path), wardens=FakeWardens(folder)))
        await bring_up(again)
        second = Scene(again)
        assert again.system.qube("work").note == "work says: no home"
        assert "_frontend-dev='xvdi' _read-only='yes'" in await second.call("Attached")
        block = Block("xvdj", second.uuid("usb"), "sdb", read_only=False)
        for _ in range(2):            # asked for by the daemon that was killed; told twice, it is one
            again.parts.wardens.on_event(second.uuid("work"), "block-attached", {"block": block._asdict()})
        again.parts.wardens.on_event(second.uuid("work"), "block-attached", {"block": {"name": "../x"}})
        assert (await second.call("Attached")).count("\n") == 2
        assert [name for _, name, _ in second.devices()] == ["device-attach:block"]
        assert await second.call("Detach", "work", "usb+sda") == ""
        await again.live.close()
        again.parts.store.close()

    asyncio.run(run())


def test_what_is_lost_while_wardens_are_asked_is_not_taken_over(tmp_path: Path) -> None:
    """One tells of a loss after it has said what it has; once all is taken over, names are given again."""
    async def scenario(scene: Scene) -> None:
        app, work = scene.app, scene.app.system.qube("work")
        said = [Block("xvdi", scene.uuid("usb"), "sda", read_only=False), Block("xvdj", scene.uuid("usb"), "sdb", read_only=False)]
        fresh = Attachments(app, app.parts.wardens, app.devices, app.parts.paths)
        fresh.reported(work, "block-lost", {"name": "xvdi"})
        fresh.adopt(work, said)
        assert fresh.user_of(Device("block", "usb", "sda")) is None
        assert fresh.user_of(Device("block", "usb", "sdb")) is work
        await fresh.ready()
        fresh.reported(work, "block-lost", {"name": "xvdj"})
        fresh.adopt(work, said[1:])
        assert fresh.user_of(Device("block", "usb", "sdb")) is work

    play(tmp_path, scenario)


# -- by rule ---------------------------------------------------------------------------------------------------------------


def test_by_rule_when_the_device_comes_and_when_the_qube_starts(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.call("Assign", "work", "usb+sdb+_", "mode='auto-attach'")
        assert await scene.call("Attached") == ""
        await scene.plug(SDB)
        assert "port_id='sdb'" in await scene.call("Attached")
        await ask(scene.app, "admin.vm.Kill", "work")
        assert not (await ask(scene.app, "admin.vm.Start", "work")).failure
        assert "port_id='sdb'" in await scene.call("Attached")
        await scene.plug(dict.fromkeys(SDB))
        scene.wardens.lose(scene.uuid("work"), "xvdi")
        assert await scene.call("Attached") == ""

    play(tmp_path, scenario)


def test_a_rule_that_can_not_be_followed_lets_the_qube_start(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.call("Assign", "work", "usb+sda+_", "mode='auto-attach' _color='red'")
        await ask(scene.app, "admin.vm.Kill", "work")
        assert not (await ask(scene.app, "admin.vm.Start", "work")).failure
        assert await scene.call("Attached") == ""

    play(tmp_path, scenario)


def test_what_is_required_is_there_before_the_qube_is_said_to_run(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await ask(scene.app, "admin.vm.Kill", "work")
        await scene.call("Assign", "work", "usb+sda+_", "mode='required'")
        scene.heard.clear()
        assert not (await ask(scene.app, "admin.vm.Start", "work")).failure
        names = [name for subject, name, _ in scene.heard if subject == "work"]
        assert names.index("device-attach:block") < names.index("domain-start")
        assert await scene.call("Detach", "work", "usb+sda") == "QubesVMNotHaltedError"
        await ask(scene.app, "admin.vm.Kill", "work")
        scene.wardens.attaching = _refuse
        assert (await ask(scene.app, "admin.vm.Start", "work")).failure == "QubesException"
        work = scene.app.system.qube("work")
        assert work.is_halted and work.uuid not in scene.wardens.running() and work.uuid not in scene.app.machines.starts
        await asyncio.wait_for(scene.app.machines.stopped(work), PATIENCE)       # it never ran: nobody waits for its stop
        scene.heard.clear()
        await scene.plug(dict.fromkeys(SDA))
        assert (await ask(scene.app, "admin.vm.Start", "work")).failure == "QubesException"
        assert "domain-start-failed" in [name for _, name, _ in scene.heard]
        await scene.call("Unassign", "work", "usb+sda+_")
        assert not (await ask(scene.app, "admin.vm.Start", "work")).failure

    play(tmp_path, scenario)


async def _refuse(_block: Block) -> None:
    raise MachineError("no")


@pytest.mark.parametrize(("answer", "user"), [
    (b"allow:other", "other"), (b"allow:work\n", "work"), (b"allow:usb", None), (b"deny", None), (b"", None), (b"x" * 1000, None),
    (None, None),
])
def test_the_person_is_asked_when_two_could_have_it(tmp_path: Path, answer: bytes | None, user: str | None) -> None:
    questions: list[bytes] = []

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        questions.append(await reader.read())
        writer.write(answer or b"")
        writer.close()
        await writer.wait_closed()

    async def scenario(scene: Scene) -> None:
        for name in ("work", "other"):
            await scene.call("Assign", name, "usb+_+_", "mode='auto-attach'")
        path = f"{scene.app.parts.paths.qubes}/device-agent.GUI"
        server = await asyncio.start_unix_server(agent, path) if answer is not None else None
        await scene.plug(SDB)
        having = [name for name in ("work", "other") if await scene.call("Attached", name)]
        assert having == ([user] if user else [])
        if server is not None:
            head, _, body = questions[0].partition(b"\0")
            asked = json.loads(body)
            assert head == b"device-agent.GUI dom0" and asked["targets"] == ["other", "work"] and asked["default_target"] == ""
            assert (asked["source"], asked["argument"], set(asked["icons"])) == ("usb", "sdb", {"usb", "work", "other"})
            server.close()
            await server.wait_closed()

    play(tmp_path, scenario)


def test_nobody_is_asked_for_what_somebody_has_already(tmp_path: Path) -> None:
    """Its own qube takes it off the list and puts it there again; it is in the other one's hands all the time."""
    questions: list[bytes] = []

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        questions.append(await reader.read())
        writer.close()
        await writer.wait_closed()

    async def scenario(scene: Scene) -> None:
        async def again() -> None:
            await scene.plug(dict.fromkeys(SDA))
            await scene.plug(SDA)

        await scene.call("Assign", "work", "usb+_+_", "mode='ask-to-attach'")
        server = await asyncio.start_unix_server(agent, f"{scene.app.parts.paths.qubes}/device-agent.GUI")
        await scene.call("Attach", "other", "usb+sda")
        await again()
        assert questions == []
        await scene.call("Detach", "other", "usb+sda")
        await again()
        assert len(questions) == 1
        server.close()
        await server.wait_closed()

    play(tmp_path, scenario)


@pytest.mark.parametrize("entries", [
    {f"{FOLDER}/d{number}/size": "1" for number in range(10_000)},
    {f"{FOLDER}/a\nb/size": "1", f"{FOLDER}/\x1b[31m/size": "1", f"{FOLDER}/../x/size": "1", f"{FOLDER}/{'x' * 13}/size": "1"},
    {f"{FOLDER}/sdx/size": "many", f"{FOLDER}/sdy/size": "-1", f"{FOLDER}/sdz/mode": "rw", f"{FOLDER}/sdw/size": "9" * 40},
])
def test_lesson_19_a_hostile_backend_is_bounded_and_hides_nothing(tmp_path: Path, entries: dict[str, str]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.plug({**SDA, **entries})
        lines = (await scene.call("Available", "usb")).splitlines()
        assert len(lines) == 256 or len(lines) == 1
        assert any(line.startswith("sda:") for line in lines)
        assert all(line.isprintable() for line in lines)
        assert not (await ask(scene.app, "admin.vm.List", "dom0")).failure

    play(tmp_path, scenario)
