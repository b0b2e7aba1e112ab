"""The host's PCI devices as dom0 exposes them, from sysfs (reference/admin-api.md 8.7).

A port is the way from a root bus to the device, so that it stays the same when a bridge elsewhere gets another number.
"""
from __future__ import annotations

import os
import re

from cloison.devicetext import Device
from cloison.model.exposed import Exposed

FOLDER = "/sys/bus/pci/devices"
_ADDRESS = re.compile(r"([0-9a-f]{4,}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


def devices(folder: str = FOLDER) -> list[Exposed]:
    """In order of port; none where the host has no PCI bus, or does not show it."""
    try:
        addresses = [name for name in os.listdir(folder) if _ADDRESS.fullmatch(name)]
    except OSError:
        return []
    found = [each for address in addresses if (each := _device(folder, address)) is not None]
    return sorted(found, key=lambda each: each.device.port)


def _device(folder: str, address: str) -> Exposed | None:
    path = os.path.realpath(os.path.join(folder, address))
    try:
        vendor, product, kind = (_read(path, name) for name in ("vendor", "device", "class"))
        port = _port(path)
    except (OSError, ValueError):
        return None                 # it was taken out meanwhile
    interface = f"p{kind.removeprefix('0x')}"
    return Exposed(Device("pci", "dom0", port, f"{vendor}:{product}::{interface}"), interface, {"_sbdf": address})


def _port(path: str) -> str:
    """Steps `<bus>_<device>.<function>`; a bus behind a bridge counts from the bridge's own. Raises OSError, ValueError."""
    steps, prefix = [], ""
    while (parent := os.path.dirname(path)) != path:
        match = _ADDRESS.fullmatch(os.path.basename(path))
        if match is None:
            break
        above = _ADDRESS.fullmatch(os.path.basename(parent))
        first = int(_read(parent, "secondary_bus_number")) if above else 0
        steps.append(f"{int(match[2], 16) - first:02x}_{match[3]}.{match[4]}")
        prefix = "" if match[1] == "0000" else f"{match[1]}_"
        path = parent
    return prefix + "-".join(reversed(steps))


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding="ascii") as file:
        return file.read(64).strip()
