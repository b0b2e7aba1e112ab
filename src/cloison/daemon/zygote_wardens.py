"""The real wardens: forked by a zygote, found again through their sockets, waited for until nothing of them lives."""
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping
from typing import Any

from cloison.daemon.services import run_service
from cloison.daemon.wardens import Adopted, Progress, Usage, Wardens
from cloison.errors import MachineError, PeerError
from cloison.hypervisor.qemu import warm
from cloison.runtime import life, unix
from cloison.runtime.paths import Paths
from cloison.values import PowerState
from cloison.wire.warden import MAX_DISKS, Launch, Lines, encode, launch_to_json

log = logging.getLogger(__name__)
STATES = {
    "starting": PowerState.TRANSIENT, "running": PowerState.RUNNING, "paused": PowerState.PAUSED, "halting": PowerState.HALTING,
}
ENDS = ("stopped", "failed")
ZYGOTE = "cloison.warden.zygote"
MAX_LAUNCH = 200_000          # bytes of a launch: a packet as large as any kernel lets an ordinary user send
STATUS = ("state", "name", "uuid", "xid", "start", "memory", "pid")
_TERMINAL = re.compile(r"/dev/pts/[0-9]{1,9}")
_TICK = os.sysconf("SC_CLK_TCK")


def _ignore(_uuid: str, _event: str, _detail: dict[str, Any]) -> None:
    """Until somebody listens."""


class _Link:
    """The connection to one warden."""

    def __init__(self, uuid: str, owner: ZygoteWardens) -> None:
        self.uuid = uuid
        self.owner = owner
        self.facts: dict[str, Any] = {}              # its last status
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.announced = False                       # `running` was reported to qubesd: its end must be, too
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._end: tuple[str, dict[str, Any]] = ("stopped", {})

    async def listen(self, stream: socket.socket) -> None:
        """Read until it hangs up; then wait until the qube's last process is gone, and say so."""
        stream.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=stream)
        self._connected.set()
        lines = Lines()
        try:
            while data := await reader.read(65536):
                for message in lines.feed(data):
                    self._message(message)
        except (OSError, PeerError) as error:
            log.warning("warden of %s: %s", self.uuid, error)
        finally:
            self._writer.close()
        await asyncio.to_thread(life.end, self.owner.paths.qubes, self.uuid)
        self._finish()

    def abandon(self, reason: str) -> None:
        """Nobody who waits for it shall wait for ever."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(MachineError(reason))
        self._connected.set()
        self.gone.set()

    def _finish(self) -> None:
        self.owner.forget(self)
        event, detail = self._end
        if not self.ready.done():
            self.ready.set_exception(MachineError(str(detail.get("reason") or "its warden ended")))
        elif self.announced:
            self.owner.on_event(self.uuid, event, detail)
        self.abandon("the qube has ended")

    def _message(self, message: dict[str, Any]) -> None:
        event = message.pop("event", None)
        if event is None:
            answer = self._answers.pop(message.get("id", -1), None)
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif event in ENDS:
            self._end = (str(event), message)
        elif event == "running":
            self.facts |= message
            if not self.ready.done():
                self.ready.set_result(None)
        elif self.announced:
            self.owner.on_event(self.uuid, str(event), message)

    async def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Raises MachineError with the warden's words, or because the qube ended meanwhile."""
        await self._connected.wait()
        if self._writer is None or self._writer.is_closing():
            raise MachineError("the qube is ending")
        self._next += 1
        answer = self._answers[self._next] = asyncio.get_running_loop().create_future()
        self._writer.write(encode({"id": self._next, "do": do, **fields}))
        reply: dict[str, Any] = await answer
        if "error" in reply:
            raise MachineError(str(reply["error"]))
        self.facts |= {key: value for key, value in reply.items() if key in STATUS}
        return reply


