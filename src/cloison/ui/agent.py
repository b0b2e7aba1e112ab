"""The agent that asks the person: takes questions on its socket, puts one after another, answers (reference/qrexec.md 16).

How a question is put is an `Asker`'s business: a dialog in a process of its own, or the terminal. Whatever goes wrong is a
refusal; an asker whose caller has gone is cancelled, so that nobody answers a question that nobody waits for.
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable
from typing import Protocol

from cloison.errors import HostError, PeerError
from cloison.runtime.files import try_lock
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.listener import Listener
from cloison.runtime.paths import Paths
from cloison.runtime.tasks import Tasks
from cloison.runtime.unix import is_same_user
from cloison.wire import ask as wire

log = logging.getLogger(__name__)
SOCKET = "policy-agent.sock"
LOCK = "policy-agent.lock"
MAX_CALLERS = 128
READ_TIME = 10.0          # seconds a caller may take to say what it wants
_CHUNK = 1 << 16


class Asker(Protocol):
    """Puts questions to the person. Never two at once."""

    def ask(self, question: wire.Question) -> Awaitable[str | None]:
        """The chosen target, None for no. Cancelled when the answer is not wanted any more."""

    def tell(self, notice: wire.Notice) -> Awaitable[None]:
        """Show what became of a call, without waiting for the person."""


class Agent:
    """`listen`, then it serves; `close` refuses what is still open."""

    def __init__(self, paths: Paths, asker: Asker) -> None:
        self._path, self._asker = paths.socket(SOCKET), asker
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self._listener: Listener | None = None
        self._loop = asyncio.get_running_loop()

    def listen(self) -> None:
        """The caller holds the agent's lock, so a socket that lies there is stale. Raises OSError."""
        self._listener = Listener(self._path, MAX_CALLERS, self._accept)

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._tasks.end()

    def _accept(self, stream: socket.socket) -> None:
        if len(self._tasks) >= MAX_CALLERS or not is_same_user(stream):
            stream.close()
            return
        self._tasks.begin(self._serve(stream))

    async def _serve(self, stream: socket.socket) -> None:
        answer = b""
        with stream:
            try:
                answer = await self._answer(stream)
            except PeerError as error:
                log.warning("a question is refused: %s", error)
                answer = wire.encode_answer(None)
            except (OSError, TimeoutError) as error:
                log.warning("a caller is dropped: %s", error or "it took too long")
            with contextlib.suppress(OSError):
                stream.send(answer)

    async def _answer(self, stream: socket.socket) -> bytes:
        async with asyncio.timeout(READ_TIME):
            untrusted = await _read_all(stream)
        if not untrusted:                # somebody looked whether we are here
            return b""
        request = wire.parse(untrusted)
        if isinstance(request, wire.Notice):
            await self._asker.tell(request)
            return b""
        return wire.encode_answer(await self._put(request, stream))

    async def _put(self, question: wire.Question, stream: socket.socket) -> str | None:
        """Wait for its turn, then for the person; both end when the caller has gone."""
        task = asyncio.current_task()
        assert task is not None
        stop = watch_hangup(stream, task.cancel)
        try:
            async with self._turn:
                chosen = await self._asker.ask(question)
        finally:
            stop()
        return chosen if chosen in question.targets else None


async def _read_all(stream: socket.socket) -> bytes:
    loop, untrusted = asyncio.get_running_loop(), bytearray()
    while data := await loop.sock_recv(stream, _CHUNK):
        untrusted += data
        if len(untrusted) > wire.MAX_REQUEST:
            raise PeerError("request too long", len(untrusted))
    return bytes(untrusted)


def take_lock(paths: Paths) -> int:
    """The descriptor that holds the lock. Raises HostError when another lives."""
    fd = try_lock(paths.socket(LOCK))
    if fd is None:
        raise HostError("another agent asks the questions of this session already")
    return fd
