"""Start, stop and halt machines (reference/admin-api.md 5.5, 14)."""
from __future__ import annotations

from cloison.admin.qubesd import Call
from cloison.errors import BadRequest, QubeNotRunning
from cloison.plan import lifecycle


async def start(call: Call) -> None:
    await call.qubesd.start(call.dest)


async def shutdown(call: Call) -> None:
    words = call.argument.split("+") if call.argument else []
    if len(set(words)) != len(words) or not set(words) <= {"force", "wait"}:
        raise BadRequest("the argument can hold force and wait, joined by '+'")
    await call.qubesd.shutdown(call.dest, force="force" in words, wait="wait" in words)


async def kill(call: Call) -> None:
    await call.qubesd.kill(call.dest)


async def pause(call: Call) -> None:
    await call.qubesd.pause(call.dest)


async def unpause(call: Call) -> None:
    await call.qubesd.unpause(call.dest)


async def suspend(call: Call) -> None:
    """Our machines have no sleep state of their own, so the reference's other way holds: they are paused."""
    lifecycle.check_suspend(call.dest)
    if call.dest.is_running:
        await call.qubesd.pause(call.dest)


async def console(call: Call) -> str:
    """Path of a terminal of this host. Who uses it takes a lock first: see `cli/vm_console.py`."""
    lifecycle.check_machine(call.dest)
    if not call.dest.is_running:
        raise QubeNotRunning(f"{call.dest.name} does not run, so it has no console")
    return await call.qubesd.console(call.dest)
