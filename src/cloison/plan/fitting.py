"""Whether a qube's settings can work on this machine: looked at when it starts, not when they are set.

Like Qubes OS, the Admin API takes any positive number: a system that is taken over or moved may hold what fits another machine. But
a start that can never come to an end, or that would take the host's processors for itself, is refused with the value, the limit and
the command that helps.
"""
from __future__ import annotations

from cloison.errors import NotEnoughMemory, QubeError
from cloison.model.domains import Qube

LEAST_MEMORY = 128          # MiB: below it Debian's kernel and what boots with it do not come up
LEAST_LIMIT = 8             # virtual processors that any machine lets a qube have
MOST_WAIT = 1 << 20         # s that a start can be told to wait for its agent


def most_vcpus(cpus: int) -> int:
    """Twice what the host has: more gains nothing, and under emulation each is a thread that may never rest."""
    return max(LEAST_LIMIT, 2 * cpus)


def check_fits(qube: Qube) -> None:
    """Raises NotEnoughMemory, QubeError."""
    host = qube.system.host
    memory, vcpus = int(qube.get("memory")), int(qube.get("vcpus"))
    if memory > host.memory:
        raise NotEnoughMemory(f"{qube.name} is to have {memory} MiB of memory, and this machine has {host.memory}: "
                              f"give it less with qvm-prefs {qube.name} memory MiB")
    if memory < LEAST_MEMORY:
        raise QubeError(f"{qube.name} is to have {memory} MiB of memory, and none starts with less than {LEAST_MEMORY}: "
                        f"give it more with qvm-prefs {qube.name} memory MiB")
    most = most_vcpus(host.cpus)
    if vcpus > most:
        raise QubeError(f"{qube.name} is to have {vcpus} processors, and {most} are the most on this machine with {host.cpus}: "
                        f"give it fewer with qvm-prefs {qube.name} vcpus NUMBER")


def start_timeout(least: int, qrexec_timeout: int) -> int:
    """Seconds that a start waits for its agent."""
    return min(max(least, qrexec_timeout), MOST_WAIT)
