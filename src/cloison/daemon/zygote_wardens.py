"""The real wardens: forked by a zygote, found again through their sockets, waited for until nothing of them lives."""
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import socket
from collections.abc import Collection, Mapping
from typing import Any

from cloison.daemon.services import run_service
from cloison.daemon.warden_link import KILL_TIME, Link
from cloison.daemon.wardens import Adopted, Progress, Usage, Wardens
from cloison.daemon.warm_images import WarmImages
from cloison.daemon.zygote import ZYGOTE, Zygote
from cloison.errors import MachineError, PeerError
from cloison.plan.processes import Known
from cloison.runtime import life
from cloison.runtime.paths import Paths
from cloison.runtime.tasks import Tasks
from cloison.runtime.whole import whole
from cloison.values import InvalidValue, PowerState, Uuid
from cloison.wire import blocks
from cloison.wire.blocks import Block
from cloison.wire.warden import MAX_DISKS, Launch, launch_to_json

log = logging.getLogger(__name__)
STATES = {
    "starting": PowerState.TRANSIENT, "running": PowerState.RUNNING, "paused": PowerState.PAUSED, "halting": PowerState.HALTING,
}
ADOPT_TIME = 6.0        # s that all wardens together may take to answer the next qubesd
KILL_AGAIN = 5.0        # s until what does not end is killed again
_TERMINAL = re.compile(r"/dev/pts/[0-9]{1,9}")
_TICK = os.sysconf("SC_CLK_TCK")


def _ignore(_uuid: str, _event: str, _detail: dict[str, Any]) -> None:
    """Until somebody listens."""


