"""Devices that a qube or the host exposes: what a guest says of its disks, checked, and the text of the listing.

Facts: reference/devices.md 1, 2, 5, 6, 8; admin-api.md 8. Each field a guest sends is bounded and filtered on its own, so that
one bad device hides no other. The microphone is the host's, and always there.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloison.devicetext import Device, interface_matches, interfaces, serialise

BLOCK_FOLDER = "/qubes-block-devices"
USB_FOLDER = "/qubes-usb-devices"
MAX_DEVICES = 256
MAX_TEXT = 256
MAX_DEPTH = 4               # partition, disk, ...
_BLOCK_PORT = re.compile(r"[a-z0-9-]{1,12}")
_PARENT = re.compile(r"([A-Za-z0-9._-]{1,64})(?::([A-Za-z0-9._-]{1,32}))?")
_USB_PORT = re.compile(r"[0-9]{1,3}-[0-9]{1,3}(_[0-9]{1,3}){0,6}")
_USB_IDENTITY = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})")
_USB_INTERFACES = re.compile(r":?([0-9a-f]{6}(?::[0-9a-f]{6}){0,31}):?")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_SERIAL_UNSAFE = re.compile(r"[^A-Za-z0-9.]")
_SIZE = re.compile(rb"[0-9]{1,18}")
_UNSAFE = re.compile(r"[^A-Za-z0-9()+,\-.:=_/ ]")


@dataclass(frozen=True)
class Exposed:
    """A device on a port. `interfaces`: concatenated 7-character patterns; `facts`: what else is known, by wire key.

    `writable`: whether its qube would let another one write to it.
    """

    device: Device
    interfaces: str
    facts: Mapping[str, str] = field(default_factory=dict)
    writable: bool = True

    @property
    def line(self) -> str:
        """One line of Available."""
        device = self.device
        pairs = {"device_id": device.identity, "port_id": device.port, "devclass": device.devclass,
                 "backend_domain": device.backend, **self.facts, "interfaces": self.interfaces}
        return f"{device.port}:{device.identity} {serialise(pairs)}\n"

    def is_denied(self, patterns: list[str]) -> bool:
        """Whether one of its interfaces matches one of the patterns (`*` stands for any character)."""
        return any(interface_matches(pattern, own) for pattern in patterns for own in interfaces(self.interfaces))


def matching(exposed: list[Exposed], pattern: Device) -> list[Exposed]:
    """Those that the port and the identity of `pattern` mean."""
    return [each for each in exposed
            if pattern.port in ("*", each.device.port) and pattern.identity in ("*", each.device.identity)]


def block_devices(backend: str, untrusted: Mapping[str, bytes]) -> list[Exposed]:
    """From the entries of a qube's QubesDB below BLOCK_FOLDER, by path. In order of port."""
    ports: dict[str, dict[str, bytes]] = {}
    for path, value in untrusted.items():
        port, _, key = path.removeprefix(f"{BLOCK_FOLDER}/").partition("/")
        if _BLOCK_PORT.fullmatch(port) and (port in ports or len(ports) < MAX_DEVICES):
            ports.setdefault(port, {})[key] = value
    return [_block(backend, port, ports) for port in sorted(ports) if _is_sound(ports[port])]


def _is_sound(entries: Mapping[str, bytes]) -> bool:
    """What decides how it can be attached must make sense."""
    return entries.get("mode", b"w") in (b"w", b"r") and _SIZE.fullmatch(entries.get("size", b"0")) is not None


def _block(backend: str, port: str, ports: Mapping[str, Mapping[str, bytes]]) -> Exposed:
    entries = ports[port]
    facts = _description(entries.get("desc", b""))
    parent, number = _parent(entries.get("parent", b""))
    if parent:
        devclass = "usb" if number else "block"
        facts |= {"manufacturer": f"sub-device of {backend}:{parent}", "parent_port_id": parent, "parent_devclass": devclass}
    else:
        facts |= {"manufacturer": f"hosted by {backend}"}
    return Exposed(Device("block", backend, port, _identity(port, ports)), "b******", facts, entries.get("mode") != b"r")


def _text(untrusted: bytes) -> str:
    return _UNSAFE.sub("_", untrusted[:MAX_TEXT].decode("ascii", "replace"))


def _description(untrusted: bytes) -> dict[str, str]:
    """`<model> (<label>)`."""
    model, _, label = _text(untrusted).partition(" ")
    return {"serial": model.replace("_", " ").strip() or "unknown", "name": label[1:-1].replace("_", " ").strip() or "unknown"}


def _parent(untrusted: bytes) -> tuple[str, str]:
    """Port of the parent and, for a USB device, the number of its interface."""
    match = _PARENT.fullmatch(_text(untrusted))
    return (match[1], match[2] or "") if match else ("", "")


def _identity(port: str, ports: Mapping[str, Mapping[str, bytes]], below: tuple[str, ...] = ()) -> str:
    """What stays the same on another port: the parent's identity, and the number of the interface or partition."""
    parent, number = _parent(ports[port].get("parent", b""))
    known = parent in ports and not number and parent not in below and len(below) < MAX_DEPTH
    above = _identity(parent, ports, (*below, port)) if known else ""
    digits = re.search(r"[0-9]+$", port)
    return f"{above}:{number or (str(int(digits[0])) if digits else 'None')}"


# -- USB -------------------------------------------------------------------------------------------------------------------


def usb_devices(backend: str, untrusted: Mapping[str, bytes]) -> list[Exposed]:
    """From the entries of a qube's QubesDB below USB_FOLDER, by path. In order of port."""
    ports: dict[str, dict[str, bytes]] = {}
    for path, value in untrusted.items():
        port, _, key = path.removeprefix(f"{USB_FOLDER}/").partition("/")
        if _USB_PORT.fullmatch(port) and (port in ports or len(ports) < MAX_DEVICES):
            ports.setdefault(port, {})[key] = value
    return [found for port in sorted(ports) if (found := _usb(backend, port.replace("_", "."), ports[port])) is not None]


def _usb(backend: str, port: str, entries: Mapping[str, bytes]) -> Exposed | None:
    """`desc`: `<vendor id>:<product id> <vendor> <product> <serial>`, in each text `\\xNN` for a byte."""
    identity, *texts = entries.get("desc", b"")[:MAX_TEXT].decode("ascii", "replace").split(" ")
    listed = _USB_INTERFACES.fullmatch(entries.get("interfaces", b"")[:MAX_TEXT].decode("ascii", "replace"))
    if not _USB_IDENTITY.fullmatch(identity):
        return None
    interfaces = "".join(f"u{code}" for code in listed[1].split(":")) if listed else "?******"
    vendor, product, serial = (_unescaped(text) for text in (*texts, "", "", "")[:3])
    known = {"vendor": vendor, "product": product, "serial": serial}
    device = Device("usb", backend, port, f"{identity}:{_SERIAL_UNSAFE.sub('', serial)}:{interfaces}")
    return Exposed(device, interfaces, {key: text for key, text in known.items() if text})


def _unescaped(untrusted: str) -> str:
    text = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), untrusted)
    return _UNSAFE.sub("_", text).strip()


# -- the host's ------------------------------------------------------------------------------------------------------------


def microphone(host: str) -> Exposed:
    """The one device of its class (reference/devices.md 8)."""
    facts = {"name": "microphone", "manufacturer": "built-in"}
    return Exposed(Device("mic", host, "mic", f"{host}:mic::m000000"), "m000000", facts)
