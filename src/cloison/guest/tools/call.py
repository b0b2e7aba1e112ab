"""A qrexec call out of this qube whose other end we speak with ourselves, through `qrexec-client-vm` and one socket."""
from __future__ import annotations

import _socket  # `socket` brings much that a start under emulation pays for
import os
import sys

TYPE_CHECKING = False                    # what types need costs a start under emulation
if TYPE_CHECKING:
    from typing import NoReturn

CLIENT = "qrexec-client-vm"
REFUSED = 126
LOST = 255                               # the channel went before the status came


class Outgoing:
    """A call under way. `socket` is our end: what we send is the service's input, what comes is its output."""

    def __init__(self, target: str, service: str) -> None:
        """Raises OSError if the client can't be started."""
        self.socket, theirs = _socket.socketpair()
        argv = [CLIENT, "--use-stdin-socket", "--", target, service]
        try:
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
            self._pid = os.posix_spawnp(CLIENT, argv, os.environ, file_actions=actions)
        finally:
            theirs.close()

    def end_input(self) -> None:
        """The service sees the end of its input; its output still comes."""
        self.socket.shutdown(_socket.SHUT_WR)

    def wait(self) -> int:
        """Hang up, and wait until the call has ended: its exit status (128 + N for a signal)."""
        self.socket.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return code if code >= 0 else 128 - code


def fail(prog: str, sentence: str, status: int = 1) -> NoReturn:
    """One sentence on standard error, and the end."""
    print(f"{prog}: {sentence}", file=sys.stderr)
    raise SystemExit(status)


def write_all(fd: int, data: bytes) -> None:
    """All of it, to a blocking descriptor. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]
