"""Disks that come and go, against a QEMU that refuses any one step: what is undone, and which slots and names stay taken."""
from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
from qemu.qmp import ExecuteError
from qemu.qmp.message import Message
from qemu.qmp.models import ErrorResponse
from tests.patience import PATIENCE

from cloison.errors import MachineError
from cloison.hypervisor.qemu.hotplug import PORTS, HotPlug
from cloison.hypervisor.qemu.monitor import Monitor


class Qemu:
    """Its monitor and how it answers: refuses what is in `refused`, in those words if there are any, and writes the rest down."""

    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, Any]]] = []
        self.sent: list[int] = []
        self.refused: dict[str, BaseException | None] = {}
        self.events: list[str] = []                   # disks that the guest has let go of
        self.waiting_for_what: list[str] = []
        self.plugs = HotPlug(cast(Monitor, self), self._execute)

    async def _execute(self, command: str, arguments: dict[str, Any]) -> object:
        if command in self.refused:
            raise MachineError(f"no {command}") from self.refused[command]
        self.done.append((command, arguments))
        return {}

    def send_fd_scm(self, fd: int) -> None:
        self.sent.append(fd)

    @contextlib.contextmanager
    def waiting_for(self, name: str) -> Iterator[AsyncIterator[dict[str, object]]]:
        self.waiting_for_what.append(name)
        yield self._events()

    async def _events(self) -> AsyncIterator[dict[str, object]]:
        while self.events:
            yield {"event": "DEVICE_DELETED", "data": {"device": self.events.pop(0)}}
        await asyncio.Event().wait()

    @property
    def commands(self) -> list[str]:
        return [command for command, _ in self.done]

    async def plug(self, name: str = "xvdi", *, read_only: bool = False) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await self.plugs.plug(name, ours, read_only=read_only)
            assert ours.fileno() >= 0, "the stream is its owner's"


def refusal(kind: str) -> ExecuteError:
    answer = Message({"error": {"class": kind, "desc": "no"}})
    return ExecuteError(ErrorResponse(answer), Message({}), answer)


def with_qemu(work: Callable[[Qemu], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE):
            await work(Qemu())

    asyncio.run(run())


@pytest.mark.parametrize("read_only", [True, False])
def test_a_disk_is_a_descriptor_then_a_graph_then_a_device(read_only: bool) -> None:
    async def work(qemu: Qemu) -> None:
        await qemu.plug(read_only=read_only)
        (first, name), (second, graph), (third, device) = qemu.done
        assert (first, second, third) == ("getfd", "blockdev-add", "device_add") and len(qemu.sent) == 1
        assert name == {"fdname": "nbd-xvdi"} and graph["file"]["server"] == {"type": "fd", "str": "nbd-xvdi"}
        assert graph["driver"] == "raw" and graph["file"]["driver"] == "nbd", "stated, and never probed"
        assert {part[key] for part in (graph, graph["file"]) for key in ("read-only",)} == {read_only}
        assert {part["auto-read-only"] for part in (graph, graph["file"])} == {False}
        assert (device["drive"], device["serial"], device["bus"]) == (graph["node-name"], "xvdi", PORTS[0])
        assert device["werror"] == device["rerror"] == "report", "no other qube may stop the machine"

    with_qemu(work)


@pytest.mark.parametrize(("refused", "done"), [
    (["getfd"], []), (["blockdev-add"], ["getfd", "closefd"]), (["blockdev-add", "closefd"], ["getfd"]),
    (["device_add"], ["getfd", "blockdev-add", "blockdev-del"]),
])
def test_a_step_that_is_refused_undoes_those_before_it_and_frees_name_and_slot(refused: list[str], done: list[str]) -> None:
    async def work(qemu: Qemu) -> None:
        qemu.refused = dict.fromkeys(refused)
        for _ in range(len(PORTS) + 1):
            with pytest.raises(MachineError, match=refused[0]):
                await qemu.plug()
        assert qemu.commands == done * (len(PORTS) + 1)
        undone = {command: arguments for command, arguments in qemu.done if command in ("closefd", "blockdev-del")}
        assert undone in ({}, {"closefd": {"fdname": "nbd-xvdi"}}, {"blockdev-del": {"node-name": "block-xvdi"}})
        qemu.refused, qemu.done = {}, []
        await qemu.plug()
        assert qemu.done[-1][1]["bus"] == PORTS[0]

    with_qemu(work)


def test_each_has_a_slot_of_its_own_until_none_is_left_and_one_that_left_gives_its_back() -> None:
    async def work(qemu: Qemu) -> None:
        for number in range(len(PORTS)):
            await qemu.plug(f"xvd{number}")
        assert [arguments["bus"] for command, arguments in qemu.done if command == "device_add"] == list(PORTS)
        assert len(PORTS) == 6 and not {"port0", "port1"} & set(PORTS), "the first two are for a screen and a link"
        done = len(qemu.done)
        for name, why in (("xvdz", "no slot"), ("xvd1", "no slot")):
            with pytest.raises(MachineError, match=why):
                await qemu.plug(name)
        assert len(qemu.done) == done
        qemu.events = ["plugged-xvd3"]
        await qemu.plugs.unplug("xvd3")
        with pytest.raises(MachineError, match="xvd1 is taken"):
            await qemu.plug("xvd1")
        await qemu.plug("xvdz")
        assert qemu.done[-1][1]["bus"] == PORTS[3]

    with_qemu(work)


def test_a_disk_is_gone_when_its_guest_has_let_go_and_not_before() -> None:
    async def work(qemu: Qemu) -> None:
        await qemu.plug()
        qemu.done, qemu.events = [], ["plugged-other"]
        leaving = asyncio.ensure_future(qemu.plugs.unplug("xvdi"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not leaving.done() and qemu.done == [("device_del", {"id": "plugged-xvdi"})]
        assert qemu.waiting_for_what == ["DEVICE_DELETED"]
        leaving.cancel()
        await asyncio.wait([leaving])
        with pytest.raises(MachineError, match="taken"):
            await qemu.plug()
        qemu.events = ["plugged-other", "plugged-xvdi"]
        await qemu.plugs.unplug("xvdi")                    # a later call takes it up
        assert qemu.done[-1] == ("blockdev-del", {"node-name": "block-xvdi"})
        with pytest.raises(MachineError, match="there is no disk"):
            await qemu.plugs.unplug("xvdi")
        await qemu.plug()

    with_qemu(work)


@pytest.mark.parametrize(("kind", "waits"), [("DeviceNotFound", False), ("GenericError", True)])
def test_one_that_was_asked_for_before_is_waited_for_and_one_that_has_left_is_not(kind: str, waits: bool) -> None:
    async def work(qemu: Qemu) -> None:
        await qemu.plug()
        qemu.refused = {"device_del": refusal(kind)}
        qemu.events = ["plugged-xvdi"]
        await qemu.plugs.unplug("xvdi")
        assert qemu.events == ([] if waits else ["plugged-xvdi"])
        assert qemu.commands[-1] == "blockdev-del"

    with_qemu(work)


def test_a_machine_that_has_ended_lets_go_of_nothing() -> None:
    async def work(qemu: Qemu) -> None:
        await qemu.plug()
        qemu.refused = {"device_del": None}                # no answer of QEMU's
        with pytest.raises(MachineError, match="device_del"):
            await qemu.plugs.unplug("xvdi")
        assert qemu.commands == ["getfd", "blockdev-add", "device_add"]

    with_qemu(work)
