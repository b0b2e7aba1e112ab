"""Asking another qube's daemon for a call: what it is told, what counts as its answer, and where nobody answers."""
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.qrexec.host import peer
from cloison.wire import qrexec


@pytest.mark.parametrize("backlog", ["free", "full"])
def test_a_silent_warden_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backlog: str) -> None:
    """As one that was stopped: the kernel takes connections for it, until its backlog is full."""
    monkeypatch.setattr(peer, "ANSWER_TIME", 0.1)
    path = str(tmp_path / "qrexec.work")
    waiting: list[socket.socket] = []

    async def ask() -> None:
        async with asyncio.timeout(PATIENCE):
            await peer.execute(path, 1, "user:true", None)

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen(0)
        if backlog == "full":
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[0].connect(path)
        with pytest.raises(PeerError, match="warden does not answer"):
            asyncio.run(ask())
    for each in waiting:
        each.close()


COMMAND = "user:QUBESRPC test.S+ work"
HELLO = qrexec.hello(qrexec.SOCKET_VERSION)
ANSWER = qrexec.allocated(qrexec.EXEC_CMDLINE, 9, 600)


def ask(
    folder: Path, reply: bytes, then: Callable[[peer.Peer, socket.socket], Awaitable[None]], far_end: socket.socket | None = None,
) -> tuple[bytes, list[int]]:
    """Be a daemon that sends `reply` byte by byte once it has the request, and hangs up where that is no answer. What it got."""
    path, got = str(folder / "qrexec.work"), (HELLO + qrexec.exec_command(qrexec.EXEC_CMDLINE, 5, 0, COMMAND))
    descriptors: list[int] = []

    async def answer(server: socket.socket) -> socket.socket:
        loop = asyncio.get_running_loop()
        stream, _ = await loop.sock_accept(server)
        stream.setblocking(True)
        data = b""
        while len(data) < len(got):
            more, fds, _, _ = await asyncio.to_thread(socket.recv_fds, stream, 4096, 4)
            assert more
            data += more
            descriptors.extend(fds)
        assert data == got
        for byte in reply:
            stream.send(bytes([byte]))
        if not reply.endswith(ANSWER):
            stream.close()
        return stream

    async def whole() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            server.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                answering = asyncio.ensure_future(answer(server))
                try:
                    found = await peer.execute(path, 5, COMMAND, far_end)
                except PeerError:
                    (await answering).close()
                    raise
                with await answering as stream:
                    await then(found, stream)

    asyncio.run(whole())
    return got, descriptors


async def until_over(found: peer.Peer, stream: socket.socket) -> None:
    assert (found.xid, found.port) == (9, 600)
    over = asyncio.ensure_future(found.over())
    stream.send(b"what is said meanwhile means nothing")
    await asyncio.wait([over], timeout=0.01)
    assert not over.done()
    stream.close()
    await over
    with found:
        pass
    assert found._control.fileno() < 0


@pytest.mark.parametrize("descriptor", [True, False])
def test_the_call_is_asked_for_and_lasts_until_the_daemon_hangs_up(tmp_path: Path, descriptor: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _, descriptors = ask(tmp_path, HELLO + ANSWER, until_over, theirs if descriptor else None)
        assert len(descriptors) == descriptor
        for each in descriptors:
            os.write(each, b"here")
            os.close(each)
            assert ours.recv(4) == b"here"


@pytest.mark.parametrize("reply", [b"", HELLO, HELLO + ANSWER[:-1], ANSWER[4:], qrexec.hello(1), HELLO + bytes(8)])
def test_what_is_no_answer_is_a_refusal(tmp_path: Path, reply: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PeerError):
        ask(tmp_path, reply, until_over)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("left", "error"), [("nothing", FileNotFoundError), ("a socket", ConnectionRefusedError)])
def test_a_daemon_that_is_not_there_is_told_from_one_that_refuses(tmp_path: Path, left: str, error: type[OSError]) -> None:
    path = str(tmp_path / "qrexec.work")
    if left == "a socket":
        with socket.socket(socket.AF_UNIX) as former:
            former.bind(path)
    with pytest.raises(error):
        asyncio.run(peer.execute(path, 5, COMMAND, None))
