"""Programs in qubes for callers with an event loop: the core of `program`, driven by the loop. Cancelling ends the program, too."""
from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

from cloison.client import agent_wait, qrexec, words
from cloison.client.connection import Connection as Blocking
from cloison.client.ends import Queue
from cloison.client.failures import CallTimeout, QrexecError, qube_name
from cloison.client.program import CHUNK, Core, Order, Wish, stream, streams
from cloison.client.qrexec import Call, Request
from cloison.client.words import Command
from cloison.errors import QubeNotRunning

T = TypeVar("T")
_NOTHING: Mapping[str, str] = {}


class Driver(Core):
    """A core that the loop drives from when it is made until it is over or closed."""

    def __init__(self, order: Order, call: Call) -> None:
        super().__init__(order, call)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._failure: Exception | None = None
        self._mask = 0
        self._closed = False
        self._watch()

    @classmethod
    async def begin(cls, connection: Blocking, order: Order) -> Self:
        """Raises QubeNotRunning, QrexecError, BadCommand."""
        return cls(order, await _call(connection, order))

    def _watch(self) -> None:
        """Wait for what the call waits for: memory needs no waiting, so that is its channel."""
        mask = 0 if self._over or self._closed or self._failure else self._call.wants().get(self._call.fileno(), 0)
        for bit, add, remove in (
            (select.POLLIN, self._loop.add_reader, self._loop.remove_reader),
            (select.POLLOUT, self._loop.add_writer, self._loop.remove_writer),
        ):
            if mask & bit and not self._mask & bit:
                add(self._call.fileno(), self._turn)
            elif self._mask & bit and not mask & bit:
                remove(self._call.fileno())
        self._mask = mask

    def _turn(self) -> None:
        try:
            self._call.ready({self._call.fileno()})
        except Exception as error:       # whoever waits for it gets it
            self._failure = error
        self._watch()
        self._changed.set()

    async def do(self, wish: Wish[T]) -> T:
        """What a wish gives."""
        while True:
            self._changed.clear()
            try:
                next(wish)
            except StopIteration as stop:
                self._nudge()            # what was read makes room
                result: T = stop.value
                return result
            if self._failure is not None:
                raise self._failure
            self._nudge()
            await self._changed.wait()

    def _nudge(self) -> None:
        """Something was put or taken here."""
        if not self._over and not self._closed and self._failure is None:
            try:
                self._call.ready(set())
            except Exception as error:
                self._failure = error
            if self._over or self._failure:
                self._changed.set()
            self._watch()

    def signal(self, number: int) -> None:
        super().signal(number)
        self._watch()

    def close(self) -> None:
        self._closed = True
        if self._call.fileno() >= 0:
            self._watch()
        super().close()
        self._changed.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


async def _call(connection: Blocking, order: Order) -> Call:
    """Asked for and accepted."""
    loop = asyncio.get_running_loop()
    request = await _asked(connection, order)
    try:
        with request.sock as sock:
            sock.setblocking(False)
            async with asyncio.timeout(qrexec.ANSWER_TIME):
                while not request.take(await loop.sock_recv(sock, 4096)):
                    pass
    except OSError as error:             # TimeoutError is one
        request.abandon()
        raise qrexec.not_taken(order.qube, error) from error
    except BaseException:
        request.abandon()
        raise
    return request.call


async def _asked(connection: Blocking, order: Order) -> Request:
    """As `when_there`, which keeps to one thread."""
    patience = agent_wait.Patience(order.qube)
    while True:
        try:
            return Request(connection.paths, order.qube, order.line, order.ends)
        except QubeNotRunning as error:
            patience.check(await asyncio.to_thread(agent_wait.state, connection.paths, order.qube), error)
        await asyncio.sleep(agent_wait.RETRY)


@contextlib.asynccontextmanager
async def limited(qube: str, seconds: float | None) -> AsyncIterator[list[Core]]:
    """Raises CallTimeout instead of TimeoutError, with what the core that was put into the list has captured."""
    cores: list[Core] = []
    try:
        async with asyncio.timeout(seconds) as limit:
            yield cores
    except (TimeoutError, QrexecError) as error:
        if not limit.expired() or seconds is None:
            raise
        raise cores[0].late(seconds) if cores else CallTimeout(qube, seconds) from error


async def finish(connection: Blocking, order: Order, timeout: float | None) -> int:
    """Run it to its end, or end it."""
    async with limited(order.qube, timeout) as cores, await Driver.begin(connection, order) as driver:
        cores.append(driver)
        return await driver.do(driver.end())
    raise AssertionError("not reached")


class Reader:
    """As `program.Reader`, awaited."""

    def __init__(self, driver: Driver, queue: Queue) -> None:
        self._driver, self._queue = driver, queue

    async def read(self, size: int = CHUNK) -> bytes:
        """At least one byte, at most `size`; nothing at the end. Raises CallLost."""
        return await self._driver.do(self._driver.read(self._queue, size))

    async def readline(self) -> bytes:
        """With its newline; a longer line than 64 KiB comes in parts."""
        return await self._driver.do(self._driver.line(self._queue))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Line by line."""
        while line := await self.readline():
            yield line


class Writer:
    """As `program.Writer`, awaited."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def write(self, data: bytes | str) -> None:
        """Raises QrexecError when the program has ended, CallLost."""
        await self._driver.do(self._driver.write(data.encode() if isinstance(data, str) else data))

    def close(self) -> None:
        """The program sees the end of its input, once all of it is there."""
        self._driver.end_input()


class Program(Driver):
    """As `program.Program`. Made by `await aio.start(…)`."""

    def __init__(self, order: Order, call: Call) -> None:
        super().__init__(order, call)
        self.stdin = Writer(self)
        self.stdout = Reader(self, stream(order.ends.stdout))
        self.stderr = Reader(self, stream(order.ends.stderr))

    def end_input(self) -> None:
        super().end_input()
        self._watch()

    async def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises CallTimeout, and then it goes on; CallLost. What it writes must be read meanwhile."""
        async with limited(self.qube, timeout) as cores:
            cores.append(self)
            return await self.do(self.end())
        raise AssertionError("not reached")


async def start(
    connection: Blocking, qube: str, command: Command, *, user: str = "DEFAULT", env: Mapping[str, str] = _NOTHING, cwd: str = "",
    stderr: str = "tail",
) -> Program:
    """Raises QubeNotRunning, QrexecError, BadCommand. To be used as a context: leaving it ends the program."""
    order = Order(qube_name(qube), words.program(command, user=user, env=env, cwd=cwd), streams(stderr))
    return await Program.begin(connection, order)
