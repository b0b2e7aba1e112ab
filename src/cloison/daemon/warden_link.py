"""qubesd's end of a warden's control connection (wire/warden.py): orders and their answers, events, and the qube's end."""
from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from cloison.errors import MachineError, PeerError
from cloison.runtime import life
from cloison.wire.warden import Lines, encode

log = logging.getLogger(__name__)
ENDS = ("stopped", "failed")
STATUS = ("state", "name", "uuid", "xid", "start", "memory", "pid")
Tell = Callable[[str, str, dict[str, Any]], None]       # of an event: uuid, name, details


class Link:
    """The connection to one warden. `folder`: where life files lie; `forget`: called when the qube's last process is gone."""

    def __init__(self, uuid: str, folder: str, tell: Tell, forget: Callable[[Link], None]) -> None:
        self.uuid = uuid
        self._folder, self._tell, self._forget = folder, tell, forget
        self.facts: dict[str, Any] = {}              # its last status
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.announced = False                       # `running` was reported to qubesd: its end must be, too
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._end: tuple[str, dict[str, Any]] = ("stopped", {})

    async def listen(self, stream: socket.socket) -> None:
        """Read until it hangs up; then wait until the qube's last process is gone, and say so."""
        stream.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=stream)
        self._connected.set()
        lines = Lines()
        try:
            while data := await reader.read(65536):
                for message in lines.feed(data):
                    self._message(message)
        except (OSError, PeerError) as error:
            log.warning("warden of %s: %s", self.uuid, error)
        finally:
            self._writer.close()
        await asyncio.to_thread(life.end, self._folder, self.uuid)
        self._finish()

    def abandon(self, reason: str) -> None:
        """Nobody who waits for it shall wait for ever."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(MachineError(reason))
        self._connected.set()
        self.gone.set()

    def _finish(self) -> None:
        self._forget(self)
        event, detail = self._end
        if not self.ready.done():
            self.ready.set_exception(MachineError(str(detail.get("reason") or "its warden ended")))
        elif self.announced:
            self._tell(self.uuid, event, detail)
        self.abandon("the qube has ended")

    def _message(self, message: dict[str, Any]) -> None:
        event = message.pop("event", None)
        if event is None:
            answer = self._answers.pop(message.get("id", -1), None)
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif event in ENDS:
            self._end = (str(event), message)
        elif event == "running":
            self.facts |= message
            if not self.ready.done():
                self.ready.set_result(None)
        elif self.announced:
            self._tell(self.uuid, str(event), message)

    async def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Raises MachineError with the warden's words, or because the qube ended meanwhile."""
        await self._connected.wait()
        if self._writer is None or self._writer.is_closing():
            raise MachineError("the qube is ending")
        self._next += 1
        answer = self._answers[self._next] = asyncio.get_running_loop().create_future()
        self._writer.write(encode({"id": self._next, "do": do, **fields}))
        reply: dict[str, Any] = await answer
        if "error" in reply:
            raise MachineError(str(reply["error"]))
        self.facts |= {key: value for key, value in reply.items() if key in STATUS}
        return reply
