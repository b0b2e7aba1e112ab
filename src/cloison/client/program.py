"""A program that runs in a qube, as its caller holds it. One core for callers that wait and for those with an event loop.

What a caller wants of it is a generator that yields while it must wait for the qube: `Program` polls then, `aio_program` lets the
loop. So each wish is written once. What ends the caller's part (its context, an exception, a time limit) ends the program in the
qube.
"""
from __future__ import annotations

import signal
import time
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from cloison.client import qrexec, words
from cloison.client.connection import Connection
from cloison.client.ends import Memory, Queue, Source, Tail
from cloison.client.failures import BadCommand, CallLost, CallTimeout, QrexecError, qube_name
from cloison.client.qrexec import Call, Ends
from cloison.client.words import Command
from cloison.errors import BadValue

T = TypeVar("T")
Wish = Generator[None, None, T]          # yields while it waits
CHUNK = 1 << 16
ERRORS = ("tail", "stream", "stdout")    # what a handle can do with a program's errors
_NOTHING: Mapping[str, str] = {}


class Order(NamedTuple):
    """What to run where, and our ends of it."""

    qube: str
    line: str
    ends: Ends


class Core:
    """The part that waits for nothing. Leaving its context ends the program, if it has not ended."""

    def __init__(self, order: Order, call: Call) -> None:
        self.qube, self._call, self._ends = order.qube, call, order.ends

    @property
    def status(self) -> int | None:
        """Its exit status, 128 + N for signal N; None as long as nothing says that it has ended."""
        return None if self._call.lost else self._call.status

    @property
    def untrusted_stderr(self) -> bytes:
        """What of its errors is kept here."""
        return bytes(self._ends.stderr.untrusted) if isinstance(self._ends.stderr, Memory) else b""

    @property
    def untrusted_stdout(self) -> bytes:
        """What of its output is kept here, or has come and is not yet read."""
        return bytes(self._ends.stdout.untrusted) if isinstance(self._ends.stdout, Memory) else b""

    @property
    def _over(self) -> bool:
        return self._call.status is not None

    def _outcome(self) -> int:
        """When it is over. Raises CallLost, QrexecError where the end is not the program's."""
        assert self._call.status is not None
        if self._call.lost and self._call.status == qrexec.PROTOCOL:
            raise QrexecError(f"{self.qube} broke the qrexec protocol: the call was dropped")
        if self._call.lost:
            raise CallLost(self.qube, self.untrusted_stdout, self.untrusted_stderr)
        return self._call.status

    def late(self, seconds: float) -> CallTimeout:
        return CallTimeout(self.qube, seconds, self.untrusted_stdout, self.untrusted_stderr)

    def signal(self, number: int) -> None:
        """The program and its children get it. What has ended, or has left their process group (`setsid`), gets nothing.

        Raises BadValue.
        """
        if number not in signal.valid_signals():
            raise BadValue(f"{number} is no signal's number")
        self._call.signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        """End the program, if it has not ended, and let go of it."""
        if self._over:
            self._call.close()
        else:
            self._call.kill()

    # -- wishes

    def end(self) -> Wish[int]:
        while not self._over:
            yield
        return self._outcome()

    def read(self, queue: Queue, size: int) -> Wish[bytes]:
        """At least one byte, at most `size`; nothing at the end of the stream. Raises CallLost, QrexecError."""
        while not queue.untrusted and not queue.ended and not self._over:
            yield
        if self._over and not queue.untrusted:
            self._outcome()
        return queue.take(size)

    def line(self, queue: Queue, limit: int = CHUNK) -> Wish[bytes]:
        """Up to and with the next newline; less at the end of the stream, or where a line has more than `limit` bytes."""
        searched = 0
        while (found := queue.untrusted.find(b"\n", searched, limit)) < 0 and len(queue.untrusted) < limit:
            if queue.ended or self._over:
                return (yield from self.read(queue, limit))
            searched = len(queue.untrusted)
            yield
        return queue.take(limit if found < 0 else found + 1)

    def write(self, data: bytes) -> Wish[None]:
        """Until all of it is on its way. Raises QrexecError when the program has ended, CallLost."""
        source = self._ends.stdin
        assert isinstance(source, Source)
        view = memoryview(data)
        while view:
            while not source.empty and not self._over:
                yield
            if self._over:
                self._outcome()
                raise QrexecError(f"the program in {self.qube} has ended and reads no more")
            source.put(bytes(view[:CHUNK]))
            view = view[CHUNK:]
        while not source.empty and not self._over:
            yield

    def end_input(self) -> None:
        """The program sees the end of its input, once all of it is there."""
        if isinstance(self._ends.stdin, Source):
            self._ends.stdin.end()
            if not self._over:
                self._call.ready(set())


