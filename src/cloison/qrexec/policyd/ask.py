"""How the policy daemon reaches the agent that asks the person: on the host through its socket, in a GUI qube by a call.

Whatever goes wrong is a refusal. A caller that goes away cancels the question; the agent sees its connection close and takes
the window down.
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Sequence

from cloison.errors import CloisonError, PeerError
from cloison.policy.facts import HOST
from cloison.runtime.paths import Paths
from cloison.runtime.unix_async import connect
from cloison.wire import ask as wire

log = logging.getLogger(__name__)
ASK_TIME = 300.0          # seconds a person has
NOTIFY_TIME = 2.0
SOCKET = "policy-agent.sock"
QREXEC_CLIENT = (sys.executable, "-P", "-m", "cloison.qrexec.host.client_main")
_CHUNK = 1 << 12


class NoAnswer(CloisonError):
    """The person could not be asked, or did not answer."""

    hint = "Start the agent with: cloison ask-agent"


def qrexec_client(gui_qube: str, service: str) -> list[str]:
    """The command that calls a service of that qube in the name of the host."""
    return [*QREXEC_CLIENT, "-d", gui_qube, f"DEFAULT:QUBESRPC {service} {HOST}"]


class Agents:
    """`call`: how to reach a qube's service, as a command."""

    def __init__(self, paths: Paths, call: Callable[[str, str], Sequence[str]] = qrexec_client) -> None:
        self._socket, self._call = paths.socket(SOCKET), call

    async def ask(self, gui_qube: str, question: wire.Question, seconds: float = ASK_TIME) -> str | None:
        """The chosen target, or None for a refusal. Raises NoAnswer."""
        try:
            answer = await self._send(gui_qube, wire.ASK, wire.encode_question(question), seconds)
            return wire.parse_answer(answer)
        except PeerError as error:
            raise NoAnswer(f"the agent that asks did not answer properly: {error}") from error

    async def notify(self, gui_qube: str, notice: wire.Notice) -> None:
        """Raises nothing: a message that nobody sees changes no decision."""
        try:
            await self._send(gui_qube, wire.NOTIFY, wire.encode_notice(notice), NOTIFY_TIME)
        except NoAnswer as error:
            log.debug("nobody was told of a call: %s", error)

    async def _send(self, gui_qube: str, service: str, request: bytes, seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                if gui_qube == HOST:
                    return await self._on_host(request)
                return await self._in_qube(gui_qube, service, request)
        except TimeoutError as error:
            raise NoAnswer("nobody answered in time") from error
        except OSError as error:
            raise NoAnswer(f"the agent that asks can't be reached: {error}") from error

    async def _on_host(self, request: bytes) -> bytes:
        loop, answer = asyncio.get_running_loop(), bytearray()
        with await connect(self._socket) as sock:
            await loop.sock_sendall(sock, request)
            sock.shutdown(socket.SHUT_WR)
            while data := await loop.sock_recv(sock, _CHUNK):
                answer += data
                if len(answer) > wire.MAX_ANSWER:
                    raise PeerError("its answer is too long")
        return bytes(answer)

    async def _in_qube(self, gui_qube: str, service: str, request: bytes) -> bytes:
        """The called service gets its descriptor from the qube's own agent."""
        process = await asyncio.create_subprocess_exec(
            *self._call(gui_qube, service), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True)
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request.partition(b"\0")[2])
            process.stdin.write_eof()
            answer = await process.stdout.read(wire.MAX_ANSWER + 1)
            if await process.wait() != 0:
                raise NoAnswer(f"the agent in {gui_qube} can't be reached")
            return answer
        finally:
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
