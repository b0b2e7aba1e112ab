"""Services that qubesd itself asks of a qube (reference/admin-api.md 20): one qrexec call in qubesd's loop, never blocking it.

The qube is hostile: it may never answer, or talk without end. So time is limited, output is thrown away, and of what it
complains about no more is taken than a pipe holds; a qube that writes more stalls its own call until the time is up.
"""
from __future__ import annotations

import asyncio
import os
import select

from cloison.client import qrexec
from cloison.client.ends import TERMINAL_TABLE
from cloison.errors import CloisonError, MachineError
from cloison.runtime.paths import Paths

TIME = 300.0             # seconds: growing a large file system under emulation takes its time
_COMPLAINT = 300         # characters of it that a person is shown


async def run_service(paths: Paths, uuid: str, service: str, data: bytes, *, time: float = TIME) -> None:
    """Run it as root in the running qube; returns when it has succeeded. Raises MachineError."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        async with asyncio.timeout(time):
            status = await _call(paths, uuid, f"root:QUBESRPC {service}+ dom0", data, writer)
        if status != 0:
            raise MachineError(f"{service} failed in the qube: {_complaint(reader) or f'status {status}'}")
    except TimeoutError:
        raise MachineError(f"{service} did not end in the qube within {time:.0f} s") from None
    except MachineError:
        raise
    except CloisonError as error:
        raise MachineError(f"{service} can't be run in the qube: {error}") from error
    finally:
        os.close(reader)
        os.close(writer)


async def _call(paths: Paths, uuid: str, command: str, data: bytes, errors: int) -> int:
    starting = asyncio.ensure_future(
        asyncio.to_thread(qrexec.start, paths, f"uuid:{uuid}", command, qrexec.Ends(stderr=errors), data))
    try:
        call = await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_drop)          # the thread has a limit of its own
        raise
    try:
        while call.status is None:
            call.ready(await _any_ready(call.wants()))
        return call.status
    finally:
        call.close()


def _drop(starting: asyncio.Future[qrexec.Call]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().close()


async def _any_ready(wanted: dict[int, int]) -> set[int]:
    """Wait until one of the descriptors can do what is wanted of it (poll masks)."""
    with select.epoll() as epoll:
        for fd, mask in wanted.items():
            epoll.register(fd, mask)
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        loop.add_reader(epoll.fileno(), lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            loop.remove_reader(epoll.fileno())
        return {fd for fd, _ in epoll.poll(0)}


def _complaint(reader: int) -> str:
    """The end of what the service wrote on its standard error, without what could drive a terminal."""
    try:
        untrusted = os.read(reader, 1 << 16)
    except BlockingIOError:
        return ""
    return " ".join(untrusted.translate(TERMINAL_TABLE).decode("ascii").split())[-_COMPLAINT:]
