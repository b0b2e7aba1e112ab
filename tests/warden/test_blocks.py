"""Attached devices with a made-up qube at the other end: one that serves, and ones that say nothing, anything, or stop."""
from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.machine import tiny
from tests.descriptors import opened, watchers
from tests.patience import PATIENCE

from cloison.errors import MachineError
from cloison.hypervisor import fake
from cloison.hypervisor.fake import FakeMachine
from cloison.runtime import unix
from cloison.runtime.paths import Paths
from cloison.warden import block_link, blocks
from cloison.warden.block_link import BlockLink
from cloison.warden.blocks import Blocks
from cloison.wire import qrexec
from cloison.wire.blocks import Block, to_json

BLOCK = Block("xvdi", "00000000-0000-4000-8000-00000000000b", "sda1", read_only=True)
SERVED = [(qrexec.STDERR, b"ready 4096\n")]
WHEN_ASKED = (0, b"")
GREAT = 1 << 20


class Backend:
    """The qrexec daemon of the other qube, and the service it starts: says `script`, then waits for its caller to go."""

    def __init__(self, paths: Paths, script: list[tuple[int, bytes]], *, version: int = qrexec.VERSION) -> None:
        self._listener = unix.listen(f"{paths.qubes}/qrexec.uuid:{BLOCK.backend}", 8)
        self._script, self._version = script, version
        self.command = ""
        self.stream: socket.socket | None = None        # the data channel
        self.refuse = False
        self.may_answer = asyncio.Event()               # what WHEN_ASKED in the script waits for
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()      # parts of the service's input
        self.left = asyncio.Event()                     # the caller has gone
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            control, _ = await loop.sock_accept(self._listener)
            with control:
                control.setblocking(False)
                decoder, fds = qrexec.Decoder(qrexec.FROM_CLIENT), list[int]()
                while not self.command:
                    readable = asyncio.Event()
                    loop.add_reader(control, readable.set)
                    await readable.wait()
                    loop.remove_reader(control)
                    data, more, _, _ = socket.recv_fds(control, 4096, 4)
                    fds += more
                    decoder.feed(data)
                    while (message := decoder.next_message()) is not None:
                        if isinstance(message, qrexec.Exec):
                            self.command = message.command
                self.stream = socket.socket(fileno=fds[0])
                if not self.refuse:
                    await self._call(control, self.stream)
                self.stream.close()

    async def _call(self, control: socket.socket, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        allocated = qrexec.allocated(qrexec.EXEC_CMDLINE, 7, 513)
        await loop.sock_sendall(control, qrexec.hello(qrexec.SOCKET_VERSION) + allocated)
        stream.setblocking(False)
        await loop.sock_sendall(stream, qrexec.hello(self._version))
        for kind, data in self._script:
            if (kind, data) == WHEN_ASKED:
                await self.may_answer.wait()
                continue
            for piece in qrexec.data(kind, data) if data else [qrexec.end_of_stream(kind)]:
                await loop.sock_sendall(stream, piece)
        decoder = qrexec.Decoder(qrexec.FROM_CALLER)
        try:
            while untrusted := await loop.sock_recv(stream, 65536):
                decoder.feed(untrusted)
                while (message := decoder.next_message()) is not None:
                    if isinstance(message, qrexec.Data):
                        self.heard.put_nowait(message.payload)
        except ConnectionResetError:
            pass
        self.left.set()

    def end(self) -> None:
        """The qube is killed."""
        self._task.cancel()
        self._listener.close()
        if self.stream is not None:
            self.stream.close()


class Scene:
    def __init__(self, paths: Paths, machine: FakeMachine, script: list[tuple[int, bytes]]) -> None:
        self.events: list[dict[str, object]] = []
        self._news = asyncio.Event()
        self.machine, self.backend = machine, Backend(paths, script)
        self.blocks = Blocks(paths, machine, self._event)

    def _event(self, message: dict[str, object]) -> None:
        self.events.append(message)
        self._news.set()

    async def event(self, name: str) -> dict[str, object]:
        while True:
            for message in self.events:
                if message["event"] == name:
                    return message
            self._news.clear()
            await self._news.wait()

    async def attach(self) -> None:
        await self.blocks.attach(to_json(BLOCK))

    async def fails(self, why: str) -> None:
        """To attach; and nothing is left of it."""
        with pytest.raises(MachineError, match=why):
            await self.attach()
        assert self.blocks.listing() == [] and self.machine.plugged == {} and self.events == []


def play(tmp_path: Path, scenario: Callable[[Scene], Awaitable[None]], script: list[tuple[int, bytes]] = SERVED) -> None:
    async def run() -> None:
        paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
        paths.ensure()
        machine = FakeMachine(tiny(tmp_path))
        async with asyncio.timeout(PATIENCE):
            with await machine.start():
                scene = Scene(paths, machine, script)
                try:
                    await scenario(scene)
                finally:
                    scene.blocks.close()
                    scene.backend.end()
                    machine.kill()
                    await machine.wait()

    asyncio.run(run())


def test_attached_and_detached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_link, "END_TIME", 0.01)       # this backend would write for ever

    async def scenario(scene: Scene) -> None:
        await scene.attach()
        assert scene.backend.command == "root:QUBESRPC cloison.Block+sda1+r dom0"
        assert scene.blocks.listing() == [to_json(BLOCK)] == [(await scene.event("block-attached"))["block"]]
        with pytest.raises(MachineError, match="taken"):
            await scene.attach()
        await scene.blocks.detach("xvdi")
        await scene.backend.left.wait()
        assert scene.blocks.listing() == [] and scene.machine.plugged == {}
        with pytest.raises(MachineError, match="not attached"):
            await scene.blocks.detach("xvdi")
        assert [event["event"] for event in scene.events] == ["block-attached"]

    play(tmp_path, scenario)


