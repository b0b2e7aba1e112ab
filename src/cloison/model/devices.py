"""Devices as calls name them, their assignments, and what of it a client has sent (reference/devices.md 1, 2; admin-api.md 8)."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cloison.devicetext import ANY, UNKNOWN_INTERFACE, Device, interfaces, serialise
from cloison.errors import BadPropertyValue, BadRequest, BadValue

CLASSES = ("pci", "block")            # of the core, as `admin.deviceclass.List` has them
ADDED = ("usb", "mic")                # of add-ons of Qubes OS: the same calls
MODES = ("required", "auto-attach", "ask-to-attach")
MAX_OPTIONS = 32
MAX_PORT, MAX_IDENTITY = 255, 1024      # characters
_KEY_CHARACTERS = re.compile(r"[A-Za-z0-9!#$%&()*+,\-./:;<>?@\[\\\]^_{|}~]+")
_VALUE_CHARACTERS = re.compile(r"[A-Za-z0-9!#$%&()*+,\-./:;<>?@\[\\\]^_{|}~\"'=` ]*")
_INTERFACE = re.compile(r"[bump*][0-9a-f*]{6}")
_PLAIN_KEYS = ("device_id", "port_id", "devclass", "backend_domain", "mode", "frontend_domain")


@dataclass(frozen=True)
class Assignment:
    """A rule kept with the frontend qube. Options are free texts for the device class.

    `frontend` is the qube that its maker named in it, which need not be the one it is kept with: it is told and means nothing.
    """

    device: Device
    mode: str
    options: Mapping[str, str] = field(default_factory=dict)
    frontend: str = ""

    def with_mode(self, mode: str) -> Assignment:
        return replace(self, mode=mode)


def parse_argument(devclass: str, untrusted: str) -> Device:
    """`<backend>+<port>[+<device id>]`. Raises BadRequest; whether the backend exists is the caller's question.

    What stands for ANY in each part is a `_` alone: serial numbers, and so identities, may hold one.
    """
    backend, plus, rest = untrusted.partition("+")
    if not backend or not plus:
        raise BadRequest("a device is named <backend>+<port>[+<device id>]")
    port, _, identity = rest.replace("+", ":").partition(":")
    backend, port, identity = (ANY if part == "_" else part for part in (backend, port, identity))
    device = Device(devclass, backend, port, identity.replace("_" * len(UNKNOWN_INTERFACE), UNKNOWN_INTERFACE) or ANY)
    check_pattern(device)
    return device


def check_pattern(untrusted: Device) -> None:
    """A port is any text that stays one word of a listing, an identity any that a value can hold. Raises BadRequest."""
    port, identity = untrusted.port, untrusted.identity
    if len(port) > MAX_PORT or " " in port or not _VALUE_CHARACTERS.fullmatch(port):
        raise BadRequest(f"{port[:60]!r} can't be a device's port")
    if len(identity) > MAX_IDENTITY or not _VALUE_CHARACTERS.fullmatch(identity):
        raise BadRequest(f"{identity[:60]!r} can't be a device's identity")


def deserialise(untrusted: bytes) -> dict[str, str]:
    """Inverse of `serialise`. Raises BadRequest."""
    try:
        rest = untrusted.decode("ascii").strip(" ")
    except UnicodeDecodeError:
        raise BadRequest("device data is ASCII text") from None
    pairs: dict[str, str] = {}
    while rest:
        key, found, rest = rest.partition("='")
        match = re.match(r"((?:[^'\\]|\\'|\\)*?)'(?: +|$)", rest)
        if not found or not _KEY_CHARACTERS.fullmatch(key) or match is None or key in pairs:
            raise BadRequest("device data must be key='value' pairs, each key once")
        value = match[1].replace("\\'", "'")
        if not _VALUE_CHARACTERS.fullmatch(value) or len(pairs) >= MAX_OPTIONS:
            raise BadRequest("device data holds a forbidden character, or too much")
        pairs[key], rest = value, rest[match.end():]
    return pairs


def parse_assignment(device: Device, untrusted: bytes) -> Assignment:
    """The payload of Assign and Attach; what it repeats must agree with the argument. Raises BadRequest.

    Whether there is a qube of the name of `frontend` is the caller's question.
    """
    pairs = deserialise(untrusted)
    expected = {"backend_domain": device.backend, "port_id": device.port, "devclass": device.devclass}
    if device.identity != ANY:
        expected["device_id"] = device.identity
    for key, wanted in expected.items():
        if pairs.get(key, wanted) != wanted:
            raise BadRequest(f"device data says {key} {pairs[key][:60]!r}, the call says {wanted!r}")
    unknown = [key for key in pairs if not key.startswith("_") and key not in _PLAIN_KEYS]
    if unknown:
        raise BadRequest(f"device data has an unknown key {unknown[0][:60]!r}")
    if "frontend_domain" in pairs and (device.backend == ANY or not pairs["frontend_domain"]):
        raise BadRequest("device data has a frontend_domain that is empty, or for a device of any qube")
    meant = device._replace(identity=pairs.get("device_id", device.identity))
    check_pattern(meant)
    options = {key[1:]: value for key, value in pairs.items() if key.startswith("_")}
    return Assignment(meant, pairs.get("mode", "manual"), options, pairs.get("frontend_domain", ""))


def assignment_line(assignment: Assignment) -> str:
    """One line of the Assigned and Attached listings."""
    device = assignment.device
    pairs = {"device_id": device.identity, "port_id": device.port, "devclass": device.devclass,
             "backend_domain": device.backend, "mode": assignment.mode}
    if assignment.frontend:
        pairs["frontend_domain"] = assignment.frontend
    pairs.update({f"_{key}": value for key, value in assignment.options.items()})
    return f"{device.head} {serialise(pairs)}\n"


def split_interfaces(untrusted: str) -> list[str]:
    """Concatenated 7-character patterns, their characters unchecked. Raises BadValue."""
    if len(untrusted) % 7:
        raise BadValue("device interfaces are patterns of 7 characters each")
    return interfaces(untrusted)


def parse_interfaces(untrusted: str) -> list[str]:
    """Concatenated patterns. Raises BadValue, BadPropertyValue."""
    patterns = split_interfaces(untrusted)
    for pattern in patterns:
        if not _INTERFACE.fullmatch(pattern):
            raise BadPropertyValue(f"{pattern!r} is not a device interface pattern, such as u03**** or b******")
    return patterns
