"""Devices as the Admin API spells them, for the tools: their texts, names and descriptions (reference/admin-api.md 8)."""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from cloison import devicetext
from cloison.client.domains import lines
from cloison.devicetext import ANY, UNKNOWN_IDENTITY, UNKNOWN_INTERFACE, Device, interface_matches
from cloison.values import InvalidValue

_PAIR = re.compile(r"([^ ='\\]+)='((?:\\'|[^'])*)'(?= |$)")
_IDENTITY = re.compile(r"[A-Za-z0-9!#$%&()*,\-./:;<>?@\[\]^_{|}~=` ]{1,1024}")
_VALUE = re.compile(r"[\x20-\x7e]*")
_OPTION = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# By what the interfaces are for. The pattern that names most of the seven characters counts, of several the first.
_CATEGORIES = {
    "Network": ("u02****", "p0703**", "p02****", "ue0****"), "Keyboard": ("u03**01", "p0900**"),
    "Mouse": ("u03**02", "p0902**"),
    "Input": ("u03****", "p09****"), "Printer": ("u07****",), "Camera": ("p0903**", "u06****", "u0e****"),
    "Microphone": ("m******",), "Audio": ("p0403**", "p0401**", "p0408**", "u01****", "m******"),
    "Multimedia": ("u10****", "p03****", "p04****"), "USB_Storage": ("u08****",), "Block_Storage": ("b******",),
    "Storage": ("b******", "u08****", "p01****"), "Bluetooth": ("ue00101", "p0d11**"), "Smart_Card_Readers": ("u0b****",),
    "Display": ("p0300**", "p0380**"), "Memory": ("p05****",), "PCI_Bridge": ("p06****",), "Docking_Station": ("p0a****",),
    "Processor": ("p0b****", "p40****"), "PCI_Serial_Bus": ("p0c****",), "PCI_USB": ("p0c03**",),
}


class Line(NamedTuple):
    """One line of a listing: the device, its plain pairs, and those that begin with `_` without it."""

    device: Device
    pairs: Mapping[str, str]
    extra: Mapping[str, str]

    @property
    def mode(self) -> str:
        return self.pairs.get("mode", "manual")


def parse_device(text: str) -> tuple[str, str, str | None]:
    """`BACKEND:PORT[:IDENTITY]` as typed. Raises InvalidValue."""
    backend, colon, rest = text.partition(":")
    port, more, identity = rest.partition(":")
    if not colon or not backend or not devicetext.is_port(port) or (more and not _IDENTITY.fullmatch(identity)):
        raise InvalidValue(f"expected a qube, a port and optionally a device id such as sys-usb:2-1[:ID], not {text[:80]!r}")
    return backend, port, identity if more else None


def available(reply: bytes, devclass: str, backend: str) -> dict[str, Line]:
    """What a backend exposes, by port."""
    found = [_line(line, devclass, backend) for line in lines(reply)]
    return {each.device.port: each for each in found}


def used(reply: bytes, devclass: str) -> list[Line]:
    """What is attached or assigned to a qube."""
    return [_line(line, devclass, None) for line in lines(reply)]


def _line(line: str, devclass: str, backend: str | None) -> Line:
    """`[BACKEND+]PORT:IDENTITY key='value' ...`. A text that can't be read leaves a device that nothing is known of."""
    head, _, rest = line.partition(" ")
    if backend is None:
        backend, _, head = head.partition("+")
    port, _, identity = head.partition(":")
    pairs = {match[1]: match[2].replace("\\'", "'") for match in _PAIR.finditer(rest)}
    extra = {key[1:]: value for key, value in pairs.items() if key.startswith("_")}
    plain = {key: value for key, value in pairs.items() if not key.startswith("_")}
    return Line(Device(devclass, backend, port, identity or UNKNOWN_IDENTITY), plain, extra)


def serialise(device: Device, frontend: str, mode: str, options: Mapping[str, str]) -> bytes:
    """An assignment as payload. Raises InvalidValue for options that it can't hold."""
    for key, value in options.items():
        if not _OPTION.fullmatch(key) or not _VALUE.fullmatch(value) or "\\" in value:
            raise InvalidValue(f"option {key[:40]!r} must be a plain word, and its value printable ASCII without backslash")
    pairs = {"device_id": device.identity, "port_id": device.port, "devclass": device.devclass, "backend_domain": device.backend,
             "mode": mode, "frontend_domain": frontend, **{f"_{key}": value for key, value in options.items()}}
    return devicetext.serialise(pairs).encode()


# -- for people ----------------------------------------------------------------------------------------------------------


def interfaces(line: Line | None) -> list[str]:
    """Seven characters each; at least one."""
    return devicetext.interfaces(line.pairs.get("interfaces", "") if line else "") or [UNKNOWN_INTERFACE]


def category(interface: str) -> str:
    """What an interface is for; the interface itself when nothing is known of it."""
    best, name = 0, interface
    for candidate, patterns in _CATEGORIES.items():
        for pattern in patterns:
            named = len(pattern) - pattern.count(ANY)
            if named > best and interface_matches(pattern, interface):
                best, name = named, candidate
    return name


def _purpose(line: Line) -> str:
    """By the first interface that something is known of."""
    present = interfaces(line)
    known = next((name for each in present if (name := category(each)) != each), None)
    return known or {"p": "PCI device", "u": "USB device"}.get(present[0][0], present[0])


def description(line: Line) -> str:
    """`Category: vendor product`, as far as they are known."""
    known = {key: value for key, value in line.pairs.items() if value and value != "unknown"}
    product = known.get("product") or known.get("name") or known.get("serial")
    if product is None and "parent_port_id" in known:
        return f"sub-device of {line.device.backend}:{known['parent_port_id']}"
    vendor = known.get("vendor") or known.get("manufacturer") or "unknown vendor"
    return f"{_purpose(line)}: {vendor} {product or f'unknown {line.device.devclass} device'}"
