"""The life of a qubesd process, whatever it is wired from: lock, recovery, sockets, until SIGTERM.

Readiness is that a connection to `qubesd.sock` is accepted. SIGTERM and SIGINT end the daemon and no qube.
"""
from __future__ import annotations

import asyncio
import os
import signal

from cloison.admin.methods import SOCKETS
from cloison.daemon.app import App
from cloison.daemon.parts import Parts
from cloison.daemon.recovery import bring_up
from cloison.daemon.server import Server


async def serve(parts: Parts, lock: int, *, autostart: bool = True) -> None:
    """Runs until told to end. `lock` is what `take_lock` gave. Raises StoreError, HostError."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    app = App(parts)
    server = Server(app, parts.paths, SOCKETS)
    try:
        await bring_up(app)
        await server.listen()
        if autostart:
            server.keep(app.autostart())
        await end.wait()
    finally:
        await server.close()
        await app.preloads.close()
        app.visibility.close()
        await app.live.close()
        await app.machines.close()
        await parts.wardens.close()
        parts.store.close()
        os.close(lock)
