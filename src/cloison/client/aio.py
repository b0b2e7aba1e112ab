"""The same for programs with an event loop: `await connection.do(...)`, events to iterate over, programs in qubes, disposables.

Clones and imports of files take a thread: `await asyncio.to_thread(clone, Connection(), …)`.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

from cloison.client import aio_program, disposables, files, words
from cloison.client.aio_program import Program, finish
from cloison.client.calls import AdminCall
from cloison.client.connection import MAX_REPLY, NoDaemon, parsed, server_error
from cloison.client.connection import Connection as Blocking
from cloison.client.domains import DOM0
from cloison.client.run import MAX_OUTPUT, Completed, captured, completed
from cloison.client.words import Command
from cloison.errors import CloisonError, PeerError
from cloison.runtime.paths import Paths
from cloison.values import QubeName
from cloison.wire.admin import Event, EventDecoder

T = TypeVar("T")
_CHUNK = 1 << 16
_NOTHING: Mapping[str, str] = {}


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
    try:
        async for data in _chunks(sock):
            decoder.feed(data)
            while event := decoder.next_event():
                yield event
    except ConnectionResetError as error:
        raise NoDaemon("qubesd ended during the call") from error
    if failure := decoder.finish():
        raise server_error(failure)


async def _chunks(sock: socket.socket) -> AsyncIterator[bytes]:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, _CHUNK):
        yield data


# -- programs in qubes; each as its namesake in `run`, `program` and `files` -----------------------------------------------


async def run(
    connection: Connection, qube: str, command: Command, *, user: str = "DEFAULT", data: bytes | str = b"",
    env: Mapping[str, str] = _NOTHING, cwd: str = "", timeout: float | None = None, max_output: int = MAX_OUTPUT,
    check: bool = False,
) -> Completed:
    """Cancelling it kills the program in the qube. Else as `cloison.client.run.run`."""
    order = captured(qube, words.program(command, user=user, env=env, cwd=cwd), data, max_output)
    return completed(order, await finish(connection.blocking, order, timeout), check=check)


async def run_service(
    connection: Connection, qube: str, service: str, *, user: str = "DEFAULT", data: bytes | str = b"",
    timeout: float | None = None, max_output: int = MAX_OUTPUT, check: bool = False,
) -> Completed:
    order = captured(qube, words.service(service, user=user), data, max_output)
    return completed(order, await finish(connection.blocking, order, timeout), check=check)


async def start(
    connection: Connection, qube: str, command: Command, *, user: str = "DEFAULT", env: Mapping[str, str] = _NOTHING,
    cwd: str = "", stderr: str = "tail",
) -> Program:
    """To be used as a context, `async with await start(…) as program`: leaving it ends the program."""
    return await aio_program.start(connection.blocking, qube, command, user=user, env=env, cwd=cwd, stderr=stderr)


async def put(
    connection: Connection, qube: str, source: bytes | str | os.PathLike[str], path: str, *, user: str = "DEFAULT",
    mode: int = 0o644, timeout: float | None = None,
) -> None:
    with files.sending(qube, source, path, user=user, mode=mode) as under_way:
        files.sent(under_way, await finish(connection.blocking, under_way.order, timeout))


async def get(
    connection: Connection, qube: str, path: str, *, user: str = "DEFAULT", max_size: int = MAX_OUTPUT,
    timeout: float | None = None,
) -> bytes:
    order = files.fetching(qube, path, max_size, user)
    return files.fetched(order, path, await finish(connection.blocking, order, timeout))


async def get_file(
    connection: Connection, qube: str, path: str, to: str | os.PathLike[str], *, user: str = "DEFAULT", mode: int = 0o600,
    max_size: int = files.MAX_FILE, timeout: float | None = None,
) -> int:
    with files.Receiving(qube, path, to, limit=max_size, user=user, mode=mode) as receiving:
        return receiving.keep(await finish(connection.blocking, receiving.order, timeout))


class Disposable:
    """`async with` one: `name` runs inside, and is ended when the block is left, also by cancelling, and when this process dies."""

    def __init__(
        self, connection: Connection, base: str = DOM0, *, memory: int | None = None, vcpus: int | None = None,
    ) -> None:
        """As `cloison.client.disposables.Disposable`; it is made when the block is entered. Needs a qubesd that knows leases."""
        self._connection, self._base = connection.blocking, base
        self._payload = disposables.payload(disposables.shape(memory, vcpus))
        self._lease: socket.socket | None = None
        self.name = ""

    async def __aenter__(self) -> Self:
        """Raises CloisonError if it can't be had."""
        lease = self._connection.begin(self._base, "cloison.Disposable", payload=self._payload).detach()
        try:
            await _answered(lease)
            async with contextlib.aclosing(_events(lease)) as events:
                async for event in events:
                    if event.event == disposables.READY:
                        self.name, self._lease = QubeName(event.subject), lease
                        return self
            raise NoDaemon(disposables.ENDED)
        except BaseException:
            lease.close()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lease is not None:
            self._lease.close()


async def _answered(lease: socket.socket) -> None:
    """Until qubesd answers. Raises NoDaemon when it ends before."""
    loop = asyncio.get_running_loop()
    qubesd = disposables.watch_qubesd(lease.fileno())
    answered: asyncio.Future[bool] = loop.create_future()

    def settle(answer: bool) -> None:
        if not answered.done():
            answered.set_result(answer)

    loop.add_reader(lease, settle, True)
    loop.add_reader(qubesd, settle, False)
    try:
        if not await answered:
            raise NoDaemon(disposables.ENDED)
    finally:
        loop.remove_reader(lease)
        loop.remove_reader(qubesd)
        os.close(qubesd)
