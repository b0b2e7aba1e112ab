"""The life of a qubesd process, whatever it is wired from: lock, recovery, sockets, until SIGTERM.

Readiness is that a connection to `qubesd.sock` is accepted. SIGTERM and SIGINT end the daemon and no qube.
"""
from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cloison.admin.methods import SOCKETS
from cloison.daemon.app import App
from cloison.daemon.parts import Parts
from cloison.daemon.recovery import bring_up
from cloison.daemon.server import Server
from cloison.errors import CloisonError
from cloison.runtime.daemon import told_to_end
from cloison.runtime.paths import Paths
from cloison.templates import work

log = logging.getLogger(__name__)


async def serve(
    parts: Parts, locks: Sequence[int], *, autostart: bool = True, beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Runs until told to end. `locks` are what `take_locks` gave; `beside` is a task as long. Raises StoreError, HostError."""
    end = told_to_end()
    app = App(parts)
    server = Server(app, parts.paths, SOCKETS)
    try:
        await bring_up(app)
        await server.listen()
        server.keep(_sweep_builds(parts.paths))
        server.keep(app.space.watch())
        if beside is not None:
            server.keep(beside())
        if autostart:
            server.keep(app.autostart())
        await end.wait()
    finally:
        await server.close()
        await app.close()
        await app.preloads.close()
        app.visibility.close()
        await app.live.close()
        await app.machines.close()
        await parts.wardens.close()
        parts.store.close()
        for lock in locks:
            os.close(lock)


async def _sweep_builds(paths: Paths) -> None:
    """What a killed `cloison template build` left: gigabytes, perhaps. It costs the disk only, so failing is no failure."""
    try:
        await asyncio.to_thread(work.sweep, paths)
    except (OSError, CloisonError, subprocess.SubprocessError) as error:
        log.warning("what a template's build left could not be removed: %s", error)
