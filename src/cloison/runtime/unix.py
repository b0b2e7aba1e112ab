"""Unix sockets: connecting and listening however deep the folder lies, and who is at the other end."""
from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

_ADDRESS = 107                           # bytes of a path that fit a socket address
_CREDENTIALS = struct.Struct("3i")       # process, user, group


def is_same_user(stream: socket.socket) -> bool:
    """Whether the peer was this user when it connected."""
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())


@contextlib.contextmanager
def address(path: str) -> Iterator[str]:
    """The path as a socket address has room for it, to bind or connect inside the context. Raises OSError for a missing folder."""
    if len(os.fsencode(path)) <= _ADDRESS:
        yield path
        return
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def listen(path: str, backlog: int, mode: int = 0o600) -> socket.socket:
    """A stream socket that listens at that path, not blocking, by default for this user alone. What lies there is replaced.

    Raises OSError.

    The path appears when it can be connected to, and never before: who waits for it need only watch the folder. One process
    at a time may do this for a path; one that was killed meanwhile leaves nothing that the next one does not take away.
    """
    folder, name = os.path.split(path)
    coming = os.path.join(folder, f".{name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(coming)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with address(coming) as there:
            listener.bind(there)
        os.chmod(coming, mode)
        listener.listen(backlog)
        os.rename(coming, path)
    except OSError:
        listener.close()
        raise
    return listener


def connect(path: str, *, blocking: bool = True, own: bool = False) -> socket.socket:
    """A stream socket connected to that path. Raises OSError.

    Not `blocking`: also for good, and a listener whose backlog is full is BlockingIOError. `own`: what another user listens on
    is PermissionError; in a folder where all may write (/tmp) it could pose as ours.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(blocking)
        with address(path) as there:
            sock.connect(there)
        if own and not is_same_user(sock):
            raise PermissionError(errno.EPERM, "another user listens there", path)
    except BaseException:
        sock.close()
        raise
    return sock