class ZygoteWardens(Wardens):
    """See `Wardens`. `zygote`: the module that is run as one."""

    def __init__(self, paths: Paths, zygote: str = ZYGOTE) -> None:
        self.on_event = _ignore
        self.paths = paths
        self._zygote = Zygote(paths, zygote)
        self._warm = WarmImages(paths, self._zygote)
        self._links: dict[str, Link] = {}
        self._tasks = Tasks()

    # -- finding them again --------------------------------------------------------------------------------------------------

    async def adopt(self) -> list[Adopted]:
        self._zygote.start()
        self._warm.sweep()
        names = os.listdir(self.paths.qubes)
        doors = {uuid: os.path.join(self.paths.qubes, name) for name in names if (uuid := _uuid_of(name))}
        # One without a door: its start was not done when its qubesd died, or its warden was killed; or it makes a warm image.
        rest = [uuid for uuid in life.known(self.paths.qubes) if uuid not in doors]
        for uuid in sorted([*doors, *rest]):
            link = self._links[uuid] = self._new_link(uuid)
            self._tasks.begin(link.take_over(doors.get(uuid)))
        links = list(self._links.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ADOPT_TIME):
                await asyncio.gather(*(link.first.wait() for link in links))
        return [self._adopted(link) for link in links if not link.gone.is_set() and _is_uuid(link.uuid)]

    def _adopted(self, link: Link) -> Adopted:
        """As it is now. From here on its end is told."""
        link.announced = True
        if link.known is not Known.ANSWERS:
            state = PowerState.DYING if link.known is Known.ENDING else PowerState.TRANSIENT
            return Adopted(link.uuid, "", self._xid(link.uuid), state, unknown=True)
        return self.found(link.uuid)

    def found(self, uuid: str) -> Adopted:
        status = self._link(uuid).facts
        space = str(status.get("space") or "")
        state = PowerState.PAUSED if space else STATES.get(str(status.get("state")), PowerState.RUNNING)
        return Adopted(uuid, str(status.get("name")), int(status.get("xid") or 0), state, _texts(status.get("commits")),
                       _blocks(status.get("blocks")), space, str(status.get("note") or ""))

    def _xid(self, uuid: str) -> int:
        """As the links of its qrexec socket say; 0 for one that has none (yet)."""
        with contextlib.suppress(OSError, ValueError):
            return int(os.readlink(os.path.join(self.paths.qubes, f"qrexec.uuid:{uuid}")).removeprefix("qrexec."))
        return 0

    def _new_link(self, uuid: str) -> Link:
        return Link(uuid, self.paths.qubes, self._tell, self._forget)

    def _tell(self, uuid: str, event: str, detail: dict[str, Any]) -> None:
        self.on_event(uuid, event, detail)       # whoever listens by now

    def _forget(self, link: Link) -> None:
        """Its last process is gone."""
        if self._links.get(link.uuid) is link:
            del self._links[link.uuid]
            self._clean(link.uuid)

    def _clean(self, uuid: str) -> None:
        """What a killed warden could not remove: its sockets and links, and its life file."""
        xid = None
        with contextlib.suppress(OSError):
            xid = os.readlink(os.path.join(self.paths.qubes, f"qrexec.uuid:{uuid}"))
        for name in os.listdir(self.paths.qubes):
            path = os.path.join(self.paths.qubes, name)
            if name in (f"warden.{uuid}.sock", f"qrexec.uuid:{uuid}", xid) or (os.path.islink(path) and os.readlink(path) == xid):
                os.unlink(path)
        life.drop(self.paths.qubes, uuid)

    # -- what qubesd wants ---------------------------------------------------------------------------------------------------

    async def start(self, launch: Launch, lease: socket.socket | None = None) -> str:
        if launch.uuid in self._links:
            raise MachineError(f"{launch.name} runs already")
        try:
            return await self._start(launch, lease)
        except MachineError as error:
            if launch.warm is None:
                raise
            log.warning("%s: warm start failed (%s); starting cold", launch.name, error)
            await self._warm.drop_if_damaged(launch.warm)
            return await self._start(dataclasses.replace(launch, warm=None), lease)

    async def _start(self, launch: Launch, lease: socket.socket | None) -> str:
        link = self._links[launch.uuid] = self._new_link(launch.uuid)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                fds = [theirs.fileno()] if lease is None else [theirs.fileno(), lease.fileno()]
                self._zygote.send({"do": "launch", "launch": launch_to_json(launch)}, fds)
        except MachineError:
            ours.close()
            self._forget(link)
            raise
        self._tasks.begin(link.listen(ours))
        try:
            await asyncio.shield(link.ready)
        except asyncio.CancelledError:
            await whole(self._end_start(link))
            raise
        link.facts |= {"memory": launch.memory}
        link.announced = True
        note = str(link.facts.get("note") or "")
        self.on_event(launch.uuid, "running", {"start": str(link.facts.get("start")), "note": note})
        return str(link.facts.get("start"))

    async def _end_start(self, link: Link) -> None:
        """Until nothing of it is left, and nothing can come any more: the zygote may not have forked it yet."""
        while not link.gone.is_set():
            try:
                await self._kill(link)
            except MachineError as error:                # it may be stuck for a while: again, and not at once
                log.warning("a start of %s that was given up does not end: %s", link.uuid, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(link.gone.wait(), KILL_AGAIN)
        if link.ready.done() and not link.ready.cancelled():
            link.ready.exception()                       # nobody wants to hear of it

    def _link(self, uuid: str) -> Link:
        try:
            return self._links[uuid]
        except KeyError:
            raise MachineError("that qube has no machine") from None

    async def pause(self, uuid: str) -> None:
        await self._link(uuid).ask("pause")

    async def unpause(self, uuid: str) -> None:
        await self._link(uuid).ask("unpause")

    async def shutdown(self, uuid: str) -> None:
        await self._link(uuid).ask("shutdown")

    async def kill(self, uuid: str) -> None:
        """It ends itself; one that does not, or says nothing, is ended from outside."""
        await self._kill(self._link(uuid))

    async def _kill(self, link: Link) -> None:
        with contextlib.suppress(MachineError, TimeoutError):        # it may end before it has answered
            async with asyncio.timeout(KILL_TIME):
                await link.ask("kill")
                await link.gone.wait()
        if not link.gone.is_set():
            log.warning("the warden of %s does not end: it is killed", link.uuid)
            await link.end_from_outside()

    async def qdb_write(self, uuid: str, entries: Mapping[str, str | None]) -> None:
        await self._link(uuid).ask("qdb", entries=dict(entries))

    async def qdb_read(self, uuid: str, prefix: str) -> dict[str, bytes]:
        untrusted = (await self._link(uuid).ask("qdb-read", prefix=prefix)).get("entries")
        try:
            if isinstance(untrusted, dict):
                return {path: value.encode("latin-1") for path, value in untrusted.items()}
        except (AttributeError, UnicodeEncodeError):
            pass
        raise MachineError("its warden's answer makes no sense")

    async def console(self, uuid: str) -> str:
        terminal = (await self._link(uuid).ask("console")).get("tty")
        if not isinstance(terminal, str) or not _TERMINAL.fullmatch(terminal):
            raise MachineError("its warden's answer makes no sense")
        return terminal

    async def resize(self, uuid: str, role: str, size: int) -> None:
        await self._link(uuid).ask("resize", role=role, size=size)

    async def attach(self, uuid: str, block: Block) -> None:
        await self._link(uuid).ask("attach", block=blocks.to_json(block))

    async def detach(self, uuid: str, name: str) -> None:
        await self._link(uuid).ask("detach", name=name)

    async def service(self, uuid: str, service: str, data: bytes) -> None:
        self._link(uuid)
        await run_service(self.paths, uuid, service, data)

    def usage(self, uuid: str) -> Usage:
        link = self._links.get(uuid)
        if link is None:
            return Usage(0, 0)
        return Usage(int(link.facts.get("memory") or 0) * 1024, _cpu_time(link.facts.get("pid")))

    def running(self) -> list[str]:
        return sorted(self._links)

    async def close(self) -> None:
        await asyncio.to_thread(self._zygote.close)
        self._tasks.cancel()
        for link in self._links.values():
            link.abandon("qubesd is ending")

    # -- warm images -----------------------------------------------------------------------------------------------------------

    def warm_images(self) -> list[str]:
        return self._warm.names()

    async def ensure_warm(self, launch: Launch, progress: Progress, *, ahead: bool = False) -> str | None:
        return await self._warm.ensure(launch, progress, ahead=ahead)

    async def forget_warm(self, commits: Collection[str]) -> None:
        await self._warm.forget(commits)


def _is_uuid(name: str) -> bool:
    """A maker of a warm image has a life file, too, under another name."""
    with contextlib.suppress(InvalidValue):
        return bool(Uuid(name))
    return False


def _uuid_of(name: str) -> str:
    """In the name of a warden's socket; empty for any other file."""
    if name.startswith("warden.") and name.endswith(".sock"):
        return name.removeprefix("warden.").removesuffix(".sock")
    return ""


def _texts(value: object) -> dict[str, str]:
    """Names and texts out of a warden's answer; a warden of an earlier version sends none."""
    pairs = list(value.items())[:MAX_DISKS] if isinstance(value, dict) else []
    return {key: text for key, text in pairs if isinstance(key, str) and isinstance(text, str)}


def _blocks(value: object) -> tuple[Block, ...]:
    """Attached devices out of a warden's answer; a warden of an earlier version sends none."""
    with contextlib.suppress(PeerError):
        return blocks.list_from_json(value)
    return ()


def _cpu_time(pid: object) -> int:
    """Nanoseconds used by a machine: bubblewrap has one child, which is pid 1 of the box and has one child, which is QEMU."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for _ in range(2):
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                pid = int(file.read().split()[0])
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // _TICK
    return 0