def test_bytes_go_both_ways_while_one_side_is_slow(tmp_path: Path) -> None:
    """More than any buffer holds, towards a machine that reads late: the link waits for it, and then goes on."""
    async def scenario(scene: Scene) -> None:
        await scene.attach()
        stream, loop, got = scene.machine.plugged["xvdi"], asyncio.get_running_loop(), 0
        scene.backend.may_answer.set()
        sending = asyncio.ensure_future(loop.sock_sendall(stream, b"x" * GREAT))
        while got < GREAT:
            got += len(await loop.sock_recv(stream, 1 << 16))
        assert got == GREAT
        await sending

    play(tmp_path, scenario, [*SERVED, WHEN_ASKED, (qrexec.STDOUT, b"y" * GREAT)])


def test_what_the_machine_says_after_the_handshake_is_the_backends_alone(tmp_path: Path) -> None:
    """Also what comes in one piece with the handshake's end; the backend hears nothing of the handshake itself."""
    async def scenario(scene: Scene) -> None:
        await scene.attach()
        await asyncio.get_running_loop().sock_sendall(scene.machine.plugged["xvdi"], b"the first request")
        assert await scene.backend.heard.get() == b"the first request"

    play(tmp_path, scenario)


@pytest.mark.parametrize("early", [b"NBDMAGICIHAVEOPT\0\3", b"NBDMAGIC", b"x", b"y" * 100_000])
def test_lesson_44_a_backend_that_speaks_first_is_thrown_out(tmp_path: Path, early: bytes) -> None:
    """It could hold up the whole qube with half a handshake."""
    async def scenario(scene: Scene) -> None:
        with contextlib.suppress(MachineError):
            await scene.attach()
            await scene.event("block-lost")
        assert scene.blocks.listing() == []

    play(tmp_path, scenario, [*SERVED, (qrexec.STDOUT, early)])


def test_lesson_44_a_silent_backend_keeps_no_machine_waiting(tmp_path: Path) -> None:
    """It answers nothing once it has told its size, and the machine has its disk all the same."""
    async def scenario(scene: Scene) -> None:
        await scene.attach()
        assert scene.blocks.listing() == [to_json(BLOCK)]

    play(tmp_path, scenario, SERVED)


def test_a_backend_that_goes_takes_the_disk_along(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.attach()
        scene.backend.end()
        assert (await scene.event("block-lost"))["name"] == "xvdi"
        assert scene.blocks.listing() == []
        with pytest.raises(MachineError, match="not attached"):
            await scene.blocks.detach("xvdi")

    play(tmp_path, scenario)


def test_a_guest_that_lets_go_of_nothing_loses_it_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "UNPLUG_TIME", 0.0)

    async def scenario(scene: Scene) -> None:
        await scene.attach()
        scene.machine.clings = True
        await scene.blocks.detach("xvdi")
        await scene.backend.left.wait()
        assert scene.blocks.listing() == []
        with pytest.raises(MachineError, match="taken"):       # its slot is not free yet
            await scene.attach()
        scene.machine.let_go.set()

    play(tmp_path, scenario)


def test_a_machine_that_waits_for_others_waits_not_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "STUCK_TIME", 0.0)

    async def scenario(scene: Scene) -> None:
        await scene.attach()
        scene.blocks.patience()
        await scene.event("block-lost")

    play(tmp_path, scenario)


@pytest.mark.parametrize(("script", "why"), [
    ([(qrexec.STDERR, b"sda1 can't be opened: it is in use\x1b[31m\n"), (qrexec.STDERR, b""), (qrexec.STDOUT, b"")],
     r"in use_\[31m"),
    ([(qrexec.STDERR, b"x" * 100_000)], "x" * 300), ([(qrexec.STDERR, b"")], "it says nothing"),
    ([(qrexec.STDERR, b"ready\n"), (qrexec.STDERR, b"")], "ready"),
    ([(qrexec.STDERR, b"ready 0\n"), (qrexec.STDERR, b"")], "ready 0"),
    ([(qrexec.STDERR, b"ready -1\n"), (qrexec.STDERR, b"")], "ready -1"),
    ([(qrexec.STDERR, b"ready " + b"9" * 20 + b"\n"), (qrexec.STDERR, b"")], "ready 9"),
])
def test_lesson_44_a_backend_that_does_not_serve(tmp_path: Path, script: list[tuple[int, bytes]], why: str) -> None:
    play(tmp_path, lambda scene: scene.fails(why), script)


