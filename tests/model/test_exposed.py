"""What a guest says of its disks: recorded forms, and hostile ones that hide nothing else."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.devicetext import Device
from cloison.model.devices import deserialise
from cloison.model.exposed import MAX_DEVICES, block_devices, matching

STICK = {
    "/qubes-block-devices/sda/desc": b"USB_DISK (MYLABEL)", "/qubes-block-devices/sda/size": b"1000",
    "/qubes-block-devices/sda/mode": b"w", "/qubes-block-devices/sda1/desc": b"USB_DISK ()",
    "/qubes-block-devices/sda1/parent": b"sda", "/qubes-block-devices/sdb/desc": b"x",
    "/qubes-block-devices/sdb/parent": b"4-4.1:1.0",
}


def test_the_recorded_lines() -> None:
    disk, partition, usb = block_devices("sys-usb", STICK)
    assert disk.line == ("sda::None device_id=':None' port_id='sda' devclass='block' backend_domain='sys-usb' serial='USB DISK' "
                         "name='MYLABEL' manufacturer='hosted by sys-usb' interfaces='b******'\n")
    assert partition.line.startswith("sda1::None:1 device_id=':None:1' port_id='sda1' ")
    assert "parent_port_id='sda' parent_devclass='block'" in partition.line
    assert "parent_port_id='4-4.1' parent_devclass='usb'" in usb.line
    assert usb.device.identity == ":1.0"


@pytest.mark.parametrize("pattern", ["b******", "*******", "b000000"])
def test_denied_patterns(pattern: str) -> None:
    disk = block_devices("q", STICK)[0]
    assert disk.is_denied([pattern]) == (pattern != "b000000")
    assert disk.is_denied(["u******", pattern]) == disk.is_denied([pattern])


def test_matching_by_port_and_identity() -> None:
    exposed = block_devices("q", STICK)
    assert len(matching(exposed, Device("block", "q", "*", "*"))) == 3
    assert [each.device.port for each in matching(exposed, Device("block", "q", "sda1", "*"))] == ["sda1"]
    assert [each.device.port for each in matching(exposed, Device("block", "q", "*", ":None:1"))] == ["sda1"]


@pytest.mark.parametrize("count", [0, 1, MAX_DEVICES, MAX_DEVICES + 1])
def test_lesson_19_a_guest_has_so_many_devices_at_most(count: int) -> None:
    entries = {f"/qubes-block-devices/d{number}/size": b"1" for number in range(count)}
    assert len(block_devices("q", entries)) == min(count, MAX_DEVICES)


def test_parents_in_a_circle_end() -> None:
    circle = {f"/qubes-block-devices/{port}/parent": parent for port, parent in (("a", b"b"), ("b", b"a"), ("c", b"c"))}
    assert [each.device.port for each in block_devices("q", circle)] == ["a", "b", "c"]


@given(st.dictionaries(
    st.builds(lambda port, key: f"/qubes-block-devices/{port}{key}", st.text(max_size=14), st.sampled_from(
        ["", "/", "/desc", "/size", "/mode", "/parent", "/desc/x"])),
    st.binary(max_size=400), max_size=8))
def test_lesson_15_any_bytes_make_lines_that_read_back(entries: dict[str, bytes]) -> None:
    for each in block_devices("q", entries):
        head, _, pairs = each.line.rstrip("\n").partition(" ")
        assert "\n" not in head + pairs
        assert deserialise(pairs.encode())["port_id"] == each.device.port == head.split(":")[0]
