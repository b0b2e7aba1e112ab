"""Run a command or a service in a qube and have its output: what a program wants where a person takes qvm-run."""
from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from cloison.client import words
from cloison.client.connection import Connection
from cloison.client.ends import Source, Whole
from cloison.client.failures import CallTimeout, CommandFailed, QrexecError, TooMuchOutput, qube_name
from cloison.client.program import Driver, Order
from cloison.client.qrexec import Ends
from cloison.client.words import Command

__all__ = ["MAX_OUTPUT", "Completed", "TooMuchOutput", "run", "run_service"]

MAX_OUTPUT = 64 << 20                    # bytes of output, and of errors, that are handed back
_NOTHING: Mapping[str, str] = {}


class Completed(NamedTuple):
    """How it ended: its exit status, 128 + N for signal N, and what it wrote. The qube may have written anything."""

    status: int
    untrusted_stdout: bytes
    untrusted_stderr: bytes

    @property
    def untrusted_text(self) -> str:
        """Its output as text; what is no UTF-8 is replaced."""
        return self.untrusted_stdout.decode("utf-8", "replace")


def run(
    connection: Connection, qube: str, command: Command, *, user: str = "DEFAULT", data: bytes | str = b"",
    env: Mapping[str, str] = _NOTHING, cwd: str = "", timeout: float | None = None, max_output: int = MAX_OUTPUT,
    check: bool = False,
) -> Completed:
    """A shell command line, or a program's words, run in a running qube as `user`; `data` is its input.

    When this ends without an answer, for whatever reason, the program in the qube is killed. Raises QubeNotRunning, QrexecError,
    BadCommand, CallLost, CallTimeout after `timeout` seconds, TooMuchOutput above `max_output` bytes of output or of errors,
    and with `check` CommandFailed for a status other than 0.
    """
    line = words.program(command, user=user, env=env, cwd=cwd)
    return _run(connection, captured(qube, line, data, max_output), timeout, check=check)


def run_service(
    connection: Connection, qube: str, service: str, *, user: str = "DEFAULT", data: bytes | str = b"",
    timeout: float | None = None, max_output: int = MAX_OUTPUT, check: bool = False,
) -> Completed:
    """A qrexec service, `NAME` or `NAME+ARGUMENT`, in a running qube. As `run`."""
    return _run(connection, captured(qube, words.service(service, user=user), data, max_output), timeout, check=check)


def captured(qube: str, line: str, data: bytes | str, limit: int) -> Order:
    """Input known at the start, output kept."""
    content = data.encode() if isinstance(data, str) else data
    return Order(qube_name(qube), line, Ends(Source(content, ended=True) if content else None, Whole(limit), Whole(limit)))


def completed(order: Order, status: int, *, check: bool) -> Completed:
    """Raises CommandFailed."""
    assert isinstance(order.ends.stdout, Whole) and isinstance(order.ends.stderr, Whole)
    result = Completed(status, bytes(order.ends.stdout.untrusted), bytes(order.ends.stderr.untrusted))
    if check and status:
        raise CommandFailed(order.qube, *result)
    return result


def _run(connection: Connection, order: Order, timeout: float | None, *, check: bool) -> Completed:
    return completed(order, finish(connection, order, timeout), check=check)


def finish(connection: Connection, order: Order, timeout: float | None) -> int:
    """Run it to its end, or end it."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        with Driver(connection, order, deadline) as driver:
            return driver.do(driver.end(), timeout, deadline)
    except QrexecError as error:         # the qube's warden has not answered by then
        if deadline is None or time.monotonic() < deadline:
            raise
        raise CallTimeout(order.qube, timeout or 0.0) from error
