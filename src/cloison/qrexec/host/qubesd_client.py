"""What a qrexec daemon wants of qubesd: start a target, have a disposable for one call (reference/qrexec.md 8, 15.3).

A disposable lives as long as the connection it was asked for on: the end of this process, however it comes, ends it too
(docs/architecture.md "Leases"). With another qubesd, which knows no leases, it is created, started and killed.
"""
from __future__ import annotations

import asyncio
import contextlib
import socket
from types import TracebackType

from cloison.errors import CloisonError
from cloison.runtime import unix_async
from cloison.values import QubeName, Uuid
from cloison.wire.admin import EventDecoder, Failure, Request, encode_request, parse_reply

MAX_REPLY = 65536                        # bytes; all replies that are asked for here are a name or nothing
_RUNS = ("QubesVMNotHaltedError",)


class Refused(CloisonError):
    """qubesd did not do it. `class_name`: the exception it answered with."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.class_name = failure.class_name


def named(text: str) -> str:
    """A qube's name, or `uuid:` and a uuid. Raises InvalidValue, a ValueError."""
    if text.startswith("uuid:"):
        return f"uuid:{Uuid(text.removeprefix('uuid:'))}"
    return QubeName(text)


async def _begin(path: str, dest: str, method: str, payload: bytes = b"") -> socket.socket:
    loop = asyncio.get_running_loop()
    stream = await unix_async.connect(path)
    try:
        await loop.sock_sendall(stream, encode_request(Request(method, "", "dom0", "name", dest, payload)))
        stream.shutdown(socket.SHUT_WR)
    except BaseException:
        stream.close()
        raise
    return stream


async def call(path: str, dest: str, method: str, payload: bytes = b"") -> str:
    """The reply. Raises Refused, PeerError, OSError."""
    loop = asyncio.get_running_loop()
    reply = b""
    with await _begin(path, dest, method, payload) as stream:
        while len(reply) <= MAX_REPLY and (data := await loop.sock_recv(stream, MAX_REPLY)):
            reply += data
    result = parse_reply(reply)
    if isinstance(result, Failure):
        raise Refused(result)
    return result.decode("ascii", "replace")


async def start(path: str, qube: str) -> None:
    """It runs afterwards. Raises Refused, PeerError, OSError."""
    try:
        await call(path, qube, "admin.vm.Start")
    except Refused as error:
        if error.class_name not in _RUNS:
            raise


async def runs(path: str, qube: str) -> bool:
    """Whether it runs, as far as qubesd says so."""
    with contextlib.suppress(CloisonError, OSError):
        return "power_state=Running" in (await call(path, qube, "admin.vm.CurrentState")).split(" ")
    return False


class Disposable:
    """`async with` one: its `target` runs inside, and is killed when the block is left."""

    def __init__(self, path: str, template: str) -> None:
        """`template`: the disposable template's name or `uuid:...`."""
        self._path, self._template = path, template
        self._lease: socket.socket | None = None
        self.target = ""

    async def __aenter__(self) -> Disposable:
        """Raises CloisonError, OSError."""
        payload = b"uuid" if self._template.startswith("uuid:") else b""
        lease = await _begin(self._path, self._template, "cloison.Disposable", payload)
        try:
            self.target = await self._ready(lease)
            self._lease = lease
        except Refused as error:
            lease.close()
            if error.class_name != "ProtocolError":
                raise
            await self._without_lease(payload)
        except BaseException:
            lease.close()
            raise
        return self

    async def _ready(self, lease: socket.socket) -> str:
        loop = asyncio.get_running_loop()
        decoder = EventDecoder()
        while data := await loop.sock_recv(lease, MAX_REPLY):
            decoder.feed(data)
            while (event := decoder.next_event()) is not None:
                if event.event == "disposable-ready":
                    uuid = dict(event.pairs).get("uuid")     # it stays the same qube's, whatever is called so next
                    return f"uuid:{Uuid(uuid)}" if uuid else QubeName(event.subject)
        if failure := decoder.finish():
            raise Refused(failure)
        raise CloisonError("qubesd ended before the disposable was ready")

    async def _without_lease(self, payload: bytes) -> None:
        self.target = named(await call(self._path, self._template, "admin.vm.CreateDisposable", payload))
        try:
            await start(self._path, self.target)
        except BaseException:
            await self._kill()
            raise

    async def _kill(self) -> None:
        with contextlib.suppress(CloisonError, OSError):
            await call(self._path, self.target, "admin.vm.Kill")

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lease is not None:
            self._lease.close()
        else:
            await self._kill()
