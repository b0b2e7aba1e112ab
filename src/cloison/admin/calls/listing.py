"""What there is: classes, qubes, their states; events and statistics (reference/admin-api.md 5.1, 10)."""
from __future__ import annotations

import asyncio

from cloison.admin.qubesd import Call
from cloison.errors import QubeNotRunning
from cloison.model import devices
from cloison.model.domains import Qube
from cloison.values import PowerState


def vm_classes(call: Call) -> str:
    return "".join(f"{name}\n" for name in call.system.kinds)


def device_classes(_: Call) -> str:
    return "".join(f"{name}\n" for name in devices.CLASSES)


def vm_list(call: Call) -> str:
    """All qubes for dom0 as destination, else just that one; a qube sees those that policy shows it."""
    dom0 = call.system.dom0
    qubes = call.system.sorted_qubes() if call.dest is dom0 else [call.dest]
    if call.dest is dom0:
        qubes = [qube for qube in qubes if _may_see(call, qube)]
    return "".join(f"{qube.name} class={qube.klass} state={qube.power} uuid={qube.uuid}\n" for qube in qubes)


def _may_see(call: Call, qube: Qube) -> bool:
    return call.qubesd.allows(call.source, "admin.vm.List", qube)


def current_state(call: Call) -> str:
    qube = call.dest
    memory, cpu_time = _usage(call, qube)
    return f"mem={memory} mem_static_max={memory} cputime={cpu_time} power_state={qube.power}"


def _usage(call: Call, qube: Qube) -> tuple[int, int]:
    if qube is call.system.dom0:
        return call.system.host.dom0_memory * 1024, 0
    if qube.is_halted or not qube.kind.machine:
        return 0, 0
    return call.qubesd.usage(qube)


async def events(call: Call) -> None:
    """Until the caller hangs up."""
    call.send("", "connection-established", ())
    subject = None if call.dest is call.system.dom0 else call.dest.name
    stop = call.qubesd.listen(call.source, subject, call.send)
    try:
        await call.hangup.wait()
    finally:
        stop()


async def stats(call: Call) -> None:
    """A report of dom0 and one a running qube, every `stats_interval` seconds (at least one), until the caller hangs up.

    A qube is told of those that admin.vm.List would show it.
    """
    call.send("", "connection-established", ())
    meter = Meter(call)
    everyone = call.dest is call.system.dom0
    while not call.hangup.is_set():
        if not everyone and not _is_up(call.dest):
            raise QubeNotRunning(f"{call.dest.name} does not run")
        for qube in call.system.sorted_qubes() if everyone else [call.dest]:
            if (qube is call.system.dom0 or _is_up(qube)) and (not everyone or _may_see(call, qube)):
                call.send(qube.name, "vm-stats", meter.report(qube))
        try:
            await asyncio.wait_for(call.hangup.wait(), max(1, int(call.system.get("stats_interval"))))
        except TimeoutError:
            continue


def _is_up(qube: Qube) -> bool:
    return qube.kind.machine and qube.power in (PowerState.RUNNING, PowerState.PAUSED)


class Meter:
    """What one listener was told last: processor time in ns of each machine, and when that was."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._last: dict[tuple[str, int], tuple[int, float]] = {}      # (uuid, xid): a machine that starts again is another one
        self._ended = 0                                                 # ns of machines that were seen and have ended

    def report(self, qube: Qube) -> tuple[tuple[str, str], ...]:
        if qube is self._call.system.dom0:
            host = self._call.system.host
            return self._pairs(qube, host.dom0_memory * 1024, self._own_time(), host.cpus)
        return self._pairs(qube, *self._call.qubesd.usage(qube), int(qube.get("vcpus")))

    def _own_time(self) -> int:
        """What the host's processors did for the host: all but the time of its qubes."""
        up = {(qube.uuid, int(qube.xid)): qube for qube in self._call.system.qubes.values() if _is_up(qube)}
        gone = [key for key in self._last if key not in up and key != self._key(self._call.system.dom0)]
        self._ended += sum(self._last.pop(key)[0] for key in gone)
        now = sum(self._call.qubesd.usage(qube)[1] for qube in up.values())
        return max(0, self._call.system.host.cpu_time() - now - self._ended)

    @staticmethod
    def _key(qube: Qube) -> tuple[str, int]:
        return qube.uuid, int(qube.xid)

    def _pairs(self, qube: Qube, memory: int, cpu_time: int, vcpus: int) -> tuple[tuple[str, str], ...]:
        now = self._call.system.host.now()
        last, when = self._last.get(self._key(qube), (cpu_time, now))
        self._last[self._key(qube)] = (cpu_time, now)
        percent = max(0, int((cpu_time - last) / 10**7 / vcpus / (now - when))) if now > when else 0
        pairs = {"memory_kb": memory, "memory_assigned_total": memory, "memory_assigned_usable": memory,
                 "memory_with_swap_used": memory, "cpu_time": cpu_time // 10**6, "cpu_usage": percent, "online_vcpus": vcpus}
        return tuple((key, str(value)) for key, value in pairs.items())


def system_info(call: Call) -> str:
    return call.qubesd.system_info()
