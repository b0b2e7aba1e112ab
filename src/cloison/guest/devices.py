"""Which block and USB devices this qube exposes to others, told through its QubesDB (reference/devices.md 5, 6).

The kernel's list is read from sysfs and what udev knows of each device, again whenever udev announces a change; only differences
are written, and the folder itself last, which is the signal that dom0 listens to. Hidden is what is of no use elsewhere: the
qube's own disks and those attached to it, what is mounted or held, empty drives, and what its owner excludes.
"""
from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

BLOCK, USB = "/qubes-block-devices", "/qubes-usb-devices"
MAX_DEVICES = 64                        # of a class
MAX_TEXT = 200
EXCLUDED = ".qubes-exclude-block-devices"
QUIET = 0.2                             # s that udev's announcements are gathered for
_NETLINK_UEVENT, _UDEV_GROUP = 15, 2    # linux/netlink.h; udev's own announcements, after its rules have run
_BLOCK_NAME = re.compile(r"[a-z0-9-]{1,12}")
_USELESS = re.compile(r"(ram|zram|fd|nbd|mtdblock)[0-9]+|xvd.*")
_OWN_SERIAL = re.compile(r"qubes-.*|(xvd|sd)[a-z]{1,2}")
_USB_INTERFACE = re.compile(r"([0-9]+-[0-9]+(?:\.[0-9]+)*):([0-9]+\.[0-9]+)")
_USB_PORT = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")
_HUB = "09"

Entries = dict[str, str]
Publish = Callable[[Mapping[str, str | None]], None]


class Places(NamedTuple):
    """Where the kernel and udev tell of devices."""

    sys: str = "/sys"
    udev: str = "/run/udev/data"
    mounts: str = "/proc/self/mountinfo"
    swaps: str = "/proc/swaps"


HERE = Places()


def node(port: str) -> str:
    """The device node of a block device's port."""
    return f"/dev/{port}"


# -- block -----------------------------------------------------------------------------------------------------------------


def block_devices(places: Places = HERE) -> Entries:
    """QubesDB entries of what can be attached elsewhere now."""
    folder = f"{places.sys}/class/block"
    names = [name for name in _names(folder) if _BLOCK_NAME.fullmatch(name) and not _USELESS.fullmatch(name)]
    used = {name for name in names if _is_used(places, name)}
    used |= {parent for name in used if (parent := _disk_of(places, name))}
    entries: Entries = {}
    shown = 0
    for name in names:
        found = {} if name in used or shown >= MAX_DEVICES else _block_device(places, name)
        shown += bool(found)
        entries |= {f"{BLOCK}/{name}/{key}": value for key, value in found.items()}
    return entries


def _block_device(places: Places, name: str) -> Entries:
    """What is told of one device; nothing for one that is hidden."""
    folder = f"{places.sys}/class/block/{name}"
    size, known = int(_read(f"{folder}/size") or 0) * 512, _udev(places, f"b{_read(f'{folder}/dev')}")
    disk = _disk_of(places, name)
    whole = f"{places.sys}/class/block/{disk or name}"       # what is known of a disk holds for its partitions
    serial, backing = _read(f"{whole}/serial"), _read(f"{whole}/loop/backing_file")
    if not size or _OWN_SERIAL.fullmatch(serial) or _is_excluded(name, known, backing):
        return {}
    found = {"desc": _description(known, backing), "size": str(size), "mode": "r" if _read(f"{folder}/ro") == "1" else "w"}
    interface = _USB_INTERFACE.search(os.path.realpath(folder))
    if disk:
        found["parent"] = disk
    elif interface:
        found["parent"] = f"{interface[1]}:{interface[2]}"
    return found


def _is_excluded(name: str, known: Mapping[str, str], backing: str) -> bool:
    if known.get("UDISKS_IGNORE") == "1" or known.get("QUBES_EXPORT_BLOCK_DEVICE") == "0":
        return True
    if name.startswith("loop"):
        return not backing or _in_excluded_folder(backing)
    return known.get("DM_NAME", "").startswith(("snapshot-", "origin-"))


def _in_excluded_folder(path: str) -> bool:
    while (parent := os.path.dirname(path)) != path:
        if os.path.lexists(os.path.join(parent, EXCLUDED)):
            return True
        path = parent
    return False


def _is_used(places: Places, name: str) -> bool:
    """Mounted, swapped to, or part of another device."""
    folder = f"{places.sys}/class/block/{name}"
    number = _read(f"{folder}/dev")
    mounted = {line.split(" ", 3)[2] for line in _lines(places.mounts) if line.count(" ") >= 3}
    return bool(_names(f"{folder}/holders")) or number in mounted or any(
        line.startswith(f"{node(name)} ") for line in _lines(places.swaps))


