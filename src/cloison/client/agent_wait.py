"""A call to a qube whose agent has just ended: the qube runs, and another agent takes over (docs/decisions/0048)."""
from __future__ import annotations

import time

from cloison.client.failures import QrexecError
from cloison.errors import CloisonError, QubeNotRunning
from cloison.runtime.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Made = TypeVar("Made")

AGENT_TIME = 10.0                        # seconds that a new agent may take in a qube that runs
DOM0 = "dom0"                            # `client.domains` would cost each call its import
RETRY = 0.05                             # seconds until it is looked for again


class AgentSilent(QrexecError):
    """The qube runs, and nothing in it answers."""

    hint = "Restart it: qvm-shutdown --wait, or qvm-kill if that doesn't help; then qvm-start."


class NotInAQube(QrexecError):
    """dom0 is said to run, and has no agent: it is the host."""

    hint = "Programs of the host need no tool; qvm-ls lists the qubes."


class Patience:
    """One caller's. `seconds`: it waits no longer than that."""

    def __init__(self, qube: str, seconds: float | None = None) -> None:
        self._qube = qube
        self._seconds = AGENT_TIME if seconds is None else min(AGENT_TIME, seconds)
        self._end = 0.0

    def check(self, state: str, error: QubeNotRunning) -> None:
        """Nobody listens for a qube in that state. Returns if somebody may soon; raises QubeNotRunning, AgentSilent, NotInAQube."""
        if self._qube == DOM0:
            raise NotInAQube("dom0 is this machine, not a qube: nothing can be run in it or copied to it") from error
        if state != "Running":
            more = f": it is {state.lower()}" if state not in ("", "Halted") else ""
            raise QubeNotRunning(f"{self._qube} does not run{more}") from error
        self._end = self._end or time.monotonic() + self._seconds
        if time.monotonic() > self._end:
            raise AgentSilent(f"{self._qube} runs, but its agent has not answered for {self._seconds:.0f} s") from error


def when_there(paths: Paths, qube: str, attempt: Callable[[], Made], seconds: float | None = None) -> Made:
    """What `attempt` gives as soon as it finds the qube's daemon. Raises what `Patience.check` does, and what else it raises."""
    patience = Patience(qube, seconds)
    while True:
        try:
            return attempt()
        except QubeNotRunning as error:
            patience.check(state(paths, qube), error)
        time.sleep(RETRY)


def state(paths: Paths, qube: str) -> str:
    """As qubesd says it; empty if it says nothing."""
    from cloison.client.connection import Connection
    from cloison.client.domains import list_qubes

    try:
        return next((each.state for each in list_qubes(Connection(paths), qube).values()), "")
    except (CloisonError, OSError):
        return ""
