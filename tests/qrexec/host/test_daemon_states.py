"""The host's daemon in every state it can get into, with a hostile agent at one end and hostile callers at the other.

A machine of Hypothesis: each step is something that a guest or a program of the host may do, right or wrong. After each the tables
agree with each other, whatever is broken cost the guest its port and nothing else, and at the end nothing is left open.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from tests.qrexec.served_qube import XID, Caller, Qube
from tests.runtime.ports import Recorder, Side

from cloison.errors import PeerError
from cloison.runtime.port import Channels, Handler
from cloison.wire import qrexec
from cloison.wire.mux import Address

PEER = 9
BARRIER = b"all before this is read"
KINDS = st.sampled_from([0x190, 0x191, 0x192, 0x193, 0x194, *range(0x200, 0x203), *range(0x210, 0x216), 0x300, 0x301])
HOSTILE = st.one_of(
    st.binary(min_size=1, max_size=64),
    st.builds(lambda kind, body: qrexec.HEADER.pack(kind, len(body)) + body, KINDS, st.binary(max_size=300)),
    st.builds(qrexec.HEADER.pack, KINDS, st.sampled_from([0, 1, 159, 160, 161, 65160, 65161, 2**32 - 1])),
)
INDEX = st.integers(0, 5)
MOSTLY = st.sampled_from([True, True, True, True, False])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class HostService(Recorder):
    """A call that the host serves, till either end has had enough."""

    def __init__(self, port: Channels, address: Address, done: Callable[[], None]) -> None:
        super().__init__(port)
        self._done = done
        self.channel = port.open(address, self)

    def closed(self) -> None:
        super().closed()
        self._done()

    def finish(self) -> None:
        if not self.ended:
            self.port.close(self.channel)
            self.closed()


class States(RuleBasedStateMachine):
    """A daemon, its guest, which is played here, and its callers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = descriptors()
        self.folder = Path(tempfile.mkdtemp(prefix="daemon-states-"))
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, fault: self.faults.append(fault))
        self.callers: list[Caller] = []
        self.streams: list[socket.socket] = []
        self.channels: list[Recorder] = []                   # that the guest has
        self.services: list[HostService] = []
        self.waiting: list[bytes] = []                       # request ids that nobody has answered
        self.ports: list[int] = []                           # that the guest was ever told of
        self.abrupt = False
        self.do(self.make())

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    async def make(self) -> None:
        self.qube = Qube(self.folder, scripted=True)
        daemon = self.qube.daemon
        daemon.asked = lambda trigger: self.waiting.append(trigger.request_id)
        daemon.answerable = self.waiting.__contains__
        daemon.on_restart = self.waiting.clear
        accept_control = self.qube.guest.accept

        def accept(channel: int, address: Address) -> Handler | None:
            if address.port == qrexec.CONTROL_PORT:
                return accept_control(channel, address)
            self.channels.append(Recorder(self.qube.guest.port, channel))
            return self.channels[-1]

        await self.qube.scripted_control()
        self.qube.guest.accept = accept

    @property
    def over(self) -> bool:
        return bool(self.qube.host.reasons or self.qube.guest.reasons)

    @property
    def greeted(self) -> bool:
        return self.qube.daemon._greeted

    async def settle(self) -> None:
        """Until each end has read what the other had sent before, and answered."""
        guest, host = self.qube.guest, self.qube.host
        for side, other in ((guest, host), (host, guest), (guest, host)):
            if not self.over:
                seen = len(other.controls)
                side.port.control(BARRIER)
                await other.until(partial(self._heard, other, seen))

    def _heard(self, side: Side, seen: int) -> bool:
        return len(side.controls) > seen or self.over

    def say(self, message: bytes) -> None:
        """On the guest's control channel."""
        async def work() -> None:
            assert self.qube.control is not None
            self.qube.control.send(message)
            await self.settle()

        self.do(work())

    @initialize(greets=MOSTLY, abrupt=st.booleans())
    def begins(self, greets: bool, abrupt: bool) -> None:
        """`abrupt`: the daemon ends while calls run."""
        self.abrupt = abrupt
        self.first_words(greets)

    def first_words(self, greets: bool) -> None:
        if greets:
            self.say(qrexec.hello(4))

    @precondition(lambda self: self.over)
    @rule(greets=MOSTLY)
    def another_guest(self, greets: bool) -> None:
        """What the warden did with the former one is to end it."""
        self.do(self.end())
        for gone in (self.callers, self.streams, self.channels, self.services, self.waiting, self.ports):
            gone.clear()
        self.do(self.make())
        self.first_words(greets)

    # -- the guest -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.over and not self.greeted)
    @rule(version=st.sampled_from([2, 3, 4, 5, 2**32 - 1]))
    def hello(self, version: int) -> None:
        self.say(qrexec.hello(version))

    @precondition(lambda self: not self.over and self.greeted)
    @rule(ident=st.sampled_from(["", "a", "SOCKET1"]), service=st.sampled_from(["a", "test.Cat+x", "a+" + "b" * 60000]))
    def trigger(self, ident: str, service: str) -> None:
        self.say(qrexec.trigger_service4("", "@default", qrexec.request_id(ident), service))

    @precondition(lambda self: not self.over)
    @rule(message=HOSTILE, spare=MOSTLY)
    def break_the_protocol(self, message: bytes, spare: bool) -> None:
        """Now and then: each time it is the end of this guest."""
        if not spare:
            self.say(message)

    @precondition(lambda self: not self.over and self.greeted)
    @rule(domain=st.sampled_from([0, XID, PEER]), index=INDEX, other=st.integers(513, 768))
    def terminated(self, domain: int, index: int, other: int) -> None:
        self.say(qrexec.connection_terminated(domain, self.ports[index] if index < len(self.ports) else other))

    @precondition(lambda self: not self.over and self.greeted and self.ports)
    @rule(index=INDEX, domain=st.sampled_from([0, PEER]), data=st.binary(max_size=40))
    def open_data_channel(self, index: int, domain: int, data: bytes) -> None:
        async def work() -> None:
            channel = self.qube.guest.recorder(Address(domain, XID, self.ports[index % len(self.ports)]))
            channel.send(data)
            self.channels.append(channel)
            await self.settle()

        self.do(work())

    @precondition(lambda self: not self.over and self.channels)
    @rule(index=INDEX, data=st.binary(max_size=40))
    def use_data_channel(self, index: int, data: bytes) -> None:
        """Or close it, with nothing to say."""
        async def work() -> None:
            channel = self.channels[index % len(self.channels)]
            if not channel.ended:
                if data:
                    channel.send(data)
                else:
                    channel.ended = True
                    self.qube.guest.port.close(channel.channel)
            await self.settle()

        self.do(work())

    @precondition(lambda self: not self.over and (self.callers or self.waiting))
    @rule(greets=MOSTLY)
    def agent_restarts(self, greets: bool) -> None:
        self.do(self.restart())
        if greets and not self.over:
            self.say(qrexec.hello(4))

    async def restart(self) -> None:
        former = self.qube.control
        assert former is not None
        self.qube.guest.port.close(former.channel)
        await self.qube.guest.until(lambda: self.qube.control is not former or self.over)
        await self.settle()
        assert self.waiting == []                            # nobody waits for what died with the agent

    # -- callers -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.over and self.greeted and len(self.callers) < 6)
    @rule(service=st.booleans(), kind=st.sampled_from([qrexec.EXEC_CMDLINE, qrexec.JUST_EXEC]))
    def call(self, service: bool, kind: int) -> None:
        async def work() -> None:
            caller = self.qube.caller("test.Cat", kind=kind) if service else self.qube.command("true", kind=kind)
            self.callers.append(caller)
            told = await caller.request()
            assert told is not None and told.domain == XID
            self.ports.append(told.port)
            await self.settle()

        self.do(work())

    @precondition(lambda self: not self.over and self.greeted and len(self.callers) < 6)
    @rule(known=MOSTLY)
    def answer_for_the_daemon(self, known: bool) -> None:
        """As a program of the host that was asked elsewhere."""
        async def work() -> None:
            ident = self.waiting[0] if known else qrexec.request_id("nobody-waits-for-this")
            self.callers.append(self.qube.answering(ident))
            told = await self.callers[-1].request()
            assert (told is not None) == known
            if told is not None:
                self.waiting.remove(ident)
                self.ports.append(told.port)
            await self.settle()

        if self.somebody_waits():
            self.do(work())

    @precondition(lambda self: self.callers)
    @rule(index=INDEX, whole=st.booleans())
    def caller_goes(self, index: int, whole: bool) -> None:
        async def work() -> None:
            caller = self.callers.pop(index % len(self.callers))
            (caller if whole else caller.data).__exit__(None, None, None)
            caller.__exit__()
            await self.settle()

        self.do(work())

    @precondition(lambda self: self.callers)
    @rule(index=INDEX, data=st.binary(min_size=1, max_size=100))
    def caller_sends(self, index: int, data: bytes) -> None:
        async def work() -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.callers[index % len(self.callers)].data.send(data)
            await self.settle()

        self.do(work())

    @precondition(lambda self: not self.over and self.greeted)
    @rule(data=HOSTILE, greets=st.booleans())
    def hostile_caller(self, data: bytes, greets: bool) -> None:
        async def work() -> None:
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(self.folder / "qrexec.work"))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    stream.send((qrexec.hello(4) if greets else b"") + data)
                await self.settle()
            await self.settle()

        self.do(work())

    # -- decisions -----------------------------------------------------------------------------------------------------

    def somebody_waits(self) -> bool:
        """The guest asks, if it hasn't; a message that it has left half said swallows that."""
        if not self.waiting:
            self.say(qrexec.trigger_service4("", "@default", qrexec.request_id("a"), "test.Cat"))
        return bool(self.waiting) and not self.over

    @precondition(lambda self: not self.over and self.greeted)
    @rule()
    def refuse(self) -> None:
        async def work() -> None:
            self.qube.daemon.refuse(self.waiting.pop(0))
            await self.settle()

        if self.somebody_waits():
            self.do(work())

    @precondition(lambda self: not self.over and self.greeted)
    @rule()
    def serve_here(self) -> None:
        def serve(port: Channels, address: Address, done: Callable[[], None]) -> None:
            self.ports.append(address.port)
            self.services.append(HostService(port, address, done))

        async def work() -> None:
            self.qube.daemon.connect_host(self.waiting.pop(0), serve)
            await self.settle()

        if self.somebody_waits():
            self.do(work())

    @precondition(lambda self: not self.over and self.greeted)
    @rule(port=st.integers(513, 768), has_stream=st.booleans())
    def serve_in_another_qube(self, port: int, has_stream: bool) -> None:
        async def work() -> None:
            ident = self.waiting.pop(0)
            ours, theirs = socket.socketpair()
            self.streams.append(theirs)
            try:
                self.qube.daemon.connect_peer(ident, PEER, port, ours if has_stream else None)
            except PeerError:
                assert not has_stream
            if not has_stream:
                ours.close()
            await self.settle()

        if self.somebody_waits():
            self.do(work())

    @precondition(lambda self: self.services)
    @rule(index=INDEX, data=st.binary(max_size=40))
    def host_service(self, index: int, data: bytes) -> None:
        async def work() -> None:
            service = self.services[index % len(self.services)]
            if data and not service.ended:
                service.send(data)
            else:
                service.finish()
            await self.settle()

        self.do(work())

    @precondition(lambda self: self.streams)
    @rule(index=INDEX, data=st.binary(max_size=40))
    def other_qube(self, index: int, data: bytes) -> None:
        async def work() -> None:
            stream = self.streams[index % len(self.streams)]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if data:
                    stream.send(data)
                else:
                    stream.shutdown(socket.SHUT_RDWR)
            await self.settle()

        self.do(work())

    # -- always --------------------------------------------------------------------------------------------------------

    @invariant()
    def tables_agree(self) -> None:
        daemon = self.qube.daemon
        assert {port: use.peer for port, use in daemon._uses.items()} == daemon._ports._peers
        assert all(use.parts for use in daemon._uses.values())

    @invariant()
    def nothing_is_raised_and_a_violation_ends_the_port(self) -> None:
        assert self.faults == []
        assert len(self.qube.violations) <= 1
        assert bool(self.qube.host.reasons) == bool(self.qube.violations)

    async def all_go(self) -> None:
        """Whoever has a part in a call lets go of it."""
        for caller in self.callers:
            caller.__exit__()
        for stream in self.streams:
            stream.close()
        for service in self.services:
            service.finish()
        for channel in self.channels:
            if not channel.ended:
                self.qube.guest.port.close(channel.channel)
        await self.settle()

    def every_port_comes_back(self) -> None:
        """Whatever has happened, once the agent says that it has done with them."""
        self.do(self.restart())
        self.say(qrexec.hello(4))
        self.do(self.all_go())
        for port, use in list(self.qube.daemon._uses.items()):
            self.say(qrexec.connection_terminated(use.peer, port))
        assert self.qube.daemon._uses == {} or self.over

    async def end(self) -> None:
        if self.abrupt:
            self.qube.daemon.close()
        await self.all_go()
        self.qube.__exit__()
        await asyncio.to_thread(len, "")                     # a turn of the loop: what was closed is let go of

    def teardown(self) -> None:
        if not self.over and not self.abrupt:
            self.every_port_comes_back()
        self.do(self.end())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)
        assert self.faults == []
        assert descriptors() == self.before


def test_qsb_010_no_sequence_of_messages_and_callers_confuses_the_daemon() -> None:
    run_state_machine_as_test(States, settings=settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)))