class ZygoteWardens(Wardens):
    """See `Wardens`. `zygote`: the module that is run as one."""

    def __init__(self, paths: Paths, zygote: str = ZYGOTE) -> None:
        self.on_event = _ignore
        self.paths = paths
        self._module = zygote
        self._links: dict[str, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._zygote: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._making: dict[str, asyncio.Future[str | None]] = {}
        self._unmakable: set[str] = set()

    # -- the zygote --------------------------------------------------------------------------------------------------------

    def _send(self, request: dict[str, Any], fds: list[int]) -> None:
        """One packet to the zygote, which is started if it isn't there. Raises MachineError."""
        packet = json.dumps(request).encode()
        if len(packet) > MAX_LAUNCH:
            raise MachineError(f"it has too many features: they take {len(packet)} bytes, and {MAX_LAUNCH} can be handed over")
        for _ in range(2):
            if self._zygote is None:
                self._zygote = self._spawn()
            try:
                socket.send_fds(self._zygote, [packet], fds)
                return
            except OSError as error:
                log.warning("zygote lost (%s); starting another", error)
                self._hang_up()
        raise MachineError("the zygote that forks wardens can't be reached")

    def _spawn(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.path.join(self.paths.log, "wardens.log"), "ab") as log_file:
            # -P: a module in the current folder must not take the place of ours.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True)
        ours.settimeout(10)
        return ours

    def _hang_up(self) -> None:
        """The zygote sees the end of file and ends; it waits for nobody."""
        if self._zygote is not None and self._process is not None:
            self._zygote.close()
            self._zygote = None
            self._process.wait()
            self._process = None

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- finding them again --------------------------------------------------------------------------------------------------

    async def adopt(self) -> list[Adopted]:
        self._zygote = self._spawn()
        warm.sweep(self.paths.warm)
        found = []
        for name in sorted(os.listdir(self.paths.qubes)):
            if name.startswith("warden.") and name.endswith(".sock"):
                uuid = name.removeprefix("warden.").removesuffix(".sock")
                adopted = await self._adopt(uuid, os.path.join(self.paths.qubes, name))
                found += [adopted] if adopted else []
        for uuid in life.known(self.paths.qubes):
            if uuid not in self._links:              # its start was not done when its qubesd died, or its warden was killed
                await asyncio.to_thread(life.end, self.paths.qubes, uuid)
                self._clean(uuid)
        return found

    async def _adopt(self, uuid: str, path: str) -> Adopted | None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with unix.address(path) as there:
                stream.connect(there)
        except OSError:
            stream.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return None
        link = self._links[uuid] = _Link(uuid, self)
        link.ready.set_result(None)
        link.announced = True
        self._background(link.listen(stream))
        try:
            status = await asyncio.wait_for(link.ask("status"), 10)
        except (MachineError, TimeoutError):
            return None
        state = STATES.get(str(status["state"]), PowerState.RUNNING)
        return Adopted(uuid, str(status["name"]), int(status["xid"]), state, _texts(status.get("commits")))

    def forget(self, link: _Link) -> None:
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
            await self._drop_if_damaged(launch.warm)
            return await self._start(dataclasses.replace(launch, warm=None), lease)

    async def _drop_if_damaged(self, folder: str) -> None:
        """Every later start from it would fail, too; without it the next one makes another."""
        try:
            await asyncio.to_thread(warm.check, folder)
        except MachineError as error:
            log.error("%s; the next start makes another", error)
            self._drop_warm(os.path.basename(folder))

    async def _start(self, launch: Launch, lease: socket.socket | None) -> str:
        link = self._links[launch.uuid] = _Link(launch.uuid, self)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                fds = [theirs.fileno()] if lease is None else [theirs.fileno(), lease.fileno()]
                self._send({"do": "launch", "launch": launch_to_json(launch)}, fds)
        except MachineError:
            ours.close()
            self.forget(link)
            raise
        self._background(link.listen(ours))
        try:
            await asyncio.shield(link.ready)
        except asyncio.CancelledError:
            await self.kill(launch.uuid)
            raise
        link.facts |= {"memory": launch.memory}
        link.announced = True
        self.on_event(launch.uuid, "running", {"start": str(link.facts.get("start"))})
        return str(link.facts.get("start"))

    def _link(self, uuid: str) -> _Link:
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
        link = self._link(uuid)
        with contextlib.suppress(MachineError):      # it may end before it has answered
            await link.ask("kill")
        await link.gone.wait()

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
        await asyncio.to_thread(self._hang_up)
        for task in list(self._tasks):
            task.cancel()
        for link in self._links.values():
            link.abandon("qubesd is ending")

    # -- warm images -----------------------------------------------------------------------------------------------------------

    def warm_images(self) -> list[str]:
        return warm.names(self.paths.warm)

    async def ensure_warm(self, launch: Launch, progress: Progress) -> str | None:
        try:
            key = warm.key(launch)
        except MachineError as error:
            log.warning("no warm image for %s: %s", launch.name, error)
            return None
        folder = warm.folder(self.paths.warm, key)
        if folder is not None or key in self._unmakable:
            return folder
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.ensure_future(self._make(launch, progress))
            making.add_done_callback(lambda _: self._making.pop(key, None))
        made = await asyncio.shield(making)
        if made is None:
            self._unmakable.add(key)
        return made

    async def _make(self, launch: Launch, progress: Progress) -> str | None:
        """A maker's whole life, seen from here. None, and the reason in the log, if it failed."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            self._send({"do": "make", "launch": launch_to_json(dataclasses.replace(launch, identity={}, xid=1))}, [theirs.fileno()])
        lines = Lines()
        loop = asyncio.get_running_loop()
        error = "its maker ended"
        with ours:
            while data := await loop.sock_recv(ours, 65536):
                for message in lines.feed(data):
                    if "progress" in message:
                        progress(str(message["progress"]))
                    elif "made" in message:
                        return str(message["made"])
                    else:
                        error = str(message.get("error") or message.get("reason"))
        log.error("no warm image for %s: %s", launch.name, error)
        await self._clear_making(warm.making(launch))
        return None

    async def _clear_making(self, name: str) -> None:
        """What a killed maker could not end and remove."""
        await asyncio.to_thread(life.end, self.paths.qubes, name)
        await asyncio.to_thread(shutil.rmtree, os.path.join(self.paths.warm, name), ignore_errors=True)
        life.drop(self.paths.qubes, name)

    async def forget_warm(self, commits: Collection[str]) -> None:
        for name in warm.names(self.paths.warm):
            if warm.commit(self.paths.warm, name) in commits:
                self._drop_warm(name)

    def _drop_warm(self, name: str) -> None:
        """From disk, and from the zygote's memory. Who runs from it holds what it needs."""
        with contextlib.suppress(MachineError):
            self._send({"do": "forget", "folder": os.path.join(self.paths.warm, name)}, [])
        warm.drop(self.paths.warm, name)


def _texts(value: object) -> dict[str, str]:
    """Names and texts out of a warden's answer; a warden of an earlier version sends none."""
    pairs = list(value.items())[:MAX_DISKS] if isinstance(value, dict) else []
    return {key: text for key, text in pairs if isinstance(key, str) and isinstance(text, str)}


def _cpu_time(pid: object) -> int:
    """Nanoseconds used by a machine's processes: bubblewrap's one child is QEMU."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            qemu = int(file.read().split()[0])
        with open(f"/proc/{qemu}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // _TICK
    return 0
