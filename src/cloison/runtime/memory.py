"""What a process may take of the host, most of all memory, held by the host: for those that a guest may drive (decision 0044).

Bounds on queues are good behaviour; a limit holds when one was forgotten. Linux counts for RLIMIT_DATA what is private and
writable, which is nearly all that grows in a Python program. QEMU reserves far more than it uses (a stack of 1 MiB for each
request of a disk under way), so its limit on addresses is a backstop only, and what it really uses is looked at again and again.
"""
from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

_PAGE = resource.getpagesize()
_THREAD = 32 << 10          # bytes of the kernel's for each thread
MAX_THREADS = 512           # of a process; with more, each counts as a MiB: the host's process ids are few, and not memory


def limit_data(most: int) -> None:
    """This process's private memory, from now on: beyond it MemoryError is raised. Programs it starts get it, but for `lifted`."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def lift() -> None:
    """As if `limit_data` had never been called."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """For what is started inside."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    lift()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def limit_addresses(most: int) -> None:
    """This process and all that it starts, for good: nobody in there can take it back."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def ends_first(score: int) -> None:
    """When the host has no memory left, this process goes before those with a lower score. Raising it is everybody's right."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        if int(file.read()) < score:
            file.seek(0)
            file.write(str(score))


def limit_files(most: int) -> None:
    """Open files, likewise: a pipe alone holds 64 KiB of the kernel's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def limit_tasks(most: int) -> None:
    """Processes and threads of this process's user, likewise: only for a user who has no others."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def hold_tasks_of(pid: int, most: int) -> None:
    """Processes and threads, for good, of each of this process and its descendants, as their namespace counts. Raises OSError."""
    for each in family(pid):
        _, hard = resource.prlimit(each, resource.RLIMIT_NPROC)
        held = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.prlimit(each, resource.RLIMIT_NPROC, (held, held))


def limit_length(most: int) -> None:
    """Bytes of a file that is written, likewise; `let_write` raises it again, from outside."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def let_write(pid: int, most: int) -> None:
    """This process and its descendants may write files of that length. Raises OSError."""
    for each in family(pid):
        with contextlib.suppress(ProcessLookupError):
            soft, hard = resource.prlimit(each, resource.RLIMIT_FSIZE)
            if soft not in (resource.RLIM_INFINITY, hard) and soft < most:
                resource.prlimit(each, resource.RLIMIT_FSIZE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def used_by(pid: int) -> int:
    """Bytes that this process and its descendants, in whatever namespace, have in memory; 0 for one that is gone."""
    return sum(len(tasks) * (_THREAD if len(tasks) <= MAX_THREADS else 1 << 20) + _resident(each, tasks)
               for each, tasks in _with_threads(pid))


def family(pid: int) -> list[int]:
    """It and its descendants, in whatever namespace."""
    return [each for each, _ in _with_threads(pid)]


def _with_threads(pid: int) -> Iterator[tuple[int, list[str]]]:
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        with contextlib.suppress(OSError):
            tasks = os.listdir(f"/proc/{each}/task")
            for task in tasks:
                with contextlib.suppress(OSError, ValueError), open(f"/proc/{each}/task/{task}/children", encoding="ascii") as file:
                    waiting += map(int, file.read().split())
            yield each, tasks


def _resident(pid: int, tasks: list[str]) -> int:
    """By the first thread that lives: one that has ended shows nothing, the first one too, while the others go on."""
    for task in tasks:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/task/{task}/statm", encoding="ascii") as file:
            if pages := int(file.read().split()[1]):
                return pages * _PAGE
    return 0
