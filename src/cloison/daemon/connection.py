"""One caller of the Admin API: its request, its reply or its stream of events, and its hang-up (reference/admin-api.md 1).

A request is answered only after its half-close. Nobody is waited for: of too many callers who don't finish their request or
don't take their reply the oldest is dropped, and so is a listener that does not read its events.
"""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Mapping
from functools import lru_cache, partial
from typing import Any, Protocol

from cloison.admin.dispatch import route
from cloison.admin.methods import Method
from cloison.admin.qubesd import Call, Qubesd
from cloison.errors import BadRequest, CloisonError, PeerError, advice
from cloison.model.domains import DOM0
from cloison.runtime.hangups import Hangups
from cloison.wire import admin as wire

log = logging.getLogger(__name__)
MAX_BACKLOG = 1 << 20           # bytes of events a listener may leave unread
MAX_EXCESS = 4 << 20            # bytes beyond a request's limit that are read, so that its sender sees the refusal

encode_event = lru_cache(maxsize=64)(wire.event)        # a thousand listeners get the same bytes


class Streams(Protocol):
    """What a connection needs of its server."""

    qubesd: Qubesd
    hangups: Hangups

    def admit(self, connection: Connection) -> None: ...

    def received(self, connection: Connection, size: int) -> None: ...

    def finished(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...

    def flush_soon(self, connection: Connection) -> None: ...

    def check_room(self) -> None: ...

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class Connection(asyncio.Protocol):
    """One caller, one request."""

    def __init__(self, server: Streams, methods: Mapping[str, Method]) -> None:
        self._server, self._methods = server, methods
        self._buffer = bytearray()
        self._excess = 0                # bytes read and thrown away
        self._asked = False
        self._events: list[bytes] = []  # written at the end of this turn of the loop
        self._waiting = 0               # bytes of them

    # -- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.admit(self)

    def data_received(self, untrusted_data: bytes) -> None:
        if not self._excess:
            self._server.received(self, len(untrusted_data))
            self._buffer += untrusted_data
            if len(self._buffer) > wire.request_limit(self._buffer):
                self._excess = len(self._buffer)
                self._buffer.clear()
        else:
            self._excess += len(untrusted_data)
            if self._excess > MAX_EXCESS:
                self.abort("its request never ends")

    def eof_received(self) -> bool:
        """The request is whole. The transport stays open for the reply."""
        if not self._asked and not self.transport.is_closing():
            self._asked = True
            self._server.finished(self)
            self._answer()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)

    def abort(self, why: str) -> None:
        log.debug("a caller is dropped: %s", why)
        self.transport.abort()

    # -- answering ------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        if not self._buffer and not self._excess:
            return self.transport.close()       # somebody who only looked whether we live
        request = wire.Request("", "", "", "", "")
        try:
            request = self._request()
            self._server.check_room()
            method, source, dest = route(self._server.qubesd.system, self._methods, request)
            call = Call(self._server.qubesd, source, dest, request.argument, request.payload, self._send)
            if method.stream:
                self._server.keep(self._converse(method, call))
                return None
            reply = method.handler(call)
        except Exception as error:
            return self._finish(_failure(request, error))
        if isinstance(reply, str | None):
            return self._finish(_success(reply))
        self._server.keep(self._wait_for_caller(request, reply) if method.for_caller else self._wait(request, reply))
        return None

    def _request(self) -> wire.Request:
        """Raises BadRequest."""
        if self._excess:
            raise BadRequest(f"the request has more than {wire.MAX_REQUEST} bytes")
        untrusted = bytes(self._buffer)
        self._buffer.clear()
        try:
            return wire.parse_request(untrusted)
        except PeerError as error:
            raise BadRequest(str(error)) from error

    async def _wait(self, request: wire.Request, reply: Awaitable[str | None]) -> None:
        try:
            answer = _success(await reply)
        except Exception as error:
            answer = _failure(request, error)
        self._finish(answer)

    async def _wait_for_caller(self, request: wire.Request, reply: Awaitable[str | None]) -> None:
        """The work is given up when nobody waits for it any more."""
        task = asyncio.current_task()
        assert task is not None
        peer = self.transport.get_extra_info("socket").dup()
        self._server.hangups.watch(peer.fileno(), partial(_cancel, task))
        try:
            await self._wait(request, reply)
        except asyncio.CancelledError:
            self.abort("it has hung up")
            raise
        finally:
            self._server.hangups.end(peer.fileno())
            peer.close()

    async def _converse(self, method: Method, call: Call) -> None:
        """A call that answers with events, if any; it lasts until it is done or the caller has gone."""
        peer = self.transport.get_extra_info("socket").dup()
        call.connection = peer
        self._server.hangups.watch(peer.fileno(), call.hangup.set)
        try:
            reply = method.handler(call)
            if isinstance(reply, Awaitable):
                await reply
            self._finish(b"")
        except Exception as error:
            self._finish(_failure(wire.Request(method.name, call.argument, call.source.name, "name", call.dest.name), error))
        finally:
            self._server.hangups.end(peer.fileno())
            peer.close()

    def _send(self, subject: str, name: str, pairs: tuple[tuple[str, str], ...]) -> None:
        """Raises ConnectionError when the listener is gone or does not read."""
        if self.transport.is_closing():
            raise ConnectionResetError("it has hung up")
        if self.transport.get_write_buffer_size() + self._waiting > MAX_BACKLOG:
            self.abort("it does not read its events")
            raise ConnectionAbortedError("it does not read its events")
        event = encode_event(subject, name, pairs)
        if not self._events:
            self._server.flush_soon(self)
        self._events.append(event)
        self._waiting += len(event)

    def flush(self) -> None:
        """Write the events of this turn of the loop, all at once."""
        if self._events and not self.transport.is_closing():
            self.transport.write(b"".join(self._events))
        self._events, self._waiting = [], 0

    def _finish(self, reply: bytes) -> None:
        self.flush()
        if not self.transport.is_closing():
            self.transport.write(reply)
            self.transport.close()


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


def _success(content: str | None) -> bytes:
    return wire.ok((content or "").encode("utf-8"))


def _failure(request: wire.Request, error: Exception) -> bytes:
    """What the caller is told: a sentence of ours, never a traceback. A hint names commands and files of the host, so it is for
    the host's own tools.
    """
    if isinstance(error, CloisonError):
        return wire.exception(error.wire, str(error), advice(error) if request.source == DOM0 else "")
    log.error("call %.60s to %.60s failed", request.method, request.dest, exc_info=error)
    return wire.exception(CloisonError.wire, "the daemon failed on this call; its log says why")
