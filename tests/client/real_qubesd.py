"""The real qubesd on fake parts, served over its sockets from a thread: for tools whose answers qubesd must make."""
from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloison.admin.methods import SOCKETS
from cloison.client.connection import Connection
from cloison.daemon.fake import fake_app
from cloison.daemon.server import Server


@contextmanager
def real_qubesd(root: Path) -> Iterator[Connection]:
    """Template tpl, AppVMs work and net; net provides network. `CLOISON_ROOT` must be `root`."""
    ready = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        app = await fake_app(str(root))
        server = Server(app, app.parts.paths, SOCKETS)
        await server.listen()
        ended = asyncio.Event()
        handles.append((asyncio.get_running_loop(), ended))
        ready.set()
        await ended.wait()
        await server.close()
        await app.machines.close()
        await app.parts.wardens.close()
        app.parts.store.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        connection = Connection()
        connection.call("dom0", "admin.vm.Create.TemplateVM", payload=b"name=tpl label=black")
        for name in ("work", "net"):
            connection.call("dom0", "admin.vm.Create.AppVM", "tpl", f"name={name} label=red".encode())
        connection.call("net", "admin.vm.property.Set", "provides_network", b"True")
        yield connection
    finally:
        for loop, ended in handles:
            loop.call_soon_threadsafe(ended.set)
        thread.join()
