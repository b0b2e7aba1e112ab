"""Start, stop and halt machines (reference/admin-api.md 5.5, 14)."""
from __future__ import annotations

import asyncio
import logging

from cloison.admin.qubesd import Call, Qubesd
from cloison.errors import BadRequest, CloisonError, QubeNotRunning
from cloison.model.domains import Qube
from cloison.plan import lifecycle

log = logging.getLogger(__name__)
SLEEP_TIME = 60.0           # seconds a qube may take to get ready to sleep


async def start(call: Call) -> None:
    await call.qubesd.start(call.dest)


async def shutdown(call: Call) -> None:
    words = call.argument.split("+") if call.argument else []
    if not set(words) <= {"force", "wait"}:
        raise BadRequest("the argument can hold force and wait, joined by '+'")
    await call.qubesd.shutdown(call.dest, force="force" in words, wait="wait" in words)


async def kill(call: Call) -> None:
    await call.qubesd.kill(call.dest)


async def pause(call: Call) -> None:
    await call.qubesd.pause(call.dest)


async def unpause(call: Call) -> None:
    await call.qubesd.unpause(call.dest)


async def suspend(call: Call) -> None:
    """Our machines have no sleep state of their own, so the reference's other way holds: told of it, they are paused."""
    lifecycle.check_suspend(call.dest)
    if call.dest.is_running:
        await tell([call.dest], call.qubesd, "qubes.SuspendPre")
        await call.qubesd.pause(call.dest)
        call.qubesd.asleep.add(call.dest.uuid)


async def resume(call: Call) -> None:
    """One that was told to sleep is told that it is awake."""
    await call.qubesd.unpause(call.dest)
    if call.dest.uuid in call.qubesd.asleep:
        call.qubesd.asleep.discard(call.dest.uuid)
        await tell([call.dest], call.qubesd, "qubes.SuspendPost")


async def tell(qubes: list[Qube], qubesd: Qubesd, service: str) -> None:
    """Run a service in all that have an agent, at once; one that fails or takes too long is no reason not to sleep."""

    async def one(qube: Qube) -> None:
        try:
            await asyncio.wait_for(qubesd.service(qube, service), SLEEP_TIME)
        except (CloisonError, TimeoutError) as error:
            log.warning("%s: %s: %s", qube.name, service, error)

    await asyncio.gather(*(one(qube) for qube in qubes if qube.feature_or_none("qrexec", template=True)))


async def console(call: Call) -> str:
    """Path of a terminal of this host. Who uses it takes a lock first: see `cli/vm_console.py`."""
    lifecycle.check_machine(call.dest)
    if not call.dest.is_running:
        raise QubeNotRunning(f"{call.dest.name} does not run, so it has no console")
    return await call.qubesd.console(call.dest)
