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
        qubes = [qube for qube in qubes if call.qubesd.allows(call.source, "admin.vm.List", qube)]
    return "".join(f"{qube.name} class={qube.klass} state={qube.power} uuid={qube.uuid}\n" for qube in qubes)


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
    """A report a running qube, every `stats_interval` seconds (at least one), until the caller hangs up."""
    call.send("", "connection-established", ())
    before: dict[str, tuple[int, float]] = {}
    everyone = call.dest is call.system.dom0
    while not call.hangup.is_set():
        if not everyone and not _is_up(call.dest):
            raise QubeNotRunning(f"{call.dest.name} does not run")
        for qube in [qube for qube in call.system.sorted_qubes() if _is_up(qube)] if everyone else [call.dest]:
            call.send(qube.name, "vm-stats", _report(call, qube, before))
        try:
            await asyncio.wait_for(call.hangup.wait(), max(1, int(call.system.get("stats_interval"))))
        except TimeoutError:
            continue


def _is_up(qube: Qube) -> bool:
    return qube.kind.machine and qube.power in (PowerState.RUNNING, PowerState.PAUSED)


def _report(call: Call, qube: Qube, before: dict[str, tuple[int, float]]) -> tuple[tuple[str, str], ...]:
    """`before`: processor time in ns of each qube at its last report, and when that was."""
    memory, cpu_time = call.qubesd.usage(qube)
    vcpus, now = int(qube.get("vcpus")), call.system.host.now()
    last, when = before.get(qube.uuid, (cpu_time, now))
    before[qube.uuid] = (cpu_time, now)
    percent = max(0, int((cpu_time - last) / 10**7 / vcpus / (now - when))) if now > when else 0
    pairs = {"memory_kb": memory, "memory_assigned_total": memory, "memory_assigned_usable": memory,
             "memory_with_swap_used": memory, "cpu_time": cpu_time // 10**6, "cpu_usage": percent, "online_vcpus": vcpus}
    return tuple((key, str(value)) for key, value in pairs.items())


def system_info(call: Call) -> str:
    return call.qubesd.system_info()
