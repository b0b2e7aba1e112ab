"""A listener in the event loop: each who comes is handed over, and its end takes the path along."""
from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.runtime import unix
from cloison.runtime.listener import Listener


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_who_comes_is_handed_over_until_the_end(tmp_path: Path, mode: int) -> None:
    path = str(tmp_path / "socket")

    async def run() -> None:
        came: asyncio.Queue[socket.socket] = asyncio.Queue()
        listener = Listener(path, 4, came.put_nowait, mode)
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
        for _ in range(3):
            with unix.connect(path) as caller, await asyncio.wait_for(came.get(), PATIENCE) as stream:
                assert not stream.getblocking()
                stream.send(b"hello")
                assert caller.recv(10) == b"hello"
        listener.close()
        with pytest.raises(FileNotFoundError):
            unix.connect(path)

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(run())
    assert os.listdir(tmp_path) == [] and len(os.listdir("/proc/self/fd")) == before


def test_a_path_that_is_gone_already_is_no_error_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def run() -> None:
        listener = Listener(path, 4, socket.socket.close)
        os.unlink(path)
        listener.close()

    asyncio.run(run())


def test_who_comes_during_a_pause_is_handed_over_after_it(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def run() -> None:
        came: asyncio.Queue[socket.socket] = asyncio.Queue()
        listener = Listener(path, 4, came.put_nowait)
        listener.pause()
        listener.pause()
        with unix.connect(path), unix.connect(path):
            await asyncio.to_thread(lambda: None)    # a turn of the loop that looks at its descriptors
            assert came.empty()
            listener.resume()
            listener.resume()
            for _ in range(2):
                (await asyncio.wait_for(came.get(), PATIENCE)).close()
        listener.pause()
        listener.close()

    asyncio.run(run())
