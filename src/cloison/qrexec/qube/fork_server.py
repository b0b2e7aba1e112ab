"""`qrexec-fork-server`: starts what calls ask for inside its user's session (reference/qrexec.md 9.2).

The agent hands it the calls of its user; programs see the session's environment. Only root and that user may connect.
"""
from __future__ import annotations

import asyncio
import os
import pwd
import socket
import sys

from cloison.errors import PeerError
from cloison.qrexec import ending, process, service_config
from cloison.qrexec.call import Call
from cloison.qrexec.ending import Reach
from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.qube.agent import FORK_REQUEST, FORK_SERVER
from cloison.runtime import unix
from cloison.runtime.port import Channels
from cloison.runtime.say import say
from cloison.runtime.vchan_socket import PARTING, GivenVchan, VchanSocket, folder
from cloison.wire import qrexec
from cloison.wire.mux import Address

MAX_CLIENTS = 256
MAX_COMMAND = qrexec.MAX_REQUEST + qrexec.MAX_USER
MAX_FDS = 1


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) > 1 or any(word.startswith("-") for word in words):
        print("usage: qrexec-fork-server [SOCKET-PATH]", file=sys.stderr)
        return 1
    own = pwd.getpwuid(os.geteuid()).pw_name
    try:
        server = unix.listen(words[0] if words else FORK_SERVER.replace("%s", own), MAX_CLIENTS)
    except OSError as error:
        print(f"qrexec-fork-server: can't listen: {error.strerror}", file=sys.stderr)
        return 1
    if os.fork():
        return 0                         # it serves in the background from here on
    with server:
        asyncio.run(_serve(server, own))
    return 0


async def _serve(server: socket.socket, user: str) -> None:
    """Until the session ends it."""
    loop = asyncio.get_running_loop()
    while True:
        stream, _ = await loop.sock_accept(server)
        _Request(stream, user)


class _Request:
    """One connection: one call. It is held until the call is over."""

    def __init__(self, stream: socket.socket, user: str) -> None:
        stream.setblocking(False)
        self._stream, self._user = stream, user
        self._untrusted = b""
        self._fds: list[int] = []
        self._channels: VchanSocket | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(stream, self._readable)

    def _readable(self) -> None:
        try:
            untrusted, fds, _, _ = socket.recv_fds(self._stream, FORK_REQUEST.size + MAX_COMMAND, MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            untrusted, fds = b"", []
        self._fds += fds
        self._untrusted += untrusted
        try:
            if not untrusted:
                raise PeerError("the request is not whole")
            if len(self._untrusted) >= FORK_REQUEST.size:
                self._request()
        except (PeerError, OSError) as error:
            self._close()
            say(f"qrexec-fork-server: request dropped: {error}")

    def _request(self) -> None:
        """Raises PeerError, OSError."""
        kind, domain, port, length = FORK_REQUEST.unpack_from(self._untrusted)
        if kind not in (qrexec.EXEC_CMDLINE, qrexec.JUST_EXEC) or min(domain, port) < 0 or not 1 <= length <= MAX_COMMAND:
            raise PeerError("out of range", kind, domain, port, length)
        words = self._untrusted[FORK_REQUEST.size:]
        if len(words) < length:
            return
        if len(words) > length or words.find(0) != length - 1:
            raise PeerError("a command must end in NUL, and nothing follows it")
        self._loop.remove_reader(self._stream)
        address = Address(domain, int(os.environ.get("VCHAN_DOMAIN") or 0), port)
        self._run(kind, address, words[:-1].decode("utf-8", "surrogateescape"))

    def _run(self, kind: int, address: Address, words: str) -> None:
        quiet = kind == qrexec.JUST_EXEC
        try:
            command = qrexec.parse_command(f"{self._user}:{words}")
        except PeerError as error:
            Call(self._open_channels(), address, self._close, quiet=quiet).refuse(error)
            return
        log = f"{command.full_name}-{command.source}" if command.service else ""
        call = Call(self._open_channels(), address, self._close, quiet=quiet, log=log)
        try:
            config = service_config.load(command.service, command.argument) if command.service else service_config.DEFAULT
            shell = os.environ.get("SHELL") or "/bin/sh"
            started = process.start(command, config._replace(force_user=""), quiet=quiet, inherit=True, shell=shell)
            call.serve(started, lambda: self._reach(command, address.server))
        except CannotStart as error:
            call.refuse(error)

    def _reach(self, command: qrexec.Command, domain: int) -> Reach:
        """None, when it is the agent that is gone: its end ends nobody's programs."""
        try:
            alive = bool(self._stream.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            alive = True
        except OSError:
            alive = False
        return ending.reach(command, domain) if alive else Reach.NOTHING

    def _open_channels(self) -> Channels:
        """The data channel came along, or is to be opened where vchans are Unix sockets. Raises OSError."""
        if self._fds:
            self._channels = GivenVchan(socket.socket(fileno=self._fds.pop()))
        else:
            self._channels = VchanSocket(folder(os.environ))
        return self._channels

    def _close(self) -> None:
        self._loop.remove_reader(self._stream)
        self._stream.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        if self._channels is not None:
            channels, self._channels = self._channels, None
            self._loop.call_later(PARTING, channels.end)


if __name__ == "__main__":
    sys.exit(main())
