"""Disks that come and go while a QEMU runs: NBD over a stream of ours, on a virtio disk in a spare root port.

QEMU is the only one that parses what the far end says, inside its sandbox. A disk's name is its serial number, by which the guest
knows it. Taking one away needs the guest's consent: QEMU says when it has it (DEVICE_DELETED).
"""
from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

from qemu.qmp import EventListener, ExecuteError

from cloison.errors import MachineError
from cloison.hypervisor.qemu.argv import SPARE_PORTS
from cloison.hypervisor.qemu.monitor import Monitor

KEPT_PORTS = 2              # the first ports are for the GUI's region and for links
PORTS = tuple(f"port{number}" for number in range(SPARE_PORTS - 1, KEPT_PORTS - 1, -1))
Execute = Callable[[str, dict[str, Any]], Awaitable[object]]


class HotPlug:
    """`execute` runs a QMP command, and raises MachineError."""

    def __init__(self, qmp: Monitor, execute: Execute) -> None:
        self._qmp, self._execute = qmp, execute
        self._ports: dict[str, str] = {}            # disk -> root port it is in, or has not left yet

    async def plug(self, name: str, stream: socket.socket, *, read_only: bool) -> None:
        """Raises MachineError, and then nothing is left of it. QEMU gets a copy of the stream."""
        free = next((port for port in PORTS if port not in self._ports.values()), None)
        if name in self._ports or free is None:
            raise MachineError(f"{name} is taken" if free else "no slot for another disk is free")
        self._ports[name] = free
        try:
            await self._add(name, free, stream, read_only=read_only)
        except MachineError:
            del self._ports[name]
            raise

    async def _add(self, name: str, port: str, stream: socket.socket, *, read_only: bool) -> None:
        node, descriptor = _node(name), f"nbd-{name}"
        self._qmp.send_fd_scm(stream.fileno())
        await self._execute("getfd", {"fdname": descriptor})
        try:
            await self._execute("blockdev-add", block_graph(node, descriptor, read_only=read_only))
        except MachineError:
            with contextlib.suppress(MachineError):      # it was used up, or it is closed now
                await self._execute("closefd", {"fdname": descriptor})
            raise
        try:
            await self._execute("device_add", device(name, node, port))
        except MachineError:
            await self._execute("blockdev-del", {"node-name": node})
            raise

    async def unplug(self, name: str) -> None:
        """Returns when the guest has let go; cancelled, the request stands, and a later call takes it up. Raises MachineError."""
        if name not in self._ports:
            raise MachineError(f"there is no disk {name}")
        with self._qmp.waiting_for("DEVICE_DELETED") as events:
            if await self._ask_for(name):
                await _deleted(events, _device(name))
        await self._execute("blockdev-del", {"node-name": _node(name)})
        del self._ports[name]

    async def _ask_for(self, name: str) -> bool:
        """False: the guest has let go of it already."""
        try:
            await self._execute("device_del", {"id": _device(name)})
        except MachineError as error:
            refused = error.__cause__
            if not isinstance(refused, ExecuteError):
                raise
            return refused.error_class != "DeviceNotFound"     # else it has been asked for before
        return True


def _node(name: str) -> str:
    return f"block-{name}"


def _device(name: str) -> str:
    return f"plugged-{name}"


def block_graph(node: str, descriptor: str, *, read_only: bool) -> dict[str, Any]:
    """Arguments of blockdev-add. The format is stated, so nothing on the disk can choose one (lesson QSB-078)."""
    server = {"type": "fd", "str": descriptor}
    return {"driver": "raw", "node-name": node, "read-only": read_only, "auto-read-only": False,
            "file": {"driver": "nbd", "server": server, "export": "", "read-only": read_only, "auto-read-only": False}}


def device(name: str, node: str, port: str) -> dict[str, Any]:
    """Arguments of device_add. An error is the guest's to see: no answer of the far end may stop the machine.

    A geometry means nothing to a guest; without one QEMU would read the disk to guess it, and stand still until it is answered.
    """
    return {"driver": "virtio-blk-pci", "id": _device(name), "drive": node, "serial": name, "bus": port, "disable-legacy": "on",
            "num-queues": 1, "cyls": 16383, "heads": 16, "secs": 63, "write-cache": "on", "werror": "report", "rerror": "report"}


async def _deleted(events: EventListener, wanted: str) -> None:
    async for event in events:
        if cast("dict[str, str]", event["data"]).get("device") == wanted:
            return
