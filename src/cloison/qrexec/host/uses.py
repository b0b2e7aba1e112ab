"""A data port of a qube while it is in use, and how long each side is waited for.

The qube's agent says when a call is over. One that never does, because it is hostile or lost, ties up nobody else: callers are
told within GRACE that their call has ended. The port stays taken until the agent says so, for it may still use it.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cloison.qrexec.host.local_socket import Client
from cloison.runtime.relay import Relay

GRACE = 10.0                  # s that a guest has to say that a call is over, once its caller's side has ended
UNOPENED = 60.0               # s that it has to take up a channel whose caller is gone: a session may have to be opened first


@dataclass
class Use:
    """A data port in use: who waits for its end, and what still has to end before it is free."""

    peer: int                            # domain at the other end
    client: Client | None
    parts: set[str] = field(default_factory=lambda: {"guest"})   # guest, data
    relay: Relay | None = None
    cancel: Callable[[], None] | None = None     # gives up what was to bring the other end
    overdue: asyncio.TimerHandle | None = None   # until the guest's time is up

    def stop(self) -> None:
        """Nothing is waited for any more."""
        if self.cancel is not None:
            self.cancel()
        self.stop_timer()

    def stop_timer(self) -> None:
        if self.overdue is not None:
            self.overdue.cancel()
            self.overdue = None
