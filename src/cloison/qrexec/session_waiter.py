"""Waiting for a user's session before a service that wants one, here or in a qube (reference/qrexec.md 9.4)."""
from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial

from cloison.qrexec import lookup, process
from cloison.qrexec.lookup import FAILED, CannotStart, Executable
from cloison.runtime.children import when_ended
from cloison.runtime.say import say
from cloison.wire.qrexec import Command

SERVICE = "qubes.WaitForSession"
MAX_WAITING = 256


class Waiter:
    """One run of the service for a user serves all who wait for that one meanwhile, whatever its status."""

    def __init__(self, *, remember: bool = False, inherit: bool = False) -> None:
        """`remember`: where the service has once ended well it isn't asked again, until `forget`. `inherit`: it sees our
        environment, as services of the host do.
        """
        self._remember, self._inherit = remember, inherit
        self._there: set[str] = set()
        self._waiting: dict[str, list[Callable[[], None]]] = {}      # by user, while the service runs

    def wait(self, user: str, source: str, then: Callable[[], None]) -> None:
        """Call `then` when that user has a session, at once if the system knows no such thing. Raises CannotStart."""
        if user in self._there:
            then()
            return
        if sum(map(len, self._waiting.values())) >= MAX_WAITING:
            raise CannotStart(FAILED, "too many calls wait for a session")
        if user not in self._waiting:
            try:
                running = _start(user, source, inherit=self._inherit)
                when_ended(running.pid, partial(self._ended, user, running))
            except (CannotStart, OSError) as error:
                then()
                say(f"no waiting for a session: {error}")
                return
        self._waiting.setdefault(user, []).append(then)

    def forget(self, user: str) -> None:
        """That user's session has ended."""
        self._there.discard(user)

    def _ended(self, user: str, running: subprocess.Popen[bytes]) -> None:
        if running.wait() == 0 and self._remember:
            self._there.add(user)
        for then in self._waiting.pop(user):
            then()


def _start(user: str, source: str, *, inherit: bool) -> subprocess.Popen[bytes]:
    """Raises CannotStart."""
    found = lookup.find(SERVICE, None, lookup.service_path())
    if not isinstance(found, Executable):
        raise CannotStart(FAILED, f"{SERVICE} is no program")
    own = process.own_user()
    env = process.environment(own, Command(own.name, service=SERVICE, source=source), inherit=inherit)
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
