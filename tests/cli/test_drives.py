"""A drive for one start: which device a text names, and that its assignment goes when the start is over, however it went."""
from __future__ import annotations

import pytest
from fake_qubesd import FakeQubesd, Refused
from tests.cli.test_tools import changes, run

from cloison.cli import drives
from cloison.client.connection import Connection
from cloison.errors import BadValue, CloisonError
from cloison.values import InvalidValue
from cloison.wire import admin

SDA = b"sda:0951:1666:b****** device_id='0951:1666:b******' port_id='sda' devclass='block' backend_domain='sys-net'\n"


@pytest.fixture
def exposing(qubesd: FakeQubesd) -> FakeQubesd:
    def available(_: FakeQubesd, request: admin.Request) -> bytes:
        if request.dest not in qubesd.qubes:
            raise Refused("QubesVMNotFoundError", "no such qube")
        return admin.ok(SDA.replace(b"sys-net", request.dest.encode()) if request.dest in ("sys-net", "dom0") else b"")

    qubesd.answers["admin.vm.device.block.Available"] = available
    for verb in ("Assign", "Unassign"):
        qubesd.answers[f"admin.vm.device.block.{verb}"] = lambda *_: admin.ok()
    return qubesd


@pytest.mark.parametrize(("text", "backend", "kind", "read_only"), [
    ("sys-net:sda", "sys-net", "cdrom", "yes"), ("cdrom:sys-net:sda", "sys-net", "cdrom", "yes"),
    ("hd:sys-net:sda", "sys-net", "disk", "no"),
    ("dom0:sda", "dom0", "cdrom", "yes"), ("hd:dom0:sda", "dom0", "disk", "no"),
])
def test_a_drive_is_a_disc_unless_it_is_said_to_be_a_disk(
    exposing: FakeQubesd, text: str, backend: str, kind: str, read_only: str,
) -> None:
    drive = drives.find(Connection(), text)
    assert (drive.device.backend, drive.device.port, drive.kind) == (backend, "sda", kind)
    assert drive.options() == {"devtype": kind, "read-only": read_only}


@pytest.mark.parametrize(("text", "error"), [
    ("sda", BadValue), ("sys-net:", BadValue), ("", BadValue), ("hd:sys-net", BadValue), ("sys-net:/tmp/image", drives.NoSuchDrive),
    ("nobody:sda", drives.NoSuchDrive), ("sys-net:sdb", drives.NoSuchDrive), ("work:sda", drives.NoSuchDrive),
    ("a b:sda", InvalidValue), ("../x:sda", InvalidValue),
])
def test_what_names_no_drive(exposing: FakeQubesd, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        drives.find(Connection(), text)
    assert {call[1] for call in changes(exposing)} <= {"admin.vm.device.block.Available"}


@pytest.mark.parametrize("fails", [False, True])
def test_a_drive_is_required_for_one_start_and_no_other(exposing: FakeQubesd, fails: bool) -> None:
    if fails:
        exposing.answers["admin.vm.Start"] = lambda *_: admin.exception("QubesException", "no")
    assert run("qvm-start", "--hddisk", "sys-net:sda", "work") == int(fails)
    done = [call for call in exposing.calls if call[0] == "work" and call[1].rpartition(".")[2] in ("Assign", "Unassign", "Start")]
    assert [call[1].rpartition(".")[2] for call in done] == ["Assign", "Start", "Unassign"]
    assert b"mode='required'" in done[0][3] and b"_devtype='disk'" in done[0][3] and b"_read-only='no'" in done[0][3]
    assert done[0][2] == done[2][2]


def test_who_can_not_have_the_drive_is_not_started(exposing: FakeQubesd) -> None:
    exposing.answers["admin.vm.device.block.Assign"] = lambda *_: admin.exception("QubesException", "no")
    assert run("qvm-start", "--cdrom", "sys-net:sda", "work") == 1
    assert not [call for call in exposing.calls if call[1] in ("admin.vm.Start", "admin.vm.device.block.Unassign")]


def test_an_interrupt_takes_the_drive_away_again(exposing: FakeQubesd) -> None:
    drive = drives.find(Connection(), "sys-net:sda")
    with pytest.raises(KeyboardInterrupt), drives.assigned(Connection(), "work", drive):
        raise KeyboardInterrupt
    assert exposing.calls[-1][1] == "admin.vm.device.block.Unassign"
    with pytest.raises(CloisonError, match="no"), drives.assigned(Connection(), "work", drive):
        raise CloisonError("no")
