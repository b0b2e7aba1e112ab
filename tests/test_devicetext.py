"""Devices in text: names and arguments both ways, matching, interfaces."""
from __future__ import annotations

import pytest

from cloison.devicetext import UNKNOWN_IDENTITY, Device, interface_matches, interfaces, is_port, serialise
from cloison.model.devices import parse_argument

STICK = Device("usb", "sys-usb", "2-1.4", "0951:1666:ABC123:u080650")


@pytest.mark.parametrize(("device", "argument"), [
    (STICK, "sys-usb+2-1.4+0951+1666+ABC123+u080650"), (STICK._replace(identity="*"), "sys-usb+2-1.4+_"),
    (STICK._replace(port="*"), "sys-usb+_+0951+1666+ABC123+u080650"),
    (STICK._replace(identity=UNKNOWN_IDENTITY), "sys-usb+2-1.4+0000+0000++_______"),
])
def test_arguments_there_and_back(device: Device, argument: str) -> None:
    assert device.argument == argument
    assert parse_argument("usb", argument) == device


def test_other_forms() -> None:
    assert str(STICK) == "sys-usb:2-1.4:0951:1666:ABC123:u080650" and STICK.place == "sys-usb:2-1.4"
    assert STICK.head == "sys-usb+2-1.4:0951:1666:ABC123:u080650"
    assert STICK.key == "usb sys-usb 2-1.4 0951:1666:ABC123:u080650"
    assert serialise({"a": "it's", "b": ""}) == "a='it\\'s' b=''"


@pytest.mark.parametrize(("pattern", "matches"), [
    *((Device("usb", backend, port, identity), True) for backend in ("sys-usb", "*") for port in ("2-1.4", "*")
      for identity in (STICK.identity, "*")),
    (Device("usb", "other", "2-1.4"), False), (Device("usb", "sys-usb", "2-1"), False), (Device("usb", "sys-usb", "*", "x"), False),
    (Device("block", "sys-usb", "2-1.4"), False),
])
def test_matching(pattern: Device, matches: bool) -> None:
    assert pattern.matches(STICK) is matches


@pytest.mark.parametrize(("port", "good"), [
    ("sda", True), ("*", True), ("2-1.4", True), ("x" * 255, True), ("x" * 256, False), ("", False), ("a b", False), ("a\n", False),
])
def test_ports(port: str, good: bool) -> None:
    assert is_port(port) is good


@pytest.mark.parametrize(("pattern", "interface", "matches"), [
    ("u08****", "u080650", True), ("*******", "u080650", True), ("u03****", "u080650", False), ("u080650", "u08065", False),
])
def test_interfaces(pattern: str, interface: str, matches: bool) -> None:
    assert interface_matches(pattern, interface) is matches
    assert interfaces(pattern + interface) == [pattern, interface]
    assert interfaces("") == []