def streams(stderr: str) -> Ends:
    """Ends of a handle. Raises BadCommand."""
    if stderr not in ERRORS:
        raise BadCommand(f"stderr is one of {', '.join(ERRORS)}, not {stderr!r}")
    out = Queue(2 if stderr == "stdout" else 1)
    return Ends(Source(), out, out if stderr == "stdout" else Queue() if stderr == "stream" else Tail())


def stream(end: object) -> Queue:
    """What there is to read of an end; nothing, if it is none for reading."""
    if isinstance(end, Queue):
        return end
    nothing = Queue()
    nothing.finish()
    return nothing


class Driver(Core):
    """A core that is waited for by polling."""

    def __init__(self, connection: Connection, order: Order, deadline: float | None = None) -> None:
        """Raises QubeNotRunning, QrexecError, BadCommand."""
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        answer = qrexec.ANSWER_TIME if left is None else min(qrexec.ANSWER_TIME, left)
        super().__init__(order, qrexec.start(
            connection.paths, order.qube, order.line, order.ends, answer_time=answer, agent_time=left))
        self._poller = qrexec.Poller()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def do(self, wish: Wish[T], seconds: float | None = None, deadline: float | None = None) -> T:
        """What a wish gives. Raises CallTimeout after so many seconds, or at the deadline, and ends nothing."""
        if seconds is not None and deadline is None:
            deadline = time.monotonic() + seconds
        while True:
            try:
                next(wish)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if deadline is not None and time.monotonic() >= deadline:
                raise self.late(seconds or 0.0)
            self._poller.turn([self._call], deadline)


class Reader:
    """An output of a program. Whoever reads slowly makes the program wait. What comes is the qube's word: `untrusted`."""

    def __init__(self, driver: Driver, queue: Queue) -> None:
        self._driver, self._queue = driver, queue

    def read(self, size: int = CHUNK, *, timeout: float | None = None) -> bytes:
        """At least one byte, at most `size`; nothing at the end. Raises CallLost, CallTimeout."""
        return self._driver.do(self._driver.read(self._queue, size), timeout)

    def readline(self, *, timeout: float | None = None) -> bytes:
        """With its newline; a longer line than 64 KiB comes in parts."""
        return self._driver.do(self._driver.line(self._queue), timeout)

    def __iter__(self) -> Iterator[bytes]:
        """Line by line."""
        while line := self.readline():
            yield line


class Writer:
    """The input of a program. Whoever writes waits while the program does not read."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def write(self, data: bytes | str, *, timeout: float | None = None) -> None:
        """Raises QrexecError when the program has ended, CallLost, CallTimeout."""
        self._driver.do(self._driver.write(data.encode() if isinstance(data, str) else data), timeout)

    def close(self) -> None:
        """The program sees the end of its input, once all of it is there."""
        self._driver.end_input()


class Program(Driver):
    """A program under way. Leaving the context ends it, if it hasn't.

    >>> with Program(connection, "work", ["python3", "-u", "job.py"]) as program:
    ...     program.stdin.write("go\\n")
    """

    def __init__(
        self, connection: Connection, qube: str, command: Command, *, user: str = "DEFAULT", env: Mapping[str, str] = _NOTHING,
        cwd: str = "", stderr: str = "tail",
    ) -> None:
        """`stderr`: "tail" keeps its last 64 KiB, "stream" is a second stream to be read, "stdout" joins the first.

        Raises QubeNotRunning, QrexecError, BadCommand.
        """
        ends = streams(stderr)
        super().__init__(connection, Order(qube_name(qube), words.program(command, user=user, env=env, cwd=cwd), ends))
        self.stdin = Writer(self)
        self.stdout = Reader(self, stream(ends.stdout))
        self.stderr = Reader(self, stream(ends.stderr))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises CallTimeout, and then it goes on; CallLost. What it writes must be read meanwhile."""
        return self.do(self.end(), timeout)
