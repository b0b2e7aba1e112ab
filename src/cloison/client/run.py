"""Run a command or a service in a qube and have its output: what a program wants where a person takes qvm-run."""
from __future__ import annotations

import os
from typing import NamedTuple

from cloison.client import qrexec
from cloison.client.connection import Connection
from cloison.client.domains import DOM0
from cloison.errors import CloisonError
from cloison.values import QubeName

MAX_OUTPUT = 64 << 20                    # bytes of output, and of errors, that are handed back


class TooMuchOutput(CloisonError):
    """The qube sent more than the caller wants to hold."""

    hint = "Let the command write to a file of yours: qvm-run --pass-io."


class Completed(NamedTuple):
    """How it ended: its exit status (255: lost on the way), and what it wrote. The qube may have written anything."""

    status: int
    untrusted_stdout: bytes
    untrusted_stderr: bytes


def run(connection: Connection, qube: str, command: str, *, user: str = "DEFAULT", data: bytes = b"") -> Completed:
    """A shell command line, run in a running qube as `user`; `data` is its input. Raises QubeNotRunning, QrexecError."""
    # A space keeps the agent from reading a command as a service call or an option.
    space = " " if command.startswith(("QUBESRPC ", "nogui:")) else ""
    return _run(connection, qube, f"{user}:{space}{command}", data)


def run_service(connection: Connection, qube: str, service: str, *, user: str = "DEFAULT", data: bytes = b"") -> Completed:
    """A qrexec service, `NAME` or `NAME+ARGUMENT`, in a running qube."""
    return _run(connection, qube, f"{user}:QUBESRPC {service}{'' if '+' in service else '+'} {DOM0}", data)


def _run(connection: Connection, qube: str, command: str, data: bytes) -> Completed:
    files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr")]
    try:
        with open(files[0], "wb", closefd=False) as file:
            file.write(data)
        os.lseek(files[0], 0, os.SEEK_SET)
        status = qrexec.run(connection.paths, QubeName(qube), command, qrexec.Ends(files[0], files[1], files[2]))
        return Completed(status, *(_content(fd) for fd in files[1:]))
    finally:
        for fd in files:
            os.close(fd)


def _content(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > MAX_OUTPUT:
        raise TooMuchOutput(f"the qube sent {size} bytes, more than the {MAX_OUTPUT} that are taken")
    return os.pread(fd, size, 0)
