"""The Admin API's sockets: framing, limits, and the caller's hang-up (reference/admin-api.md 1).

A request is answered only after its half-close. Nobody is waited for: of too many callers who never finish their request
the oldest is dropped, and a listener that does not read its events is dropped as well.
"""
from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import socket
from collections.abc import Awaitable, Coroutine, Mapping
from functools import partial
from typing import Any

from cloison.admin.dispatch import route
from cloison.admin.methods import Method
from cloison.admin.qubesd import Call, Qubesd
from cloison.errors import CloisonError, HostError, PeerError
from cloison.runtime.paths import Paths
from cloison.wire import admin as wire

log = logging.getLogger(__name__)
MAX_UNFINISHED = 512            # callers that have not half-closed yet
MAX_BACKLOG = 1 << 20           # bytes of events a listener may leave unread


class Hangup:
    """Tells when the peer of a half-closed socket has closed it altogether, which reading can't tell.

    An epoll with an empty mask reports EPOLLHUP and nothing else; the loop watches the epoll itself.
    """

    def __init__(self, peer: socket.socket) -> None:
        self.event = asyncio.Event()
        self._socket = peer
        self._epoll = select.epoll()
        self._epoll.register(peer.fileno(), 0)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._seen)

    def _seen(self) -> None:
        self.event.set()
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._socket.close()


class Connection(asyncio.Protocol):
    """One caller, one request."""

    def __init__(self, server: Server, methods: Mapping[str, Method]) -> None:
        self._server, self._methods = server, methods
        self._buffer = bytearray()
        self._asked = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.admit(self)

    def data_received(self, untrusted_data: bytes) -> None:
        self._buffer += untrusted_data
        if len(self._buffer) > wire.MAX_REQUEST:
            self.abort("its request is too long")

    def eof_received(self) -> bool:
        """The request is whole. The transport stays open for the reply."""
        self._server.unfinished.pop(self, None)
        if not self._asked and not self.transport.is_closing():
            self._asked = True
            self._answer()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.unfinished.pop(self, None)

    def abort(self, why: str) -> None:
        log.info("a caller is dropped: %s", why)
        self.transport.abort()

    def _answer(self) -> None:
        try:
            request = wire.parse_request(bytes(self._buffer))
        except PeerError as error:
            return self.abort(str(error))
        finally:
            self._buffer.clear()
        try:
            method, source, dest = route(self._server.qubesd.system, self._methods, request)
            call = Call(self._server.qubesd, source, dest, request.argument, request.payload, self._send)
            if method.stream:
                self._task = self._server.keep(self._converse(method, call))
                return None
            reply = method.handler(call)
        except Exception as error:
            return self._finish(_failure(request, error))
        if isinstance(reply, str | None):
            return self._finish(_success(reply))
        self._task = self._server.keep(self._wait(request, reply))
        return None

    async def _wait(self, request: wire.Request, reply: Awaitable[str | None]) -> None:
        try:
            answer = _success(await reply)
        except Exception as error:
            answer = _failure(request, error)
        self._finish(answer)

    async def _converse(self, method: Method, call: Call) -> None:
        """A call that answers with events, if any; it lasts until it is done or the caller has gone."""
        peer = self.transport.get_extra_info("socket").dup()
        hangup = Hangup(peer)
        call.hangup, call.connection = hangup.event, peer
        try:
            reply = method.handler(call)
            if isinstance(reply, Awaitable):
                await reply
            self.transport.close()
        except Exception as error:
            self._finish(_failure(wire.Request(method.name, call.argument, "", "name", call.dest.name), error))
        finally:
            hangup.close()

    def _send(self, subject: str, name: str, pairs: tuple[tuple[str, str], ...]) -> None:
        """Raises ConnectionError when the listener is gone or does not read."""
        if self.transport.is_closing():
            raise ConnectionResetError("it has hung up")
        if self.transport.get_write_buffer_size() > MAX_BACKLOG:
            self.abort("it does not read its events")
            raise ConnectionAbortedError("it does not read its events")
        self.transport.write(wire.event(subject, name, pairs))

    def _finish(self, reply: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(reply)
            self.transport.close()


def _success(content: str | None) -> bytes:
    return wire.ok((content or "").encode("utf-8"))


def _failure(request: wire.Request, error: Exception) -> bytes:
    """What the caller is told: a sentence of ours, never a traceback."""
    if isinstance(error, CloisonError):
        return wire.exception(error.wire, str(error))
    log.error("call %.60s to %.60s failed", request.method, request.dest, exc_info=error)
    return wire.exception(CloisonError.wire, "the daemon failed on this call; its log says why")


class Server:
    """The three sockets, and the lock that says that this daemon is the living one."""

    def __init__(self, qubesd: Qubesd, paths: Paths, sockets: Mapping[str, Mapping[str, Method]]) -> None:
        self.qubesd, self._paths, self._sockets = qubesd, paths, sockets
        self.unfinished: dict[Connection, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    async def listen(self) -> None:
        """Accept calls from here on. The caller holds the daemon's lock, so sockets that lie there are stale."""
        loop = asyncio.get_running_loop()
        for name, methods in self._sockets.items():
            path = self._paths.socket(name)
            if os.path.lexists(path):
                os.unlink(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            os.chmod(path, 0o600)
            self._servers.append(await loop.create_unix_server(partial(Connection, self, methods), sock=listener, backlog=1024))

    async def close(self) -> None:
        """Stop accepting; end listeners; let calls under way be finished by nobody: the next daemon mends."""
        for server in self._servers:
            server.close()
        for name in self._sockets:
            if os.path.lexists(self._paths.socket(name)):
                os.unlink(self._paths.socket(name))
        for connection in list(self.unfinished):
            connection.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def admit(self, connection: Connection) -> None:
        self.unfinished[connection] = None
        if len(self.unfinished) > MAX_UNFINISHED:
            oldest = next(iter(self.unfinished))
            del self.unfinished[oldest]
            oldest.abort("too many callers have not finished their request")

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that lives as long as the server at most."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def take_lock(paths: Paths) -> int:
    """The descriptor that holds `qubesd.lock`. Raises HostError when another daemon lives."""
    fd = os.open(paths.socket("qubesd.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise HostError(f"another qubesd uses {paths.run} already") from error
    return fd
