"""A qube's agent in every state it can get into: hostile programs of the qube ask, the host answers in any order, comes and goes.

A machine of Hypothesis beside a table of what must be: who has asked, who has an answer. An answer reaches the program that asked
and no other, whatever the others do meanwhile; at the end nothing is left open.
"""
from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.qrexec.agents import PEER, PORT, XID, Host, Stream

from cloison.wire import qrexec
from cloison.wire.mux import Address
from cloison.wire.qrexec import Terminated, Trigger

INDEX = st.integers(0, 7)
PORTS = st.integers(PORT, PORT + 40)
GOOD = qrexec.trigger_service4("", "@default", qrexec.request_id("SOCKET"), "test.S")
HOSTILE = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.builds(lambda kind, body: qrexec.HEADER.pack(kind, len(body)) + body, st.integers(0x1FE, 0x216), st.binary(max_size=160)),
    st.builds(qrexec.HEADER.pack, st.sampled_from([0x210, 0x212, 0x213]), st.sampled_from([0, 160, 161, 65160, 65161, 2**32 - 1])),
)


@dataclass
class Program:
    """One that has asked. `ident` is what the agent calls it before the host."""

    stream: Stream
    ident: bytes
    port: int = 0                        # of the host's answer


class States(RuleBasedStateMachine):
    """An agent, a daemon, which is played here, and programs of the qube."""

    def __init__(self) -> None:
        super().__init__()
        self.before = len(os.listdir("/proc/self/fd"))
        self.folder = Path(tempfile.mkdtemp(prefix="agent-states-"))
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, fault: self.faults.append(fault))
        self.asking: list[Program] = []
        self.running: list[Program] = []
        self.gone: list[bytes] = []      # request ids of programs that hung up before their answer
        self.do(self.make())

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    async def make(self) -> None:
        self.place = Host(self.folder)
        await self.place.connect()

    async def ask(self) -> Program:
        stream = await self.place.program()
        await stream.send(GOOD)
        trigger = await self.place.daemon.next()
        assert isinstance(trigger, Trigger)
        return Program(stream, trigger.request_id)

    async def settle(self) -> None:
        """Until the agent has done with all before: it asks for this program, whom the host refuses."""
        last = await self.ask()
        await self.place.daemon.send(qrexec.service_refused(last.ident))
        assert await self.place.raw(last.stream, 8) == b""

    @rule()
    def asks(self) -> None:
        async def work() -> None:
            self.asking.append(await self.ask())

        self.do(work())

    @rule(message=HOSTILE, then_hangs_up=st.booleans())
    def hostile_program(self, message: bytes, then_hangs_up: bool) -> None:
        """What it says is no request: the next thing the daemon hears is somebody else's."""
        async def work() -> None:
            program = await self.place.program()
            await program.send(message)
            if then_hangs_up:
                program.close()
            await self.settle()

        self.do(work())

    @precondition(lambda self: self.asking)
    @rule(index=INDEX, port=PORTS)
    def accepted(self, index: int, port: int) -> None:
        async def work() -> None:
            program = self.asking.pop(index % len(self.asking))
            program.port = port
            await self.place.daemon.send(qrexec.service_connect(PEER, port, program.ident))
            assert await self.place.raw(program.stream, 8) == qrexec.PARAMS.pack(PEER, port)
            self.running.append(program)

        self.do(work())

    @precondition(lambda self: self.asking)
    @rule(index=INDEX)
    def refused(self, index: int) -> None:
        async def work() -> None:
            program = self.asking.pop(index % len(self.asking))
            await self.place.daemon.send(qrexec.service_refused(program.ident))
            assert await self.place.raw(program.stream, 8) == b""

        self.do(work())

    @precondition(lambda self: self.asking)
    @rule(index=INDEX)
    def hangs_up_before_its_answer(self, index: int) -> None:
        async def work() -> None:
            program = self.asking.pop(index % len(self.asking))
            program.stream.close()
            await self.settle()
            self.gone.append(program.ident)

        self.do(work())

    @precondition(lambda self: self.running)
    @rule(index=INDEX, message=HOSTILE, says=st.booleans())
    def ends_its_call(self, index: int, message: bytes, says: bool) -> None:
        """By hanging up, or by saying more than it may: either way the daemon hears that the port is free."""
        async def work() -> None:
            program = self.running.pop(index % len(self.running))
            if says:
                await program.stream.send(message)
            else:
                program.stream.close()
            assert await self.place.daemon.next() == Terminated(PEER, program.port)

        self.do(work())

    @precondition(lambda self: self.gone)
    @rule(index=INDEX, port=PORTS, accepts=st.booleans())
    def answer_to_one_that_is_gone(self, index: int, port: int, accepts: bool) -> None:
        async def work() -> None:
            ident = self.gone.pop(index % len(self.gone))
            if accepts:
                await self.place.daemon.send(qrexec.service_connect(PEER, port, ident))
                assert await self.place.daemon.next() == Terminated(PEER, port)
            else:
                await self.place.daemon.send(qrexec.service_refused(ident))
            await self.settle()

        self.do(work())

    @rule(ident=st.sampled_from(["", "a", "SOCKET0", "SOCKET999999"]), port=PORTS, accepts=st.booleans())
    def answer_to_nobody(self, ident: str, port: int, accepts: bool) -> None:
        async def work() -> None:
            unknown = qrexec.request_id(ident)
            if accepts:
                await self.place.daemon.send(qrexec.service_connect(PEER, port, unknown))
                assert await self.place.daemon.next() == Terminated(PEER, port)
            else:
                await self.place.daemon.send(qrexec.service_refused(unknown))
            await self.settle()

        self.do(work())

    @rule(breaks=st.booleans())
    def daemon_comes_back(self, breaks: bool) -> None:
        """After it hung up, or broke the protocol: who waits is hung up on, who has its answer goes on."""
        async def work() -> None:
            self.asking.append(await self.ask())
            if breaks:
                await self.place.daemon.send(qrexec.HEADER.pack(0x7777, 0))
                assert await self.place.daemon.next() is None
            self.place.daemon.close()
            for program in self.asking:
                assert await self.place.raw(program.stream, 8) == b""
            self.asking.clear()
            self.gone.clear()
            self.place.channels.listen(Address(XID, 0, qrexec.CONTROL_PORT), self.place.agent.opened)
            await self.place.connect()
            await self.settle()

        self.do(work())

    @invariant()
    def the_agents_table_is_ours(self) -> None:
        asking = self.place.agent.triggers._asking
        assert set(asking) == {program.ident for program in self.asking} | set(self.gone)
        assert {ident for ident, client in asking.items() if client is None} == set(self.gone)

    @invariant()
    def nothing_is_raised(self) -> None:
        assert self.faults == []

    def teardown(self) -> None:
        self.do(self.place.close())
        self.loop.close()
        shutil.rmtree(self.folder)
        assert self.faults == []
        assert len(os.listdir("/proc/self/fd")) == self.before


def test_qsb_010_no_sequence_of_programs_and_answers_confuses_the_agent() -> None:
    run_state_machine_as_test(States, settings=settings(
        max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)))
