"""A drive for one start: what qvm-start's --drive, --cdrom and --hddisk name, and the assignment that lasts until the qube runs.

The device must be one that a qube exposes (qvm-block list). A file is not one: the host hands no files of its own to qubes, and a
qube's file becomes a device by losetup in that qube.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from cloison.client import devices
from cloison.client.connection import Connection
from cloison.client.domains import DOM0
from cloison.devicetext import Device
from cloison.errors import BadValue, CloisonError, QubeNotFound
from cloison.values import QubeName

_TYPES = {"cdrom": "cdrom", "hd": "disk"}


class NoSuchDrive(CloisonError):
    """No qube exposes a device of that name."""

    hint = "qvm-block list shows the devices there are."


class Drive(NamedTuple):
    """`kind`: cdrom or disk, which is what the qube sees it as."""

    device: Device
    kind: str

    def options(self) -> dict[str, str]:
        return {"devtype": self.kind, "read-only": "yes" if self.kind == "cdrom" else "no"}


def find(connection: Connection, text: str) -> Drive:
    """`[cdrom:|hd:]BACKEND:PORT`. Raises BadValue for another form, NoSuchDrive for what no qube exposes."""
    prefix, colon, rest = text.partition(":")
    kind, place = (_TYPES[prefix], rest) if colon and prefix in _TYPES else ("cdrom", text)
    backend, colon, port = place.partition(":")
    if not colon or not port:
        raise BadValue(f"{text[:100]!r} names no drive: it must be BACKEND:PORT, such as sys-usb:sda")
    if port.startswith("/"):
        raise NoSuchDrive(f"{port[:100]!r} is a file, and only a block device can be a drive")
    if backend != DOM0:
        QubeName(backend)
    try:
        exposed = devices.available(connection.call(backend, "admin.vm.device.block.Available"), "block", backend)
    except QubeNotFound as error:
        raise NoSuchDrive(f"there is no qube {backend!r}") from error
    if port not in exposed:
        raise NoSuchDrive(f"qube {backend} does not expose block device {port[:100]!r}")
    return Drive(exposed[port].device, kind)


@contextlib.contextmanager
def assigned(connection: Connection, qube: str, drive: Drive) -> Iterator[None]:
    """The qube can't start without the drive while this lasts; it keeps it until it stops."""
    payload = devices.serialise(drive.device, qube, "required", drive.options())
    connection.call(qube, "admin.vm.device.block.Assign", drive.device.argument, payload)
    try:
        yield
    finally:
        connection.call(qube, "admin.vm.device.block.Unassign", drive.device.argument)
