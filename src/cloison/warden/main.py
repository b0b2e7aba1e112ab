"""A warden's life: bring one machine up, make its guest the qube, serve its channels until it is gone, and say so.

    starting -> running <-> paused -> halting -> stopped          starting -> failed

Beside these it may wait for disk space: space.py.

It is the only process that reads this guest's bytes on the host. Whatever the guest does wrong costs it its channels or this
process, and this process's end takes the guest's QEMU along (sandbox.py). It never touches the store or a volume's commits.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from cloison.errors import CloisonError, MachineError, PeerError
from cloison.hypervisor.base import END_TIME, Machine, MachineSpec, MachineState
from cloison.hypervisor.qemu import warm
from cloison.hypervisor.qemu.argv import ceiling
from cloison.hypervisor.qemu.driver import QemuMachine
from cloison.qrexec import call_log
from cloison.qrexec.host import host_service
from cloison.qrexec.host.budget import Budget
from cloison.qrexec.host.daemon import Daemon, Served
from cloison.qrexec.host.outgoing import Host, Outgoing
from cloison.qrexec.host.programs import Programs
from cloison.runtime import faults, life, memory
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.held import Held
from cloison.runtime.paths import Paths
from cloison.runtime.port import Port
from cloison.runtime.say import say
from cloison.runtime.vchan_dialer import Dialer
from cloison.storage.base import MAX_SIZE
from cloison.warden import bounds, disks, rejoin, watch
from cloison.warden.blocks import Blocks
from cloison.warden.console import Console
from cloison.warden.control import ControlServer
from cloison.warden.priority import Priority
from cloison.warden.qubesdb import QubesDb
from cloison.warden.space import SpaceWait, folders
from cloison.warden.starting import NOBODY, console_tail, identity
from cloison.wire import agent
from cloison.wire.mux import HOST, Address
from cloison.wire.warden import Launch, no_space


class Warden:
    """`control`: the connection to the qubesd that asked for it; `lease`: hang-up means kill; `memory`: warm only."""

    def __init__(
        self, paths: Paths, launch: Launch, control: socket.socket, lease: socket.socket | None, memory: warm.Memory | None, *,
        make_machine: Callable[[MachineSpec], Machine] = QemuMachine,
    ) -> None:
        self._paths, self._launch, self._requester, self._lease, self._memory = paths, launch, control, lease, memory
        self._make_machine = make_machine
        self._state = "starting"
        self._sizes: dict[str, int] = {}     # of disks that have grown since the start
        self._lost = ""                  # why the channels went before the start was done
        self._loop = asyncio.get_running_loop()
        self._reported: asyncio.Future[None] = self._loop.create_future()
        self._control = ControlServer(os.path.join(paths.qubes, f"warden.{launch.uuid}.sock"), self._do, self.status)
        self._note = ""                  # what the agent says is wrong in there; untrusted, but of printable ASCII
        self._life: int | None = None
        self._machine: Machine | None = None
        self._port: Port | None = None
        self._stream: socket.socket | None = None
        self._daemon: Daemon | None = None
        self._outgoing: Outgoing | None = None
        self._budget = Budget(launch.disposables, Programs(launch.programs, launch.programs_each))
        self._turns = rejoin.Turns()
        self._held = Held(bounds.HELD, self._too_much_held)
        self._priority = Priority()
        self._dialer: Dialer | None = None
        self._qubesdb: QubesDb | None = None
        self._console: Console | None = None
        self._blocks: Blocks | None = None
        self._watching: asyncio.Task[None] | None = None
        self._returning: asyncio.Task[None] | None = None
        self._space: SpaceWait | None = None
        self._following: asyncio.Task[None] | None = None
        self._sizing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the machine is gone. Every way out leaves no process, socket or file of this qube behind."""
        self._loop.set_exception_handler(self._failed)
        await self._control.adopt(self._requester, self._requester_lost)
        try:
            await self._bring_up()
            faults.point("warden:running")
            status = await self._up().wait()
            self._control.event({"event": "stopped", "status": status})
            why = self._up().error_text[-200:]
            say(f"{self._launch.name}: stopped, status {status} of its QEMU" + (f": {why}" if why else ""))
        except (CloisonError, OSError) as error:
            reason = f"{self._launch.name} did not start: {error.strerror or error}" if isinstance(error, OSError) else str(error)
            self._control.event({"event": "failed", "reason": reason})
            say(reason)
        finally:
            await self._clear()

    # -- up and down -----------------------------------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        launch = self._launch
        self._machine = self._make_machine(self._spec())
        self._blocks = Blocks(self._paths, self._machine, self._control.event)
        if self._lease is not None:
            watch_hangup(self._lease, self._kill)
        faults.point("warden:spawn")
        self._stream = await self._machine.start()
        faults.point("warden:spawned")
        self._sizing = self._loop.create_task(self._watch_memory(self._machine))
        self._space = SpaceWait(self._machine, folders(launch, self._paths.tmp), self._space_changed)
        self._following = self._loop.create_task(self._follow(self._machine, self._space))
        self._port = self._open_port(self._stream)
        self._port.control(agent.become(identity(self._launch)))
        try:
            async with asyncio.timeout(launch.start_timeout):
                await self._announce_sizes(self._machine)
        except TimeoutError:
            raise MachineError(f"{launch.name} did not start: its QEMU did not answer in {launch.start_timeout} s") from None
        self._daemon = self._make_daemon(self._port)
        self._daemon.connect()
        self._qubesdb = QubesDb(self._port, launch, self._control.event, self._violation)
        await self._until_reported()
        self._port.control(agent.clock(time.time_ns()))
        self._daemon.start()
        self._control.listen()
        self._state = "running"
        self._control.event({"event": "running", "start": self._kind(), "pid": self._machine.pid, "note": self._note})
        say(f"{self._launch.name}: running, {self._kind()} start, {self._launch.memory} MiB")
        if self._note:
            say(f"{self._launch.name} says: {self._note}")
        self._watching = self._loop.create_task(self._watch_agent(self._machine))

    async def _announce_sizes(self, machine: Machine) -> None:
        """Of disks that are not as those of the warm image."""
        for disk in self._launch.disks if self._launch.warm is not None else ():
            if warm.MADE_SIZES.get(disk.role, disk.size) != disk.size:
                await machine.announce_size(disk.role, disk.size)

    async def _watch_memory(self, machine: Machine) -> None:
        """One that takes more of the host than was said ends."""
        if machine.pid is not None:
            used = await watch.until_over(machine.pid, ceiling(self._launch.memory) << 20)
            machine.kill()
            say(f"{self._launch.name}: its QEMU used {used >> 20} MiB of memory, which no guest should need: it was ended")

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something in here went wrong. Without memory nothing is sure any more: the qube ends."""
        if isinstance(context.get("exception"), MemoryError):
            memory.lift()
            self._kill()
        loop.default_exception_handler(context)

    async def _watch_agent(self, machine: Machine) -> None:
        """What it had under way is lost with it, and nobody shall wait for that: callers are hung up on."""
        await machine.agent_left()
        if self._state != "halting":
            self._violation("the agent in the qube has ended")

    async def _follow(self, machine: Machine, space: SpaceWait) -> None:
        """A machine that stops by itself goes on when there is space; one that can't go on ends, and is not left standing."""
        with contextlib.suppress(MachineError):          # it has ended
            why = await space.run()
            self._control.event({"event": "broken", "why": why})
            machine.kill()

    def _space_changed(self, where: str) -> None:
        if where and self._state == "starting":
            self._lost = f"{where} is full"
            self._kill()                 # `_until_reported` says why
        elif where:
            self._control.event({"event": "space-wanted", "where": where})
            say(f"{self._launch.name} waits for disk space: {no_space(where)}")
        else:
            self._set_clock()
            self._control.event({"event": "space-back", "state": self._state})
            say(f"{self._launch.name} goes on: there is disk space again")

    def _set_clock(self) -> None:
        if self._port is not None:
            self._port.control(agent.clock(time.time_ns()))

    def _open_port(self, stream: socket.socket) -> Port:
        return Port(stream.fileno(), HOST, on_control=self._report, on_open=_refuse, on_end=self._port_ended, held=self._held)

    async def _agent_returns(self, machine: Machine, stream: socket.socket) -> None:
        """A new agent takes the qube up; calls that the former one had are over, and new ones go on (reference/qrexec.md 4.5)."""
        await asyncio.sleep(self._turns.next(self._loop.time()))
        try:
            await rejoin.agent_back(stream)
        except PeerError:                # the machine is about to end, or its guest's
            await asyncio.sleep(END_TIME)
            machine.kill()
            say(f"{self._launch.name}: its QEMU closed the agent's port and did not end: it was killed")
            return
        if self._outgoing is not None:
            await self._outgoing.close()
        if self._dialer is not None:
            self._dialer.close()
        port = self._port = self._open_port(stream)
        port.control(agent.rejoin(identity(self._launch)))
        self._daemon = self._make_daemon(port)
        self._daemon.connect()
        self._tree().reconnect(port)
        port.control(agent.clock(time.time_ns()))
        self._daemon.start()
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._loop.create_task(self._watch_agent(machine))
        self._control.event({"event": "channels-back"})

    def _make_daemon(self, port: Port) -> Daemon:
        """The qrexec daemon, with what serves the qube's own calls."""
        launch, paths = self._launch, self._paths
        self._dialer = Dialer(paths.vchans)
        served = Served(launch.xid, launch.name, launch.uuid, launch.default_user)
        daemon = Daemon(port, served, paths.qubes, self._violation, dialer=self._dialer)
        host_service.set_folders(os.environ, paths)
        log = call_log.CallLog(call_log.path(paths))
        host = Host(paths.socket("policy.sock"), None, paths.socket("qubesd.sock"), log)
        self._outgoing = Outgoing(daemon, host, self._budget, behind=self._priority.lower)
        return daemon

    async def _until_reported(self) -> None:
        """The agent has answered, or the machine is gone, or time is up."""
        machine = self._up()
        gone = asyncio.ensure_future(machine.wait())
        waiters: set[asyncio.Future[Any]] = {self._reported, gone}
        done, _ = await asyncio.wait(waiters, timeout=self._launch.start_timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._reported in done:
            gone.cancel()
            self._reported.result()
            return
        silent = f"no answer from the guest's agent after {self._launch.start_timeout} s"
        ended = "; ".join(filter(None, (self._lost, machine.error_text))) or "its machine ended"
        said = ended if gone in done else silent
        tail = console_tail(await machine.console())
        gone.cancel()
        raise MachineError(f"{self._launch.name} did not start: {said}{tail}")

    async def _clear(self) -> None:
        for task in (self._watching, self._returning, self._following, self._sizing):
            if task is not None:
                task.cancel()
        self._kill()
        machine = self._machine
        if machine is not None and machine.state is not MachineState.MADE:
            await machine.wait()
        if self._port is not None:
            self._port.end("the machine is gone")
        if self._daemon is not None:
            self._daemon.close()
        if self._outgoing is not None:
            await self._outgoing.close()
        for part in (self._priority, self._dialer, self._qubesdb, self._console, self._blocks, self._stream):
            if part is not None:
                part.close()
        if self._life is not None:
            os.close(self._life)
            await asyncio.to_thread(life.end, self._paths.qubes, self._launch.uuid)   # of a sandbox killed while it was set up
            life.drop(self._paths.qubes, self._launch.uuid)
        await self._control.close()

    def _spec(self) -> MachineSpec:
        launch = self._launch
        self._life = life.take(self._paths.qubes, launch.uuid)     # first: no disk of a qube that lives is opened
        opened = disks.open_all(launch, self._paths.tmp)
        return MachineSpec(
            uuid=launch.uuid if launch.warm is None else NOBODY, memory=launch.memory, vcpus=launch.vcpus,
            accelerator=launch.accelerator, disks=opened, kernel=launch.kernel.vmlinuz, initramfs=launch.kernel.initramfs,
            kernelopts=launch.kernelopts, ram_fd=self._memory.ram if self._memory else None,
            state_fd=self._memory.state if self._memory else None, life_fd=self._life)

    def _up(self) -> Machine:
        if self._machine is None:
            raise MachineError(f"{self._launch.name} has no machine")
        return self._machine

    def _tree(self) -> QubesDb:
        if self._qubesdb is None:
            raise MachineError(f"{self._launch.name} has no QubesDB yet")
        return self._qubesdb

    def _kind(self) -> str:
        return "warm" if self._launch.warm is not None else "cold"

    def _requester_lost(self) -> None:
        """The qubesd that wanted this start is gone before it was done: nobody waits for it, so it is undone."""
        if self._state == "starting":
            self._kill()

    def _kill(self) -> None:
        if self._machine is not None:
            self._machine.kill()

    # -- what the guest says -----------------------------------------------------------------------------------------------

    def _report(self, untrusted: bytes) -> None:
        try:
            report = agent.parse_report(untrusted)
        except PeerError as error:
            self._violation(str(error))
            return
        if report.word == "running" and not self._reported.done():
            self._note = report.text
            self._reported.set_result(None)
        elif report.word == "failed" and not self._reported.done():
            self._reported.set_exception(MachineError(f"{self._launch.name} did not start: its agent says: {report.text}"))
        elif report.word == "halting":
            self._halting()

    def _violation(self, reason: str) -> None:
        """The guest loses its channels; it may go on computing, and the host can still kill it."""
        if self._port is not None:
            self._port.end(reason)
        say(f"{self._launch.name}: {reason}")

    def _too_much_held(self, count: int) -> None:
        say(f"{self._launch.name}: {bounds.HELD} bytes wait for whoever reads them; the call that holds most, {count}, ends")

    def _port_ended(self, reason: str) -> None:
        if self._daemon is not None:
            self._daemon.close()
        if not self._reported.done():
            self._lost = self._lost or reason
            self._kill()                 # `_until_reported` says why, together with what QEMU had to say
        self._control.event({"event": "channels-lost", "reason": reason})
        machine, stream = self._machine, self._stream
        if self._state in ("running", "paused") and machine and machine.state is not MachineState.GONE and stream:
            self._returning = self._loop.create_task(self._agent_returns(machine, stream))

    def _halting(self) -> None:
        if self._state == "running":
            self._state = "halting"
            self._control.event({"event": "halting"})

    # -- what qubesd wants -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        launch = self._launch
        return {"state": self._state, "name": launch.name, "uuid": launch.uuid, "xid": launch.xid, "start": self._kind(),
                "note": self._note, "memory": launch.memory, "pid": self._machine.pid if self._machine else None,
                "commits": {disk.role: disk.commit for disk in launch.disks if disk.commit},
                "blocks": self._blocks.listing() if self._blocks else [],
                "space": self._space.where if self._space else ""}

    async def _do(self, order: str, request: dict[str, object]) -> dict[str, object] | None:
        """One order, and what its answer has beside the status. Raises MachineError; what isn't known is one."""
        machine = self._up()
        simple = {"pause": self._pause, "unpause": self._unpause, "shutdown": self._shutdown}.get(order)
        if simple is not None:
            await simple(machine)
        elif order == "kill":
            machine.kill()
        elif order == "resize":
            await self._resize(machine, request.get("role"), request.get("size"))
        elif order in ("attach", "detach"):
            await self._change_blocks(order, request)
        elif order == "qdb":
            self._tree().write(request.get("entries"))
        elif order == "qdb-read":
            return {"entries": self._tree().read(str(request.get("prefix")))}
        elif order == "console":
            self._console = self._console or Console(machine)
            return {"tty": await self._console.open()}
        else:
            raise MachineError(f"a warden knows no order {order!r}")
        return None

    async def _change_blocks(self, order: str, request: dict[str, object]) -> None:
        if self._blocks is None:
            raise MachineError(f"{self._launch.name} has no machine")
        if order == "attach":
            await self._blocks.attach(request.get("block"))
        else:
            await self._blocks.detach(str(request.get("name")))

    async def _pause(self, machine: Machine) -> None:
        """QEMU first finishes what its disks have under way. One that waits for disk space just stays as it is."""
        if self._space is not None:
            self._space.hold()
        patience = self._blocks.patience() if self._blocks else None
        try:
            await machine.pause()
        finally:
            if patience is not None:
                patience.cancel()
        self._state = "paused"

    async def _unpause(self, machine: Machine) -> None:
        if self._space is not None and self._space.where:
            await self._space.retry()
        else:
            await machine.resume()
            self._set_clock()
        if self._state == "paused":
            self._state = "running"

    async def _resize(self, machine: Machine, role: object, size: object) -> None:
        """A disk has grown. Never below what the guest was last told: it would lose what lies beyond."""
        disk = next((disk for disk in self._launch.disks if disk.role == role), None)
        if disk is None or type(size) is not int or not self._sizes.get(disk.role, disk.size) <= size <= MAX_SIZE:
            raise MachineError("no such disk, or not a larger size")
        await machine.announce_size(disk.role, size)
        self._sizes[disk.role] = size

    async def _shutdown(self, machine: Machine) -> None:
        if self._space is not None and self._space.where:
            raise MachineError(no_space(self._space.where))
        if self._port is not None and self._state == "running":
            self._port.control(agent.shutdown())
        else:
            await machine.power_button()


def _refuse(_channel: int, _address: Address) -> None:
    """A channel that nobody told the guest to open."""
