"""A warden's door for qubesd: JSON lines on a socket of its own, for the qubesd that started it and for every later one."""
from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable

from cloison.errors import CloisonError, PeerError
from cloison.runtime.listener import Listener
from cloison.runtime.tasks import Tasks
from cloison.wire.warden import Lines, encode

Do = Callable[[str, dict[str, object]], Awaitable[dict[str, object] | None]]
MAX_PEERS = 8
MAX_UNREAD = 64 << 10     # bytes of events that one connection has not read: a guest causes a hundred bytes a second at most


class ControlServer:
    """Answers `status` itself; every other order goes to `do`, which may add to the answer. Events go to every connection."""

    def __init__(self, path: str, do: Do, status: Callable[[], dict[str, object]]) -> None:
        self._path, self._do, self._status = path, do, status
        self._listener: Listener | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()

    async def adopt(self, stream: socket.socket, on_lost: Callable[[], None] = lambda: None) -> None:
        """Serve this connection: it hears every event from now on; `on_lost` when its other end is gone."""
        stream.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=stream)
        self._writers.add(writer)
        self._tasks.begin(self._serve(reader, writer, on_lost))

    def listen(self) -> None:
        self._listener = Listener(self._path, MAX_PEERS, lambda stream: self._tasks.begin(self.adopt(stream)))

    def event(self, message: dict[str, object]) -> None:
        line = encode(message)
        for writer in list(self._writers):
            if writer.transport.get_write_buffer_size() + len(line) <= MAX_UNREAD:
                writer.write(line)
            else:                        # who asks again afterwards gets the status; the process behind it is stopped, or no qubesd
                writer.transport.abort()

    async def close(self) -> None:
        """Send what waits, then hang up; the path goes. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in list(self._writers):
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 5)
        self._tasks.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_lost: Callable[[], None]) -> None:
        lines = Lines()
        try:
            while data := await reader.read(65536):
                for request in lines.feed(data):
                    self._tasks.begin(self._reply(writer, request))       # in its turn; one that waits holds up no other
        except (OSError, PeerError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            on_lost()

    async def _reply(self, writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
        answer = encode(await self._answer(request))
        if not writer.is_closing():
            writer.write(answer)

    async def _answer(self, request: dict[str, object]) -> dict[str, object]:
        number = request.get("id")
        order = str(request.get("do"))
        before = request.get("before")
        if isinstance(before, int | float) and time.monotonic() > before:
            return {"id": number, "error": "the order came too late: nobody waits for it"}
        try:
            found = None if order == "status" else await self._do(order, request)
            return {"id": number, "ok": True, **self._status(), **(found or {})}
        except CloisonError as error:
            return {"id": number, "error": str(error)}
