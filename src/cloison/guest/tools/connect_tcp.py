"""qvm-connect-tcp: a port of another qube as a port of this one's loopback; each connection is a call of qubes.ConnectTCP."""
from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from cloison.guest.tools.call import CLIENT, fail

_USAGE = """\
usage: {prog} [LOCALPORT]:[QUBE]:PORT
Bind LOCALPORT (default: PORT) of this qube to PORT of another qube, by service qubes.ConnectTCP."""
PORT_MAX = 65535


def main(argv: Sequence[str]) -> int:
    """The program. The parent ends with 0 when the port is open; a child in the background serves it."""
    prog = os.path.basename(argv[0])
    words = argv[1].split(":") if len(argv) == 2 else []
    if len(words) != 3 or words[0].startswith("-"):
        fail(prog, _USAGE.format(prog=prog))
    target, port = words[1] or "@default", _port(prog, words[2])
    local = _port(prog, words[0]) if words[0] else port
    try:
        listener = socket.create_server(("127.0.0.1", local))
    except OSError as error:
        fail(prog, f"can't bind port {local}: {error.strerror}")
    print(f"Binding TCP '{target}:{port}' to 'localhost:{local}'...", flush=True)
    if os.fork():
        return 0
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    return serve(listener, target, f"qubes.ConnectTCP+{port}")


def _port(prog: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= PORT_MAX):
        fail(prog, f"{text!r} is not a port: a number from 1 to {PORT_MAX}")
    return int(text)


def serve(listener: socket.socket, target: str, service: str) -> NoReturn:
    """A call per connection, for ever. Ended calls leave no zombie behind."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    argv = [CLIENT, "--use-stdin-socket", "--", target, service]
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                os.posix_spawnp(CLIENT, argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, connection.fileno(), 0)],
                                setsigdef=[signal.SIGCHLD])
            except OSError as error:
                print(f"call not started: {error.strerror}", file=sys.stderr)
