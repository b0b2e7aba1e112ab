"""The same calls for programs with an event loop: `await connection.do(...)`, and events as an async iterator.

What a qube runs, clones and imports of files take a thread: `await asyncio.to_thread(run, Connection(), "work", "uptime")`.
"""
from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from cloison.client.calls import AdminCall
from cloison.client.connection import MAX_REPLY, NoDaemon, parsed, server_error
from cloison.client.connection import Connection as Blocking
from cloison.client.domains import DOM0
from cloison.errors import CloisonError, PeerError
from cloison.runtime.paths import Paths
from cloison.wire.admin import Event, EventDecoder

T = TypeVar("T")
_CHUNK = 1 << 16


class Connection:
    """Where qubesd is. Holds nothing open between calls; any number may be under way at once."""

    def __init__(self, paths: Paths | None = None, source: str = DOM0) -> None:
        self.blocking = Blocking(paths, source)

    async def call(self, dest: str, method: str, argument: str = "", payload: bytes = b"") -> bytes:
        """The reply's content. Raises a CloisonError for whatever went wrong, NoDaemon if qubesd does not run."""
        with self.blocking.begin(dest, method, argument, payload).detach() as sock:
            reply = bytearray()
            try:
                async for data in _chunks(sock):
                    reply += data
                    if len(reply) > MAX_REPLY:
                        raise PeerError("reply too long", len(reply))
            except ConnectionResetError as error:
                raise NoDaemon("qubesd ended during the call") from error
        return parsed(bytes(reply))

    async def do(self, call: AdminCall[T]) -> T:
        """A call of `cloison.client.calls`, and its answer. Raises as `call` does."""
        try:
            return call.answer(await self.call(*call[:4]))
        except CloisonError as error:
            return call.answer(error)

    @contextlib.asynccontextmanager
    async def events(self, dest: str = DOM0, method: str = "admin.Events") -> AsyncIterator[AsyncIterator[Event]]:
        """Events of one qube, or with dom0 of everything. When the context is entered, no later event is missed.

        `method`: admin.Events, or admin.vm.Stats for what qubes use. The iterator ends when qubesd does.
        """
        with self.blocking.begin(dest, method).detach() as sock:
            events = _events(sock)
            async with contextlib.aclosing(events):
                if await anext(events, None) is None:
                    raise NoDaemon("qubesd closed the event stream")
                yield events             # after connection-established


async def _events(sock: socket.socket) -> AsyncGenerator[Event, None]:
    """Raises the failure that qubesd ends with."""
    decoder = EventDecoder()
    async for data in _chunks(sock):
        decoder.feed(data)
        while event := decoder.next_event():
            yield event
    if failure := decoder.finish():
        raise server_error(failure)


async def _chunks(sock: socket.socket) -> AsyncIterator[bytes]:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, _CHUNK):
        yield data
