"""Service admin.vm.Console: joins its caller with a qube's serial console (reference/admin-api.md 1.7).

qrexec, or Qubes OS's own client, runs it with the caller and the qube in the environment. One caller at a time: the second
ends with status 200. A reply of qubesd that is no terminal is passed on as it is.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
from collections.abc import Mapping

from cloison.client.connection import Connection
from cloison.errors import BadRequest, CloisonError
from cloison.values import InvalidValue, QubeName
from cloison.wire.admin import exception

IN_USE = 200
_CHUNK = 65536


def run(environ: Mapping[str, str], stdin: int, stdout: int) -> int:
    """Until either end is gone; the exit status."""
    try:
        connection = Connection(source=QubeName(environ.get("QREXEC_REMOTE_DOMAIN", "")))
        target = QubeName(environ.get("QREXEC_REQUESTED_TARGET", ""))
        terminal = connection.call(target, "admin.vm.Console").decode("ascii")
    except InvalidValue as error:
        os.write(stdout, exception(BadRequest.wire, str(error)))
        return 1
    except CloisonError as error:
        os.write(stdout, exception(getattr(error, "class_name", error.wire), str(error)))
        return 1
    console = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        fcntl.flock(console, fcntl.LOCK_EX | fcntl.LOCK_NB)     # on the terminal itself: nothing is left to clean up
        _join(console, stdin, stdout)
    except BlockingIOError:
        return IN_USE
    finally:
        os.close(console)
    return 0


def _join(console: int, stdin: int, stdout: int) -> None:
    """Bytes of the qube go out as they are: it is the caller's terminal that they are for."""
    poll = select.poll()
    for fd in (console, stdin):
        poll.register(fd, select.POLLIN)
    with contextlib.suppress(OSError):          # the console is gone, or nobody reads what comes out
        while True:
            for fd, _ in poll.poll():
                data = os.read(fd, _CHUNK)
                if not data:
                    return
                _write_all(stdout if fd == console else console, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def main() -> int:
    return run(os.environ, sys.stdin.fileno(), sys.stdout.fileno())
