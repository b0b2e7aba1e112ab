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
RETRY = 0.05                             # seconds until it is looked for again


class AgentSilent(QrexecError):
    """The qube runs, and nothing in it answers."""

    hint = "Restart it: qvm-shutdown --wait, or qvm-kill if that doesn't help; then qvm-start."


def when_there(paths: Paths, qube: str, attempt: Callable[[], Made]) -> Made:
    """What `attempt` gives as soon as it finds the qube's daemon. Raises QubeNotRunning, AgentSilent, and what else it raises."""
    end = 0.0
    while True:
        try:
            return attempt()
        except QubeNotRunning as error:
            state = _state(paths, qube)
            if state != "Running":
                more = f": it is {state.lower()}" if state not in ("", "Halted") else ""
                raise QubeNotRunning(f"{qube} does not run{more}") from error
            end = end or time.monotonic() + AGENT_TIME
            if time.monotonic() > end:
                raise AgentSilent(f"{qube} runs, but its agent has not answered for {AGENT_TIME:.0f} s") from error
        time.sleep(RETRY)


def _state(paths: Paths, qube: str) -> str:
    """As qubesd says it; empty if it says nothing."""
    from cloison.client.connection import Connection
    from cloison.client.domains import list_qubes

    try:
        return next((each.state for each in list_qubes(Connection(paths), qube).values()), "")
    except (CloisonError, OSError):
        return ""