def test_lesson_44_a_backend_that_leaves_the_protocol(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.backend._version = 1
        await scene.fails("it says nothing")

    play(tmp_path, scenario)


def test_a_refused_call_and_a_qube_that_does_not_run(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.backend.refuse = True
        await scene.fails("refused")
        scene.backend.end()
        await scene.fails("does not serve")

    play(tmp_path, scenario)


def test_lesson_44_a_backend_that_keeps_us_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_link, "READY_TIME", 0.2)
    play(tmp_path, lambda scene: scene.fails("does not answer"), [])


@pytest.mark.parametrize("bad", [None, {}, {**to_json(BLOCK), "name": "vda"}, {**to_json(BLOCK), "port": "a b"}])
def test_an_order_that_makes_no_sense(tmp_path: Path, bad: object) -> None:
    async def scenario(scene: Scene) -> None:
        with pytest.raises(MachineError, match="not a block device"):
            await scene.blocks.attach(bad)

    play(tmp_path, scenario)


def test_a_machine_that_throws_its_server_out_has_the_device_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As QEMU does when what it is told is no NBD."""
    monkeypatch.setattr(block_link, "END_TIME", 0.0)

    async def scenario(scene: Scene) -> None:
        await scene.attach()
        scene.machine.plugged["xvdi"].close()
        await scene.event("block-lost")
        await scene.backend.left.wait()

    play(tmp_path, scenario)




@pytest.mark.parametrize("how", ["refused", "refused after the handshake", "given up"])
def test_a_disk_that_the_machine_does_not_take_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The other qube's caller is gone, and the name is free."""
    kept: list[socket.socket] = []

    async def scenario(scene: Scene) -> None:
        asked, plugged = asyncio.Event(), scene.machine.plug

        async def plug(name: str, stream: socket.socket, *, read_only: bool) -> None:
            asked.set()
            if how == "refused after the handshake":
                await plugged("other", stream, read_only=read_only)       # which goes on to have its end open
                kept.append(scene.machine.plugged.pop("other"))
            if how != "given up":
                raise MachineError("no slot for another disk is free")
            await asyncio.Event().wait()

        with monkeypatch.context() as broken:
            broken.setattr(scene.machine, "plug", plug)
            if how != "given up":
                await scene.fails("no slot")
            else:
                attaching = asyncio.ensure_future(scene.attach())
                await asked.wait()
                with pytest.raises(MachineError, match="taken"):
                    await scene.attach()
                attaching.cancel()
                await asyncio.wait([attaching])
        await scene.backend.left.wait()
        scene.backend.command = ""
        await scene.attach()
        assert scene.blocks.listing() == [to_json(BLOCK)] and list(scene.machine.plugged) == ["xvdi"]
        for stream in kept:
            stream.close()

    play(tmp_path, scenario)


def test_the_end_of_the_machine_is_no_loss_of_a_disk(tmp_path: Path) -> None:
    """Its backend goes, too, and nobody is told of that, nor does anything wait for it."""
    async def scenario(scene: Scene) -> None:
        before = asyncio.all_tasks()
        await scene.attach()
        scene.blocks.close()
        await scene.backend.left.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before
        assert [event["event"] for event in scene.events] == ["block-attached"]

    play(tmp_path, scenario)


@pytest.mark.parametrize("end", ["detached", "the backend goes", "it never served"])
def test_a_link_that_is_over_leaves_no_descriptor_and_no_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str,
) -> None:
    """In a warden that lives for weeks there may be thousands of them."""
    links: list[BlockLink] = []

    class Kept(BlockLink):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            links.append(self)

    monkeypatch.setattr(blocks, "BlockLink", Kept)
    monkeypatch.setattr(block_link, "END_TIME", 0.01)

    async def scenario(scene: Scene) -> None:
        before, descriptors = watchers(), set(opened())
        if end == "it never served":
            await scene.fails("nonsense")
        else:
            await scene.attach()
        if end == "detached":
            await scene.blocks.detach("xvdi")
        elif end == "the backend goes":
            scene.backend.end()
            await scene.event("block-lost")
        await links[0].over.wait()
        scene.backend.end()
        for _ in range(10):
            await asyncio.sleep(0)
        assert watchers() == before and set(opened()) <= descriptors

    play(tmp_path, scenario, [(qrexec.STDERR, b"nonsense\n"), (qrexec.STDERR, b"")] if end == "it never served" else SERVED)


def test_what_the_machine_says_together_with_the_handshake_reaches_the_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It need not wait for the handshake's end to ask for something."""
    monkeypatch.setattr(fake, "ASK_FOR_IT", fake.ASK_FOR_IT + b"its first request")

    async def scenario(scene: Scene) -> None:
        await scene.attach()
        assert await scene.backend.heard.get() == b"its first request"

    play(tmp_path, scenario)
