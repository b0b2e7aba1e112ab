"""What a qube tells of its devices: from a made-up sysfs, what is shown, what is hidden, and when it is told again."""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.guest import devices
from cloison.guest.devices import MAX_DEVICES, Devices, Places, block_devices, usb_devices
from cloison.qdb.tree import is_entry


class Machine:
    """A sysfs and what udev knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = Places(*(str(folder / name) for name in ("sys", "udev", "mountinfo", "swaps")))
        for name in ("sys/class/block", "sys/bus/usb/devices", "udev"):
            (folder / name).mkdir(parents=True)
        self._number = 0

    def block(
        self, name: str, disk: str = "", where: str = "virtual", udev: Mapping[str, str] = {}, files: Mapping[str, str] = {},
    ) -> str:
        """A whole disk, or a partition of one; returns its number."""
        self._number += 1
        number = f"8:{self._number}"
        place = self.folder / "sys/devices" / where / "block" / disk / name
        write(place, {"dev": number, "size": "2048", "ro": "0", **files})
        if disk:
            write(place, {"partition": "1"})
        (place / "holders").mkdir()
        (self.folder / "sys/class/block" / name).symlink_to(place)
        write(self.folder / "udev", {f"b{number}": "".join(f"E:{key}={value}\n" for key, value in udev.items())})
        return number

    def usb(self, port: str, where: str = "pci0000:00", udev: Mapping[str, str] = {}, **files: str) -> None:
        self._number += 1
        place = self.folder / "sys/devices" / where / port
        known = {"dev": f"189:{self._number}", "idVendor": "0951", "idProduct": "1666", "bDeviceClass": "00", "version": " 2.00"}
        write(place, {**known, **files})
        (self.folder / "sys/bus/usb/devices" / port).symlink_to(place)
        write(self.folder / "udev", {f"c189:{self._number}": "".join(f"E:{key}={value}\n" for key, value in udev.items())})

    def told(self) -> dict[str, str]:
        return {path.removeprefix("/qubes-block-devices/"): value for path, value in block_devices(self.places).items()}


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_stick_with_a_partition(machine: Machine) -> None:
    where = "pci0000:00/usb4/4-4/4-4.1/4-4.1:1.0/host0"
    machine.block("sda", where=where, udev={"ID_MODEL": "USB_DISK"})
    machine.block("sda1", disk="sda", where=where, udev={"ID_MODEL": "USB_DISK", "ID_FS_LABEL": "MYLABEL"}, files={"ro": "1"})
    assert machine.told() == {
        "sda/desc": "USB_DISK ()", "sda/size": "1048576", "sda/mode": "w", "sda/parent": "4-4.1:1.0",
        "sda1/desc": "USB_DISK (MYLABEL)", "sda1/size": "1048576", "sda1/mode": "r", "sda1/parent": "sda",
    }


def test_a_loop_devices_partitions_are_offered_as_the_disk_is(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "images/a.img"
    machine.block("loop0", files={"loop/backing_file": str(image)})
    machine.block("loop0p1", disk="loop0")
    told = machine.told()
    assert (told["loop0p1/parent"], told["loop0p1/desc"], told["loop0p1/size"]) == ("loop0", str(image), "1048576")
    image.parent.mkdir()
    (image.parent / devices.EXCLUDED).touch()
    assert machine.told() == {}          # what is excluded is so with all its partitions


def test_a_loop_device_is_its_file_and_a_mapped_one_its_name(machine: Machine) -> None:
    machine.block("loop0", files={"loop/backing_file": "/home/user/a.img"})
    machine.block("dm-0", udev={"DM_NAME": "vg-data"})
    told = machine.told()
    assert told["loop0/desc"] == "/home/user/a.img" and told["dm-0/desc"] == "vg-data"


@pytest.mark.parametrize(("name", "files", "udev"), [
    ("loop0", {}, {}), ("sr0", {"size": "0"}, {}), ("ram0", {}, {}), ("zram0", {}, {}), ("xvdi", {}, {}), ("nbd0", {}, {}),
    ("vda", {"serial": "qubes-root"}, {}), ("vde", {"serial": "xvdi"}, {}), ("vde", {"serial": "sdb"}, {}),
    ("sda", {}, {"UDISKS_IGNORE": "1"}), ("sda", {}, {"QUBES_EXPORT_BLOCK_DEVICE": "0"}),
    ("dm-1", {}, {"DM_NAME": "snapshot-x"}), ("dm-1", {}, {"DM_NAME": "origin-x"}),
    ("much-too-long", {}, {}), ("cciss!c0d0", {}, {}),
])
def test_what_is_hidden(machine: Machine, name: str, files: dict[str, str], udev: dict[str, str]) -> None:
    machine.block(name, udev=udev, files=files)
    machine.block("sdz")
    assert {path.split("/")[0] for path in machine.told()} == {"sdz"}


def test_what_is_in_use_is_hidden_with_its_disk(machine: Machine) -> None:
    machine.block("sda")
    number = machine.block("sda1", disk="sda")
    machine.block("sda2", disk="sda")
    machine.block("sdb")
    machine.block("sdc")
    (machine.folder / "sys/class/block/sdb/holders/dm-0").mkdir()
    write(machine.folder, {"mountinfo": f"22 1 {number} / /mnt rw - ext4 /dev/sda1 rw\n\nshort",
                           "swaps": "Filename Type Size\n/dev/sdc partition 1\n"})
    assert {path.split("/")[0] for path in machine.told()} == {"sda2"}


def test_an_excluded_folder_hides_the_files_below(machine: Machine, tmp_path: Path) -> None:
    images = tmp_path / "images" / "deep"
    images.mkdir(parents=True)
    machine.block("loop0", files={"loop/backing_file": str(images / "a.img")})
    assert machine.told()
    (tmp_path / "images" / devices.EXCLUDED).touch()
    assert not machine.told()


def test_usb_devices(machine: Machine) -> None:
    machine.usb("2-1.4", udev={"ID_VENDOR_ENC": "Kingston", "ID_MODEL_ENC": "Data\\x20Traveler", "ID_SERIAL_SHORT": "ABC\u00e9"})
    for interface, code in (("2-1.4:1.0", "080650"), ("2-1.4:1.1", "030101")):
        parts = {"bInterfaceClass": code[:2], "bInterfaceSubClass": code[2:4], "bInterfaceProtocol": code[4:]}
        write(machine.folder / "sys/bus/usb/devices" / interface, parts)
    machine.usb("2-2", bDeviceClass="09")
    machine.usb("2-3", udev={"ID_VENDOR": "QEMU"})
    machine.usb("2-4", udev={"QUBES_EXPORT_USB_DEVICE": "0"})
    machine.usb("3-1", where="platform/vhci_hcd.0/usb3")
    assert usb_devices(machine.places) == {
        "/qubes-usb-devices/2-1_4/desc": "0951:1666 Kingston Data\\x20Traveler ABC__",
        "/qubes-usb-devices/2-1_4/usb-ver": "2", "/qubes-usb-devices/2-1_4/interfaces": ":080650:030101:",
    }


def test_so_many_devices_at_most_and_only_what_qubesdb_takes(machine: Machine) -> None:
    for number in range(MAX_DEVICES + 3):
        machine.block(f"sd{number}", udev={"ID_MODEL": "\x1b[31m" * 100})
    entries = block_devices(machine.places)
    assert len({path.split("/")[2] for path in entries}) == MAX_DEVICES
    assert all(is_entry(path) and len(value) <= 200 and value.isprintable() for path, value in entries.items())


def test_only_differences_are_told_and_the_folder_last(machine: Machine) -> None:
    published: list[dict[str, str | None]] = []
    teller = Devices(lambda entries: published.append(dict(entries)), machine.places)
    teller.tell()
    assert published == []
    machine.block("sda")
    teller.tell()
    assert list(published[0])[-1] == "/qubes-block-devices" and published[0]["/qubes-block-devices/sda/mode"] == "w"
    write(machine.folder, {"sys/class/block/sda/ro": "1"})
    teller.tell()
    assert published[1] == {"/qubes-block-devices/sda/mode": "r", "/qubes-block-devices": ""}
    (machine.folder / "sys/class/block/sda").unlink()
    teller.tell()
    assert published[2] == {**dict.fromkeys((f"/qubes-block-devices/sda/{key}" for key in ("desc", "size", "mode")), None),
                            "/qubes-block-devices": ""}
    teller.tell()
    assert len(published) == 3


def test_an_announcement_is_a_reason_to_look(machine: Machine) -> None:
    async def run() -> None:
        told = asyncio.Event()
        teller = Devices(lambda _entries: told.set(), machine.places)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs:
            ours.setblocking(False)
            machine.block("sda")
            for message in (b"libudev\0ACTION=add\0SUBSYSTEM=net\0", b"libudev\0ACTION=add\0SUBSYSTEM=block\0X=\0"):
                theirs.send(message)
                teller._announced(ours)
            await asyncio.wait_for(told.wait(), PATIENCE)

    asyncio.run(run())


class Kernel:
    """What udev announces, one after the other; an error in its place is raised."""

    def __init__(self, *said: bytes | OSError) -> None:
        self.said = list(said)

    def recv(self, _size: int) -> bytes:
        said = self.said.pop(0)
        if isinstance(said, OSError):
            raise said
        return said


@pytest.mark.parametrize(("said", "looks"), [
    (b"libudev\0SUBSYSTEM=block\0X=\0", True), (b"libudev\0SUBSYSTEM=usb\0", True), (b"libudev\0SUBSYSTEM=usbmisc\0", False),
    (b"libudev\0SUBSYSTEM=net\0", False), (b"", False), (OSError(105, "No buffer space available"), True),
])
def test_what_is_a_reason_to_look_and_how_often(machine: Machine, said: bytes | OSError, looks: bool) -> None:
    """A storm of announcements is one look, after it; what was lost of them may have been of devices."""
    looked: list[object] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        later = loop.call_later
        loop.call_later = lambda seconds, do: looked.append((seconds, do))     # type: ignore[method-assign,assignment]
        teller = Devices(lambda _entries: None, machine.places)
        kernel = Kernel(said, said, said)
        for _ in range(2):
            teller._announced(kernel)                    # type: ignore[arg-type]
        assert looked == ([(devices.QUIET, teller.tell)] if looks else [])
        teller.tell()
        teller._announced(kernel)                        # type: ignore[arg-type]
        loop.call_later = later                          # type: ignore[method-assign]

    asyncio.run(run())
    assert len(looked) == (2 if looks else 0)


@pytest.mark.parametrize(("count", "shown"), [(MAX_DEVICES, MAX_DEVICES), (MAX_DEVICES + 1, MAX_DEVICES)])
def test_no_more_devices_than_that_are_told_of(machine: Machine, count: int, shown: int) -> None:
    for number in range(count):
        machine.block(f"sd{number:03}")
        machine.usb(f"1-{number}")
    assert len([path for path in block_devices(machine.places) if path.endswith("/size")]) == shown
    assert len([path for path in usb_devices(machine.places) if path.endswith("/desc")]) == shown
