"""qubesd's end of a warden's control connection (wire/warden.py): orders and their answers, events, silence, and the qube's end.

What is known of the qube's processes moves by the table in plan/processes.py. An order may take its time; but when its answer does
not come at once, the warden is asked whether it is there, which it answers whatever else it does. One that says nothing then is
silent: orders fail at once, with that sentence, until it says anything again. Each order says until when somebody waits for it, so
that a warden that goes on later does not do what has failed long ago. A warden that is there may wait for a QEMU that never
answers: an order has its limit, too, and if it is carried out after that, the warden is asked how its qube is.
"""
from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from cloison.errors import MachineError, PeerError
from cloison.plan.processes import Known, Seen, step
from cloison.runtime import life, unix
from cloison.wire.warden import Lines, encode

log = logging.getLogger(__name__)
ENDS = ("stopped", "failed")
STATUS = ("state", "name", "uuid", "xid", "start", "memory", "pid", "commits", "blocks", "space", "note")
ANSWER_TIME = 2.0           # s until a warden that has not answered an order is asked whether it is there
PROBE_TIME = 2.0            # s that it may take to say so
ORDER_TIME = 60.0           # s that an order may take in all: QEMU first finishes what its disks have under way
KILL_TIME = 4.0             # s that what has been told to end may take until it is killed, or is said to be ending
END_TIME = 15.0             # s that what was killed may take: memory is given back, and a busy host takes its time
BUSY_AGAIN = 1.0            # s until a warden whose queue of connections is full is tried again: nothing tells when that changes
UNANSWERED = "its QEMU does not answer; what was asked may yet be done; qvm-kill ends it"
SILENT = "its warden does not answer; qvm-kill ends it"
Tell = Callable[[str, str, dict[str, Any]], None]       # of an event: uuid, name, details


