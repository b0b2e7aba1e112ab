"""Connecting to a socket whose server is slow to accept."""
from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.runtime import unix_async


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    async def work() -> None:
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(1)
            server.settimeout(PATIENCE)
            connecting = [asyncio.ensure_future(unix_async.connect(path)) for _ in range(20)]
            done, pending = await asyncio.wait(connecting, return_when=asyncio.FIRST_COMPLETED)
            assert done and pending
            for _ in connecting:
                stream, _ = await asyncio.to_thread(server.accept)
                stream.close()
            for stream in await asyncio.gather(*connecting):
                assert stream.recv(1) == b""
                stream.close()

    asyncio.run(work())


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(unix_async.connect(str(tmp_path / "none")))
