"""The real server on fake parts, over real sockets in this process's loop: for tests of what goes over the wire."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.patience import PATIENCE

from cloison.admin.methods import SOCKETS
from cloison.daemon.app import App
from cloison.daemon.fake import fake_app
from cloison.daemon.server import Server

SOCK = "run/qubesd.sock"


def served(tmp_path: Path, scenario: Callable[[App, str], Awaitable[None]]) -> None:
    """Run `scenario(app, path of qubesd.sock)`; nothing of the server is left afterwards."""

    async def run() -> None:
        app = await fake_app(str(tmp_path))
        server = Server(app, app.parts.paths, SOCKETS)
        await server.listen()
        try:
            async with asyncio.timeout(PATIENCE):
                await scenario(app, str(tmp_path / SOCK))
        finally:
            await server.close()
            await app.machines.close()
            await app.parts.wardens.close()
            app.parts.store.close()

    asyncio.run(run())


async def request(path: str, data: bytes) -> bytes:
    """The whole reply; empty if the connection was dropped."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def listener(path: str, dest: str = "dom0") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream of events, past its first frame."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    writer.write(f"admin.Events+ dom0 name {dest}\0".encode())
    writer.write_eof()
    await reader.readexactly(len(b"1\0\0connection-established\0\0"))
    return reader, writer
