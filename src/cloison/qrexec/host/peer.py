"""One call asked of another qube's qrexec daemon, on its local socket (reference/qrexec.md 5, 8)."""
from __future__ import annotations

import array
import asyncio
import contextlib
import socket
from types import TracebackType

from cloison.errors import PeerError
from cloison.runtime import unix_async
from cloison.wire import qrexec

ANSWER_TIME = 5.0                        # s a warden may take to accept a request, which it does whatever its qube does


class Peer:
    """The connection on which a call was asked for; it stays until the call is over, or this is closed."""

    def __init__(self, control: socket.socket, allocated: qrexec.Allocated) -> None:
        self._control = control
        self.xid, self.port = allocated.domain, allocated.port

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._control.close()

    async def over(self) -> None:
        """Wait for the call's end."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while await loop.sock_recv(self._control, 4096):
                pass


async def execute(path: str, caller: int, command: str, far_end: socket.socket | None) -> Peer:
    """Have a qube run that command line, its data channel with domain `caller`.

    `far_end` goes along and is the data channel for a daemon that takes descriptors. Raises OSError when nobody listens there
    (FileNotFoundError, ConnectionRefusedError), PeerError when the call is refused, not answered within ANSWER_TIME, or the daemon
    is none.
    """
    try:
        async with asyncio.timeout(ANSWER_TIME):
            return await _execute(path, caller, command, far_end)
    except TimeoutError as error:
        raise PeerError("the target's warden does not answer: it is stopped or stuck") from error


async def _execute(path: str, caller: int, command: str, far_end: socket.socket | None) -> Peer:
    loop = asyncio.get_running_loop()
    control = await unix_async.connect(path)
    try:
        request = qrexec.exec_command(qrexec.EXEC_CMDLINE, caller, 0, command)
        await loop.sock_sendall(control, qrexec.hello(qrexec.SOCKET_VERSION))
        sent = 0
        if far_end is not None:              # it travels with the request's first byte, into an empty buffer
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [far_end.fileno()]))
            sent = control.sendmsg([request], [rights])
        await loop.sock_sendall(control, request[sent:])
        return Peer(control, await _allocated(control))
    except BaseException:
        control.close()
        raise


async def _allocated(control: socket.socket) -> qrexec.Allocated:
    """Raises PeerError, OSError."""
    loop = asyncio.get_running_loop()
    decoder = qrexec.Decoder(qrexec.TO_CLIENT)
    while data := await loop.sock_recv(control, 4096):
        decoder.feed(data)
        while (message := decoder.next_message()) is not None:
            if isinstance(message, qrexec.Allocated):
                return message
    raise PeerError("the target's qrexec daemon refused the call")