def _disk_of(places: Places, name: str) -> str:
    """The whole disk of a partition; empty for a whole disk."""
    folder = f"{places.sys}/class/block/{name}"
    return os.path.basename(os.path.dirname(os.path.realpath(folder))) if os.path.lexists(f"{folder}/partition") else ""


def _description(known: Mapping[str, str], backing: str) -> str:
    return _printable(backing or known.get("DM_NAME") or f"{known.get('ID_MODEL', '')} ({known.get('ID_FS_LABEL', '')})")


# -- USB -------------------------------------------------------------------------------------------------------------------


def usb_devices(places: Places = HERE) -> Entries:
    """QubesDB entries of the devices at this qube's USB ports."""
    entries: Entries = {}
    shown = 0
    folder = f"{places.sys}/bus/usb/devices"
    for port in _names(folder):
        found = _usb_device(places, folder, port) if _USB_PORT.fullmatch(port) and shown < MAX_DEVICES else {}
        shown += bool(found)
        entries |= {f"{USB}/{port.replace('.', '_')}/{key}": value for key, value in found.items()}
    return entries


def _usb_device(places: Places, folder: str, port: str) -> Entries:
    path = f"{folder}/{port}"
    known = _udev(places, f"c{_read(f'{path}/dev')}")
    is_ours = "/vhci_hcd" in os.path.realpath(path) or known.get("ID_VENDOR") == "QEMU"
    if is_ours or known.get("QUBES_EXPORT_USB_DEVICE") == "0" or _read(f"{path}/bDeviceClass") == _HUB:
        return {}
    identity = f"{_read(f'{path}/idVendor')}:{_read(f'{path}/idProduct')}"
    words = (identity, *(known.get(key, "") for key in ("ID_VENDOR_ENC", "ID_MODEL_ENC", "ID_SERIAL_SHORT")))
    interfaces = [
        "".join(_read(f"{folder}/{name}/bInterface{part}") for part in ("Class", "SubClass", "Protocol"))
        for name in _names(folder) if name.startswith(f"{port}:")]
    return {"desc": _printable(" ".join(words)), "usb-ver": _read(f"{path}/version")[:1],
            "interfaces": f":{':'.join(interfaces)}:"}


# -- reading ---------------------------------------------------------------------------------------------------------------


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(path: str) -> str:
    """A small text; empty if there is none, or no longer."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _udev(places: Places, device: str) -> dict[str, str]:
    """What udev's rules found out."""
    properties = (line[2:].partition("=") for line in _lines(f"{places.udev}/{device}") if line.startswith("E:"))
    return {key: value for key, _, value in properties}


def _printable(text: str) -> str:
    return "".join(char if char.isascii() and char.isprintable() else "_" for char in text)[:MAX_TEXT]


# -- telling ---------------------------------------------------------------------------------------------------------------


class Devices:
    """Tells at once, and after each change that udev announces. `publish` writes QubesDB entries; None removes one."""

    def __init__(self, publish: Publish, places: Places = HERE) -> None:
        self._publish, self._places = publish, places
        self._told: dict[str, Entries] = {BLOCK: {}, USB: {}}
        self._waiting = False

    def follow(self) -> None:
        """Raises OSError when the kernel has no such announcements."""
        monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_UEVENT)
        monitor.bind((0, _UDEV_GROUP))
        asyncio.get_running_loop().add_reader(monitor, self._announced, monitor)
        self.tell()

    def _announced(self, monitor: socket.socket) -> None:
        """What is announced is not looked into: it is only a reason to look. A full queue (ENOBUFS) is one, too."""
        try:
            untrusted = monitor.recv(8192)
        except OSError:
            untrusted = b"SUBSYSTEM=block\0"
        if not self._waiting and (b"SUBSYSTEM=block\0" in untrusted or b"SUBSYSTEM=usb\0" in untrusted):
            self._waiting = True
            asyncio.get_running_loop().call_later(QUIET, self.tell)

    def tell(self) -> None:
        """Write what has changed since the last time."""
        self._waiting = False
        for folder, found in ((BLOCK, block_devices(self._places)), (USB, usb_devices(self._places))):
            before = self._told[folder]
            changes: dict[str, str | None] = {path: None for path in before if path not in found}
            changes |= {path: value for path, value in found.items() if before.get(path) != value}
            if changes:
                self._told[folder] = found
                self._publish({**changes, folder: ""})