class Link:
    """The connection to one warden. `folder`: where life files lie; `forget`: called when the qube's last process is gone."""

    def __init__(self, uuid: str, folder: str, tell: Tell, forget: Callable[[Link], None]) -> None:
        self.uuid = uuid
        self.known = Known.STARTING
        self._folder, self._tell, self._forget = folder, tell, forget
        self.facts: dict[str, Any] = {}              # its last status
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.first = asyncio.Event()                 # how it is, is known: it has answered, or has not, or is gone
        self.announced = False                       # `running` was reported to qubesd: its end must be, too
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._end: tuple[str, dict[str, Any]] = ("stopped", {})
        self._asking: asyncio.Task[None] | None = None

    # -- its life --------------------------------------------------------------------------------------------------------

    async def take_over(self, path: str | None) -> None:
        """As `listen`, of a warden that runs already: the path of its socket, None if it has none."""
        self.ready.set_result(None)
        self.known = Known.NONE
        stream = await self._connect(path) if path is not None else None
        if stream is not None:
            self._asking = asyncio.get_running_loop().create_task(self._first_status())
            await self.listen(stream)
        else:
            await self._see_end()

    async def _connect(self, path: str) -> socket.socket | None:
        """None when nobody listens there. A warden that takes no connections is waited for."""
        while True:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                with unix.address(path) as there:
                    stream.connect(there)
                return stream
            except BlockingIOError:                  # its queue is full of those who came before
                stream.close()
                self._see(Seen.QUIET)
                await asyncio.sleep(BUSY_AGAIN)
            except OSError:
                stream.close()
                return None

    async def _first_status(self) -> None:
        """One whose queue was full is called silent by now: it is asked all the same, and its answer says that it isn't."""
        await self._connected.wait()
        try:
            if self.known is Known.SILENT:
                self._send("status", {})
            else:
                await self.ask("status")
        except MachineError as error:
            log.debug("warden of %s: %s", self.uuid, error)

    async def listen(self, stream: socket.socket) -> None:
        """Read until it hangs up; then wait until the qube's last process is gone, and say so."""
        stream.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=stream)
        self._connected.set()
        lines = Lines()
        try:
            while data := await reader.read(65536):
                self._heard()
                for message in lines.feed(data):
                    self._message(message)
        except (OSError, PeerError) as error:
            log.warning("warden of %s: %s", self.uuid, error)
        finally:
            self._writer.close()
        await self._see_end()

    async def _see_end(self) -> None:
        """What is left of it is ended. One that does not end is told of, and waited for."""
        self._see(Seen.HUNG_UP)
        ending = asyncio.ensure_future(asyncio.to_thread(life.end, self._folder, self.uuid))
        done, _ = await asyncio.wait({ending}, timeout=KILL_TIME)
        if not done and self.announced:
            self._tell(self.uuid, "ending", {})
        await ending
        self._see(Seen.GONE)
        self._finish()

    async def end_from_outside(self) -> None:
        """Kill what holds the qube's lock. Returns when it is gone. Raises MachineError when it does not end."""
        if self.announced:
            self._tell(self.uuid, "killed", {})
        killing = asyncio.ensure_future(asyncio.to_thread(life.end, self._folder, self.uuid))
        try:
            async with asyncio.timeout(END_TIME):
                await asyncio.shield(killing)
                await self.gone.wait()
        except TimeoutError:
            raise MachineError("it was killed, but its processes have not ended yet") from None

    def abandon(self, reason: str) -> None:
        """Nobody who waits for it shall wait for ever."""
        if self._asking is not None:
            self._asking.cancel()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(MachineError(reason))
        self._connected.set()
        self.first.set()
        self.gone.set()

    def _finish(self) -> None:
        self._forget(self)
        event, detail = self._end
        if not self.ready.done():
            self.ready.set_exception(MachineError(str(detail.get("reason") or "its warden ended")))
        elif self.announced:
            self._tell(self.uuid, event, detail)
        self.abandon("the qube has ended")

    # -- what is known of it ---------------------------------------------------------------------------------------------

    def _see(self, seen: Seen) -> None:
        before, self.known = self.known, step(self.known, seen)
        if before is not self.known and self.known is Known.SILENT:
            self.first.set()
            if self.announced:
                self._tell(self.uuid, "silent", {})

    def _heard(self) -> None:
        """It has said something. After a silence, it is asked how it is."""
        if self.known is Known.SILENT:
            self._see(Seen.ANSWER)
            self._ask_how_it_is()

    def _ask_how_it_is(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._asking = asyncio.get_running_loop().create_task(self._ask_again())

    async def _ask_again(self) -> None:
        try:
            await self.ask("status")
        except MachineError:
            return                                   # silent again, or gone: that is told by itself
        if self.announced:
            self._tell(self.uuid, "answers", {})

    def _message(self, message: dict[str, Any]) -> None:
        event = message.pop("event", None)
        if event is None:
            answer = self._answers.pop(message.get("id", -1), None)
            if answer is not None and not answer.done():
                answer.set_result(message)
            elif answer is not None and "error" not in message and not self._answers:
                self._ask_how_it_is()                # an order that had been given up was carried out all the same
        elif event in ENDS:
            self._end = (str(event), message)
        elif event == "running":
            self.facts |= message
            self._see(Seen.ANSWER)
            if not self.ready.done():
                self.ready.set_result(None)
        elif self.announced:
            self._tell(self.uuid, str(event), message)

    # -- orders ------------------------------------------------------------------------------------------------------------

    async def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Raises MachineError with the warden's words, or because the qube ended meanwhile, or because its warden is silent, or
        waits for its QEMU too long.
        """
        if self.known is Known.SILENT:
            raise MachineError(SILENT)
        await self._connected.wait()
        if do != "kill":
            fields["before"] = time.monotonic() + ANSWER_TIME + PROBE_TIME
        answer, limit = self._send(do, fields), time.monotonic() + ORDER_TIME
        while not answer.done():
            done, _ = await asyncio.wait({answer}, timeout=ANSWER_TIME)
            if not done and not await self._is_there():
                self._see(Seen.QUIET)
                answer.cancel()
                raise MachineError(SILENT)
            if not answer.done() and time.monotonic() > limit:
                answer.cancel()
                raise MachineError(UNANSWERED)
        reply = answer.result()
        if "error" in reply:
            raise MachineError(str(reply["error"]))
        self.facts |= {key: value for key, value in reply.items() if key in STATUS}
        if self.known is Known.NONE:
            self._see(Seen.ANSWER)
        self.first.set()
        return reply

    async def _is_there(self) -> bool:
        """Whether it answers the question that it answers at once; its end is an answer, too."""
        try:
            probe = self._send("status", {})
        except MachineError:
            return True
        done, _ = await asyncio.wait({probe}, timeout=PROBE_TIME)
        if done:
            probe.exception()
        else:
            probe.cancel()
        return bool(done)

    def _send(self, do: str, fields: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        """The answer to come. Raises MachineError."""
        if self._writer is None or self._writer.is_closing():
            raise MachineError("the qube is ending")
        self._next += 1
        answer = self._answers[self._next] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_looked_at)
        self._writer.write(encode({"id": self._next, "do": do, **fields}))
        return answer


def _looked_at(answer: asyncio.Future[dict[str, Any]]) -> None:
    """Nobody may wait for it any more."""
    if not answer.cancelled():
        answer.exception()

