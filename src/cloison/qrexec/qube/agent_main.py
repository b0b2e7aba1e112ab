"""`qrexec-agent`: the qube's end of qrexec as a program of its own, over vchan-socket (reference/qrexec.md 2.2, 11).

In a qube of ours the same code runs inside the agent that also has the qube's other channels (`guest/agent.py`).
"""
from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys

from cloison.qrexec.lookup import FAILED
from cloison.qrexec.qube import sessions
from cloison.qrexec.qube.agent import FORK_SERVER, ControlChannel
from cloison.qrexec.qube.trigger import SOCKET
from cloison.runtime.vchan_socket import VchanSocket, folder
from cloison.wire.mux import Address
from cloison.wire.qrexec import CONTROL_PORT


def main() -> None:
    if not all(os.path.exists(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)):
        sys.exit(FAILED)                 # a program of a call would get them for something else
    parser = argparse.ArgumentParser(prog="qrexec-agent", description="Serve this qube's qrexec over vchan-socket.")
    parser.add_argument("-a", "--agent-socket", metavar="PATH", default=SOCKET, help="where programs ask for calls")
    parser.add_argument("-s", "--fork-server-socket", metavar="PATTERN", default=FORK_SERVER, help="%%s is the user's name")
    parser.add_argument("-S", "--no-fork-server", dest="fork_server_socket", action="store_const", const="",
                        help="start every program from here")
    args = parser.parse_args()
    sys.exit(asyncio.run(_serve(args.agent_socket, args.fork_server_socket)))


async def _serve(agent_socket: str, fork_server: str) -> str | None:
    """Until SIGTERM, or the daemon breaks the protocol: how, for the log."""
    xid = int(os.environ.get("VCHAN_DOMAIN") or 0)
    channels = VchanSocket(folder(os.environ))
    end: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    address = Address(xid, 0, CONTROL_PORT)

    def lost(reason: str) -> None:
        if reason and not end.done():
            end.set_result(reason)
        elif not end.done():
            channels.listen(address, control.opened)      # for the daemon's successor

    def ready() -> None:
        control.triggers.serve(agent_socket)
        _notify("READY=1")

    def terminate() -> None:
        if not end.done():
            end.set_result(None)

    users = sessions.Sessions() if sessions.available() else None
    control = ControlChannel(
        channels, lost, xid=xid, gives_descriptors=False, fork_server=fork_server, on_ready=ready, sessions=users)
    channels.listen(address, control.opened)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await end
    finally:
        control.triggers.close()
        if users is not None:
            users.close()
        channels.end()


def _notify(state: str) -> None:
    """Tell systemd, if it asked for it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as stream:
        stream.connect("\0" + path[1:] if path.startswith("@") else path)
        stream.send(state.encode())


if __name__ == "__main__":
    main()
