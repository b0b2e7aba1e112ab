"""Waiting for a user's session before a service that needs one (wait-for-session, reference/qrexec.md 9.4)."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from cloison.qrexec import lookup, process
from cloison.qrexec.lookup import FAILED, CannotStart, Executable
from cloison.runtime.children import when_ended
from cloison.wire.qrexec import Command

SERVICE = "qubes.WaitForSession"
MAX_WAITING = 256


class Waiter:
    """One run of the service serves all who wait meanwhile, whatever its status."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._running: subprocess.Popen[bytes] | None = None

    def wait(self, user: str, source: str, then: Callable[[], None]) -> None:
        """Call `then` when that user has a session, at once if the system knows no such thing. Raises CannotStart."""
        if self._running is None:
            try:
                self._running = _start(user, source)
            except CannotStart as error:
                print(f"no waiting for a session: {error}", file=sys.stderr)
                then()
                return
            when_ended(self._running.pid, self._ended)
        if len(self._waiting) >= MAX_WAITING:
            raise CannotStart(FAILED, "too many calls wait for a session")
        self._waiting.append(then)

    def _ended(self) -> None:
        if self._running is not None:
            self._running.wait()
            self._running = None
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()


def _start(user: str, source: str) -> subprocess.Popen[bytes]:
    """Raises CannotStart."""
    found = lookup.find(SERVICE, None, lookup.service_path())
    if not isinstance(found, Executable):
        raise CannotStart(FAILED, f"{SERVICE} is no program")
    own = process.own_user()
    env = process.environment(own, Command(own.name, service=SERVICE, source=source))
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(writing, user.encode("utf-8", "surrogateescape") + b"\n")
        return subprocess.Popen(
            [found.path], env=env, stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        raise CannotStart(FAILED, f"{found.path}: {error.strerror}") from None
    finally:
        os.close(reading)
        os.close(writing)
