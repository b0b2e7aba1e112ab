"""The Admin API's three sockets, and how many callers may be at which stage (reference/admin-api.md 1)."""
from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

from cloison.admin.methods import Method
from cloison.admin.qubesd import Qubesd
from cloison.daemon.connection import Connection
from cloison.errors import CloisonError
from cloison.runtime import unix
from cloison.runtime.hangups import Hangups
from cloison.runtime.paths import Paths
from cloison.runtime.tasks import Tasks

log = logging.getLogger(__name__)
MAX_UNFINISHED = 2048           # callers that have not half-closed yet: more than come in one turn of the loop
MAX_BUFFERED = 64 << 20         # bytes of their requests
MAX_UNREAD = 512                # callers that have not taken their reply yet
MAX_CALLS = 4096                # calls and streams under way
BACKLOG = 1024                  # callers the kernel keeps while we are busy


class Server:
    """Listens, and knows every connection by its stage."""

    def __init__(self, qubesd: Qubesd, paths: Paths, sockets: Mapping[str, Mapping[str, Method]]) -> None:
        self.qubesd, self._paths, self._sockets = qubesd, paths, sockets
        self.hangups = Hangups()
        self.unfinished: dict[Connection, int] = {}      # bytes that each has sent
        self._buffered = 0
        self.asked: dict[Connection, None] = {}
        self._tasks = Tasks()
        self._servers: list[asyncio.Server] = []
        self._to_flush: list[Connection] = []

    async def listen(self) -> None:
        """Accept calls from here on. The caller holds the daemon's lock, so sockets that lie there are stale.

        The first socket comes last: who can connect to it finds the others there.
        """
        loop = asyncio.get_running_loop()
        for name, methods in reversed(list(self._sockets.items())):
            listener = unix.listen(self._paths.socket(name), BACKLOG)
            self._servers.append(await loop.create_unix_server(partial(Connection, self, methods), sock=listener, backlog=BACKLOG))

    async def close(self) -> None:
        """Stop accepting; hang up on everybody; let calls under way be finished by nobody: the next daemon mends."""
        for server in self._servers:
            server.close()
        for name in self._sockets:
            if os.path.lexists(self._paths.socket(name)):
                os.unlink(self._paths.socket(name))
        await self._tasks.end()
        self._flush()
        for connection in [*self.unfinished, *self.asked]:
            connection.transport.abort()
        self.hangups.close()

    # -- stages of a connection -----------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> None:
        self.unfinished[connection] = 0
        if len(self.unfinished) > MAX_UNFINISHED:
            self._drop_unfinished()

    def received(self, connection: Connection, size: int) -> None:
        """So many bytes of a request have come."""
        self.unfinished[connection] += size
        self._buffered += size
        while self._buffered > MAX_BUFFERED:
            self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        oldest = next(iter(self.unfinished))
        self._buffered -= self.unfinished.pop(oldest)
        oldest.abort("too many callers have not finished their request")

    def finished(self, connection: Connection) -> None:
        """Its request is whole; what follows is up to us, and then to how it reads."""
        self._buffered -= self.unfinished.pop(connection, 0)
        self.asked[connection] = None
        if len(self.asked) > MAX_UNREAD + len(self._tasks):
            self._drop_unread()

    def _drop_unread(self) -> None:
        """The oldest caller that was answered and does not read. Those who wait for us stay."""
        for connection in self.asked:
            if connection.transport.is_closing():
                connection.abort("it does not read its reply")
                return

    def forget(self, connection: Connection) -> None:
        self._buffered -= self.unfinished.pop(connection, 0)
        self.asked.pop(connection, None)

    def flush_soon(self, connection: Connection) -> None:
        """Events of one turn of the loop go out in one write a listener."""
        if not self._to_flush:
            asyncio.get_running_loop().call_soon(self._flush)
        self._to_flush.append(connection)

    def _flush(self) -> None:
        connections, self._to_flush = self._to_flush, []
        for connection in connections:
            connection.flush()

    def check_room(self) -> None:
        """Raises CloisonError when there is no room for one more call that takes its time."""
        if len(self._tasks) >= MAX_CALLS:
            raise CloisonError(f"{MAX_CALLS} calls and listeners are under way already")

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that lives as long as the server at most."""
        task = self._tasks.begin(work)
        task.add_done_callback(self._ended)
        return task

    @staticmethod
    def _ended(task: asyncio.Task[None]) -> None:
        """Nobody waits for it, so a failure is told of here."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s has ended: %s", getattr(task.get_coro(), "__qualname__", "a task"), error, exc_info=error)
