"""qvm-device, qvm-block, qvm-usb, qvm-pci: rules against the real qubesd, plugged devices against a fake one."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, Refused
from hypothesis import given
from hypothesis import strategies as st

from cloison.cli import qvm_block, qvm_device, qvm_pci, qvm_usb
from cloison.client import devices
from cloison.client.connection import Connection
from cloison.devicetext import Device
from cloison.values import InvalidValue
from cloison.wire import admin

VECTORS = json.loads((Path(__file__).parents[1] / "conformance" / "data" / "device-vectors.json").read_text())
IDENTITY = "0951:1666:A:u080650:None"
DISK = (f"sda:{IDENTITY} device_id='{IDENTITY}' port_id='sda' devclass='block' backend_domain='sys-net' "
        "vendor='Kingston' name='my \\'disk\\'' interfaces='b******' _size='8'\n")
PART = ("sda1:p:1 device_id='p:1' port_id='sda1' devclass='block' backend_domain='sys-net' interfaces='b******' "
        "parent_port_id='sda' parent_devclass='block'\n")
ATTACHED = f"sys-net+sda:{IDENTITY} device_id='{IDENTITY}' port_id='sda' mode='manual' _read-only='yes'\n"
ARGUMENT = "sys-net+sda+0951+1666+A+u080650+None"


@pytest.fixture
def plugged(qubesd: FakeQubesd) -> FakeQubesd:
    """sys-net exposes a disk with one partition."""
    def says(texts: dict[str, str]) -> Callable[[FakeQubesd, admin.Request], bytes]:
        return lambda _, request: admin.ok(texts.get(request.dest, "").encode())

    qubesd.answers.update({
        "admin.vm.device.block.Available": says({"sys-net": DISK + PART}),
        "admin.vm.device.block.Attached": says({}), "admin.vm.device.block.Assigned": says({}),
        **{f"admin.vm.device.block.{verb}": says({}) for verb in ("Attach", "Detach", "Assign", "Unassign", "Set.assignment")},
    })
    return qubesd


def attach_disk(qubesd: FakeQubesd) -> None:
    qubesd.qubes["work"]["state"] = "Running"
    qubesd.answers["admin.vm.device.block.Attached"] = lambda _, request: admin.ok(
        ATTACHED.encode() if request.dest == "work" else b"")


def sent(qubesd: FakeQubesd) -> list[tuple[str, str, str, bytes]]:
    """Calls that are no mere reads."""
    reads = ("List", "Available", "Attached", "Assigned", "Get")
    return [(dest, method.removeprefix("admin.vm.device.block."), argument, payload)
            for dest, method, argument, payload in qubesd.calls if method.rpartition(".")[2] not in reads]


def rules(connection: Connection, devclass: str = "block") -> list[str]:
    return connection.call("work", f"admin.vm.device.{devclass}.Assigned").decode().splitlines()


# -- texts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", [each for each in VECTORS["serialization"] if "qarg" in each])
def test_arguments_are_those_of_qubes_os(vector: dict[str, str]) -> None:
    pairs = devices.used(f"x+y:z {vector['serialized']}\n".encode(), "usb")[0].pairs
    assert Device("usb", pairs["backend_domain"], pairs["port_id"], pairs["device_id"]).argument == vector["qarg"]


@given(st.text("ab'=\" _:*", max_size=12), st.text("ab'=\" _:*", max_size=12))
def test_what_is_serialised_is_read_back(value: str, other: str) -> None:
    payload = devices.serialise(Device("usb", "back", "1-1", "*"), "front", "manual", {"one": value, "two": other})
    line = devices.used(b"back+1-1:* " + payload + b"\n", "usb")[0]
    assert line.extra == {"one": value, "two": other}
    assert line.device == Device("usb", "back", "1-1", "*") and line.mode == "manual"


@given(st.text(max_size=80))
def test_any_line_is_a_device(text: str) -> None:
    for line in devices.used(text.encode("utf-8", "surrogatepass"), "usb"):
        assert devices.description(line)


@pytest.mark.parametrize("text", [
    "", "a", ":", "a:", ":b", "a:b c", "a:../x", "a:b:", "a:b:\n", "a:" + "x" * 256, "a:b:" + "x" * 1025])
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(InvalidValue):
        devices.parse_device(text)


@pytest.mark.parametrize("option", [{"a b": "x"}, {"": "x"}, {"a": "\n"}, {"a": "\\"}, {"a": "é"}, {"a'='": "x"}])
def test_an_option_is_one_option(option: dict[str, str]) -> None:
    with pytest.raises(InvalidValue):
        devices.serialise(Device("usb", "b", "p", "*"), "f", "manual", option)


@pytest.mark.parametrize(("interfaces", "expected"), [
    ("pffff00", "PCI device"), ("uff0000", "USB device"), ("uff0000u030101", "Keyboard"), ("?******", "?******"), ("", "?******"),
])
def test_a_device_is_described_by_what_is_known_of_it(interfaces: str, expected: str) -> None:
    line = devices.Line(Device("usb", "b", "p", "*"), {"interfaces": interfaces}, {})
    assert devices.description(line) == f"{expected}: unknown vendor unknown usb device"


@pytest.mark.parametrize(("interface", "expected"), [
    ("u030101", "Keyboard"), ("u030102", "Mouse"), ("u030000", "Input"), ("b******", "Block_Storage"),
    ("u080650", "USB_Storage"), ("m000000", "Microphone"), ("p0c0330", "PCI_USB"), ("p0c0500", "PCI_Serial_Bus"),
    ("?******", "?******"), ("p990000", "p990000"),
])
def test_categories(interface: str, expected: str) -> None:
    assert devices.category(interface) == expected


# -- rules, at the real qubesd ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("list",), (), ("ls", "work"), ("l", "--all", "--exclude", "work"), ("list", "-s")])
def test_without_devices_nothing_is_listed(
    real: Connection, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert qvm_block.main(words) == 0
    assert qvm_device.main(["pci", *words]) == 0
    assert qvm_pci.main([*words, *(["--with-sbdf"] if words else [])]) == 0
    assert capsys.readouterr().out == ""


def test_classes(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    for main in (qvm_device.main, qvm_block.main):
        assert main(["--list-device-classes"]) == 0
        assert capsys.readouterr().out == "block\npci\n"
    assert qvm_usb.main([]) == 0
    assert qvm_device.main(["webcam"]) == 1
    assert "failed to list 'webcam' devices" in capsys.readouterr().err
    assert qvm_device.main(["../x", "list"]) == 1
    assert qvm_device.main([]) == 2


def test_what_is_assigned_to_a_port_can_be_unassigned_when_it_is_unplugged(
    real: Connection, capsys: pytest.CaptureFixture[str],
) -> None:
    for identity in ("1:2:3", "4:5:6"):
        assert qvm_block.main(["assign", "work", f"net:sda:{identity}"]) == 0
    assert qvm_block.main(["assign", "work", "net:sdb:7:8:9"]) == 0
    assert qvm_block.main(["unassign", "work", "net:sda"]) == 1
    told = capsys.readouterr().err
    assert "several" in told and "net:sda:1:2:3" in told and "net:sda:4:5:6" in told and len(rules(real)) == 3
    assert qvm_block.main(["unassign", "work", "net:sda:0:0:0"]) == 1, "another was named"
    assert qvm_block.main(["unassign", "--device", "work", "net:sda"]) == 1
    assert qvm_block.main(["unassign", "work", "net:sda:1:2:3"]) == 0
    assert len(rules(real)) == 2
    assert qvm_block.main(["unassign", "work", "net:sda"]) == 0
    assert [line.split(" ")[0] for line in rules(real)] == ["net+sdb:7:8:9"]
    capsys.readouterr()
    assert qvm_block.main(["unassign", "work", "net:sda"]) == 1
    assert "net:sda is not assigned to work" in capsys.readouterr().err


def test_assign_change_list_unassign(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_block.main(["assign", "--port", "--ro", "work", "net:sda"]) == 0
    assert rules(real) == ["net+sda:* device_id='*' port_id='sda' devclass='block' backend_domain='net' mode='auto-attach' "
                           "frontend_domain='work' _read-only='yes'"]
    assert qvm_block.main(["s", "--port", "--ask", "work", "net:sda"]) == 0
    assert "mode='ask-to-attach' frontend_domain='work' _read-only='yes'" in rules(real)[0]
    assert qvm_block.main(["s", "--port", "--ro", "work", "net:sda"]) == 1
    assert "already" in capsys.readouterr().err
    assert qvm_block.main(["assign", "--required", "work", "net:*:1234:5678::b080650"]) == 0
    assert qvm_block.main(["list", "--assignments"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "net:*    1234:5678::b080650  *work (required)",
        "net:sda  any device          *work (ask-to-attach: read-only=yes)"]
    assert qvm_block.main(["unassign", "--port", "work", "net:sda"]) == 0
    assert len(rules(real)) == 1
    assert qvm_block.main(["u", "work"]) == 0
    assert rules(real) == []
    assert qvm_block.main(["u", "work"]) == 0
    assert qvm_block.main(["unassign", "--port", "work", "net:sda"]) == 1


def test_pci_is_required(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_pci.main(["assign", "--port", "work", "dom0:00_1f.2"]) == 1
    assert qvm_pci.main(["assign", "--required", "--port", "-o", "permissive=True", "work", "dom0:00_1f.2"]) == 0
    assert rules(real, "pci")[0].endswith("mode='required' frontend_domain='work' _permissive='True'")


@pytest.mark.parametrize(("words", "status"), [
    (("attach", "work"), 2), (("attach", "work", "net"), 2), (("attach", "work", "net:sda"), 1),
    (("attach", "nowhere", "net:sda"), 2),
    (("attach", "work", "gone:sda"), 1), (("attach", "work", "a b:sda"), 1), (("assign", "work", "net:sda"), 1),
    (("assign", "--port", "--device", "work", "net:sda"), 2), (("assign", "--ask", "--required", "work", "net:sda"), 2),
    (("assign", "--port", "-o", "x", "work", "net:sda"), 2), (("assign", "--port", "-o", "ro=so", "work", "net:sda"), 2),
    (("assign", "--port", "a b", "net:sda"), 2), (("assign", "--port", "nowhere", "net:sda"), 2),
    (("detach", "work", "net:sda"), 1), (("detach", "work", "net:*:x"), 1), (("unassign", "work", "net:sda"), 1),
    (("info", "net:sda"), 1), (("info", "gone:sda"), 1), (("list", "nowhere"), 2), (("list", "--exclude", "work"), 2),
])
def test_refusals(real: Connection, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int) -> None:
    assert qvm_block.main(words) == status
    assert "error: " in capsys.readouterr().err
    assert rules(real) == []


def test_detach_of_all_that_is_nothing(real: Connection) -> None:
    assert qvm_block.main(["detach", "work"]) == 0


# -- plugged devices -------------------------------------------------------------------------------------------------------


def test_what_is_there_and_who_uses_it(plugged: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    attach_disk(plugged)
    assert qvm_block.main([]) == 0
    everything = capsys.readouterr().out
    assert everything.splitlines() == [
        "sys-net:sda   Block_Storage: Kingston my 'disk'  work (attached: read-only=yes)",
        "sys-net:sda1  sub-device of sys-net:sda          "]
    assert qvm_block.main(["list", "sys-net"]) == 0
    assert capsys.readouterr().out == everything
    assert qvm_block.main(["list", "work"]) == 0
    assert capsys.readouterr().out == "sys-net:sda  Block_Storage: Kingston my 'disk'  work (attached: read-only=yes)\n"


def test_info(plugged: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_block.main(["info", "sys-net:sda"]) == 0
    assert capsys.readouterr().out == "Block_Storage: Kingston my 'disk'\ndevice ID: 0951:1666:A:u080650:None\nsize: 8\n"
    assert qvm_block.main(["info"]) == 0


def test_attach(plugged: FakeQubesd) -> None:
    assert qvm_block.main(["attach", "--ro", "-o", "devtype=cdrom", "work", "sys-net:sda"]) == 0
    (dest, verb, argument, payload), = sent(plugged)
    assert (dest, verb, argument) == ("work", "Attach", ARGUMENT)
    assert payload.decode() == (
        f"device_id='{IDENTITY}' port_id='sda' devclass='block' backend_domain='sys-net' mode='manual' "
        "frontend_domain='work' _devtype='cdrom' _read-only='yes'")


def test_attach_of_another_device_than_the_one_there_fails(plugged: FakeQubesd) -> None:
    assert qvm_block.main(["attach", "work", "sys-net:sda:1:2::b******"]) == 1
    assert sent(plugged) == []
    assert qvm_block.main(["a", "work", "sys-net:sda:*"]) == 0
    assert sent(plugged)[0][2] == ARGUMENT


def test_persistent_assigns_even_if_attaching_fails(plugged: FakeQubesd) -> None:
    def refuse(*_: object) -> bytes:
        raise Refused("QubesVMNotRunningError", "work is halted")

    plugged.answers["admin.vm.device.block.Attach"] = refuse
    assert qvm_block.main(["attach", "work", "sys-net:sda"]) == 1
    assert qvm_block.main(["attach", "--persistent", "work", "sys-net:sda"]) == 0
    assert [call[1] for call in sent(plugged)] == ["Attach", "Attach", "Assign"]
    assert b"mode='required'" in sent(plugged)[-1][3]


def test_detach_one_or_all(plugged: FakeQubesd) -> None:
    attach_disk(plugged)
    for words in (("sys-net:sda",), ("sys-net:*:0951:1666:A:u080650:None",), ()):
        assert qvm_block.main(["detach", "work", *words]) == 0
    assert sent(plugged) == [("work", "Detach", ARGUMENT, b"")] * 3
    assert qvm_block.main(["detach", "work", "sys-net:sdz"]) == 0
    assert sent(plugged)[-1][2] == "sys-net+sdz+_"


def test_assign_tells_how_to_attach_and_what_is_denied(plugged: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    plugged.qubes["work"] |= {"state": "Running", "devices_denied": "u03****b******"}
    assert qvm_block.main(["assign", "-o", "read-only=yes", "work", "sys-net:sda"]) == 0
    assert capsys.readouterr().out == (
        "Warning: The assigned device is on the denied list.\n"
        "           Auto-attach will work, but make sure that the assignment is correct.\n"
        "Assigned. To attach you can now restart domain or run: \n\tqvm-block attach -o read-only=yes work sys-net:sda\n")
    attach_disk(plugged)
    del plugged.qubes["work"]["devices_denied"]
    assert qvm_block.main(["assign", "--device", "work", "sys-net:sda"]) == 0
    assert sent(plugged)[-1][2] == "sys-net+_+0951+1666+A+u080650+None"
    assert qvm_block.main(["unassign", "work", "sys-net:sda"]) == 0
    assert capsys.readouterr().out == (
        "Unassigned. To detach you can now restart domain or run: \n\tqvm-block detach work sys-net:sda\n")
    assert qvm_block.main(["unassign", "--quiet", "work", "sys-net:sda"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("main", "name"), [
    (qvm_device.main, "qvm-device"), (qvm_block.main, "qvm-block"), (qvm_usb.main, "qvm-usb"), (qvm_pci.main, "qvm-pci")])
def test_every_name_teaches(main: Callable[[list[str]], int], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name}") and "examples:\n" in text
