"""Calls out of a qube: asked for by its agent, decided by policy, served by the host or another qube (reference/qrexec.md 8, 15.3).

One task a call, so that no call waits for another and none stops the daemon's loop. However a task ends, the qube gets an
answer: what has not been connected by then is refused.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cloison.errors import CloisonError, PeerError
from cloison.qrexec.call_log import CallLog
from cloison.qrexec.host import host_service, peer, policy_client, qubesd_client
from cloison.qrexec.host.budget import Budget
from cloison.qrexec.host.daemon import Daemon
from cloison.qrexec.host.disposables import Disposables
from cloison.qrexec.host.policy_client import Denied, Verdict
from cloison.qrexec.session_waiter import Waiter
from cloison.runtime.tasks import Tasks
from cloison.wire import qrexec
from cloison.wire.policy import Query

MAX_PENDING = 256                        # requests that wait for their answer
MAX_WORDS = 1 << 19                      # characters of services and their arguments of all those; the longest has 65000
MAX_CALLS = 512                          # with those that are under way
MAX_ASKING = 4                           # queries of one qube that the policy daemon has at once: all qubes share it
MAX_ENDED = 64                           # calls whose caller's side has ended and whose target has not said so
GRACE = 10.0                             # s that a target has to say so: it must not tie up its caller
AGENT_TIME, RETRY = 10.0, 0.05           # s that a new agent of a target may take, and between two looks for it
AT_ONCE = 0.05                           # s after which a query counts no longer: it is taken for one that a person answers
_HOST = ("dom0", "@adminvm", "uuid:00000000-0000-0000-0000-000000000000")
_DISPOSABLE = "@dispvm:"
# What may go wrong with one call: it is refused then, and the daemon goes on.
_FAILURES = (CloisonError, OSError, ValueError)


@dataclass(frozen=True)
class Host:
    """Where the others are: the policy daemon's socket, a policy program instead (or None), qubesd's socket, the log of calls."""

    policy: str
    policy_program: str | None
    qubesd: str
    log: CallLog


class Outgoing:
    """Hears what the daemon's qube asks for from now on. `at_once`: seconds within which a verdict without a person comes.
    `grace`: seconds that a target has to end a call that its caller has ended.

    `budget`: how many calls, and disposables for them. `behind` hears, at each request of a flood, for how many seconds the
    qube is to go after others.
    """

    def __init__(
        self, daemon: Daemon, host: Host, budget: Budget, *, behind: Callable[[float], None] = lambda _seconds: None,
        at_once: float = AT_ONCE, grace: float = GRACE,
    ) -> None:
        self._daemon, self._host, self._budget, self._behind = daemon, host, budget, behind
        self._at_once, self._grace = at_once, grace
        self._ended = 0                              # calls of which only the target's word is waited for
        self._pending: dict[bytes, asyncio.Task[None]] = {}
        self._tasks = Tasks()
        self._words = 0                          # characters of the services that those ask for
        self._turns = asyncio.Semaphore(MAX_ASKING)
        self._disposables = Disposables(budget.disposables)
        self._waiter = Waiter(inherit=True)
        self._loop = asyncio.get_running_loop()
        daemon.asked = self._asked
        daemon.pace = self._pace
        daemon.answerable = self._take
        daemon.on_restart = self._forget_pending

    async def close(self) -> None:
        """Disposables of calls under way are killed, everything else is let go of."""
        await self._tasks.end()
        self._host.log.close()

    def _asked(self, trigger: qrexec.Trigger) -> None:
        if trigger.request_id in self._pending or len(self._pending) >= MAX_PENDING or len(self._tasks) >= MAX_CALLS \
                or self._words + len(trigger.service) > MAX_WORDS:
            self._daemon.refuse(trigger.request_id)
            return
        task = self._tasks.begin(self._serve(trigger))
        self._words += len(trigger.service)
        task.add_done_callback(partial(self._said, len(trigger.service)))
        self._pending[trigger.request_id] = task

    def _said(self, size: int, _task: asyncio.Task[None]) -> None:
        self._words -= size

    def _pace(self) -> float:
        cost = self._budget.request(self._loop.time(), len(self._tasks) - self._ended)
        if cost.behind:
            self._behind(cost.behind)
        return cost.wait

    def _take(self, ident: bytes) -> bool:
        """Answer that request: true once, for who does it."""
        return self._pending.pop(ident, None) is not None

    def _forget_pending(self) -> None:
        """The agent that asked is gone."""
        pending = list(self._pending.values())
        self._pending.clear()
        for task in pending:
            task.cancel()

    # -- one call ------------------------------------------------------------------------------------------------------

    async def _serve(self, trigger: qrexec.Trigger) -> None:
        started = self._loop.time()
        target, outcome = trigger.target, "ended"
        try:
            query = Query(self._daemon.qube.name, trigger.target, trigger.service, trigger.source)
            verdict = await self._verdict(query)
            target = verdict.target_uuid or verdict.target
            await self._allowed(trigger, verdict, target)
        except Denied as error:
            outcome = str(error)
        except _FAILURES as error:
            outcome = f"failed: {error}"
        finally:
            if self._take(trigger.request_id):
                self._daemon.refuse(trigger.request_id)
        self._log("end", trigger, target, outcome=outcome, seconds=round(self._loop.time() - started, 3))

    def _log(self, event: str, trigger: qrexec.Trigger, target: str, **more: object) -> None:
        self._host.log.write(
            event=event, source=self._daemon.qube.name, service=trigger.service, requested_target=trigger.target, target=target,
            **more)

    async def _verdict(self, query: Query) -> Verdict:
        """One after the other, nearly: however many calls a qube makes, others find a short queue. Raises Denied."""
        async with self._turns:
            asking = self._loop.create_task(policy_client.ask(self._host.policy, self._host.policy_program, query))
            try:
                await asyncio.wait([asking], timeout=self._at_once)
            except asyncio.CancelledError:
                asking.cancel()
                raise
        return await asking

    async def _allowed(self, trigger: qrexec.Trigger, verdict: Verdict, target: str) -> None:
        """From the verdict to the call's end. Raises one of _FAILURES."""
        service = verdict.service or trigger.service
        service = service if "+" in service else f"{service}+"
        source = verdict.policy_source or self._daemon.qube.name
        if verdict.target in _HOST or target in _HOST:
            await self._on_host(trigger.request_id, host_service.command(service, source, verdict.requested_target))
            return
        command = f"{verdict.user}:QUBESRPC {service} {source}"
        qrexec.parse_command(command)
        if not target.startswith(_DISPOSABLE):
            await self._on_qube(trigger.request_id, command, qubesd_client.named(target), autostart=verdict.autostart)
            return
        if not verdict.autostart:
            raise Denied("a disposable can't be had without being started")
        template = qubesd_client.named(target.removeprefix(_DISPOSABLE))
        waits = partial(self._log, "waits", trigger, target, outcome=f"{self._budget.disposables} disposables of its calls run")
        async with self._disposables.one(self._host.qubesd, template, waits) as disposable:
            await self._on_qube(trigger.request_id, command, disposable.target, autostart=False)

    async def _on_host(self, ident: bytes, command: qrexec.Command) -> None:
        counts = host_service.is_program(command)
        release = await self._budget.programs.place(command.service) if counts else lambda: None
        over = self._loop.create_future()
        call = host_service.HostCall(command, self._waiter, partial(_resolve, over), release)
        try:
            if self._answer(ident, partial(self._daemon.connect_host, ident, call.serve)):
                await over
        finally:
            if not call.begun:
                release()

    async def _on_qube(self, ident: bytes, command: str, target: str, *, autostart: bool) -> None:
        path = os.path.join(self._daemon.folder, f"qrexec.{target}")
        try:
            called, stream = await self._execute(path, command)
        except (FileNotFoundError, ConnectionRefusedError):
            if autostart:
                await qubesd_client.start(self._host.qubesd, target)
            elif not await qubesd_client.runs(self._host.qubesd, target):
                raise
            called, stream = await self._execute_soon(path, command)
        with called, contextlib.ExitStack() as unused:
            if stream is not None:
                unused.enter_context(stream)
            ended = self._loop.create_future()
            on_end = partial(_resolve, ended)
            if self._answer(ident, partial(self._daemon.connect_peer, ident, called.xid, called.port, stream, on_end)):
                unused.pop_all()
                await self._over(called, ended)

    async def _over(self, called: peer.Peer, ended: asyncio.Future[None]) -> None:
        """Until the target's daemon says that the call is over; but soon after the caller's side has `ended`, whatever it says."""
        over = self._loop.create_task(called.over())
        try:
            await asyncio.wait([over, ended], return_when=asyncio.FIRST_COMPLETED)
            if over.done() or self._ended >= MAX_ENDED:
                return
            self._ended += 1
            try:
                await asyncio.wait([over], timeout=self._grace)
            finally:
                self._ended -= 1
        finally:
            over.cancel()

    async def _execute_soon(self, path: str, command: str) -> tuple[peer.Peer, socket.socket | None]:
        """In a qube that runs: one whose agent has just ended has another one soon. Raises PeerError, OSError."""
        end = self._loop.time() + AGENT_TIME
        while True:
            try:
                return await self._execute(path, command)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if self._loop.time() > end:
                    raise PeerError("the target runs, but its agent does not answer") from error
            await asyncio.sleep(RETRY)

    def _answer(self, ident: bytes, connect: Callable[[], None]) -> bool:
        """False when the agent is another by now, or somebody else has answered. Raises CloisonError when it can't be served."""
        if not self._take(ident):
            return False
        try:
            connect()
        except CloisonError:
            self._daemon.refuse(ident)
            raise
        return True

    async def _execute(self, path: str, command: str) -> tuple[peer.Peer, socket.socket | None]:
        own = self._daemon.qube.xid
        if self._daemon.direct:
            return await peer.execute(path, own, command, None), None
        stream, far_end = socket.socketpair()
        try:
            with far_end:
                called = await peer.execute(path, own, command, far_end)
        except BaseException:
            stream.close()
            raise
        if _is_hung_up(stream):          # a daemon that takes no descriptors has thrown its end away
            stream.close()
            return called, None
        return called, stream


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _is_hung_up(stream: socket.socket) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return bool(poll.poll(0))
