"""What a program inherits over fork: the resource limits of its user's session, and none of the agent's shelter from the kernel.

Both are set on this process for the moment of the fork, and set back. A function between fork and exec could do it, too, but
would make each call a third dearer under emulation. One thread, so nothing else runs in that moment.
"""
from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator, Mapping
from typing import NamedTuple

SHELTERED = -900
_NEEDED = 2                       # descriptors that a fork takes: they must have numbers below the limit for the program

_oom_score: dict[int, bytes] = {}         # a descriptor of this process's own, and what it is, once it is sheltered
_spare: list[int] = []            # descriptors with low numbers, given up for a fork


class Session(NamedTuple):
    """What a user's session gives to programs: variables, resource limits (which, soft, hard), umask (-1: ours)."""

    environment: Mapping[str, str] = {}
    limits: tuple[tuple[int, int, int], ...] = ()
    umask: int = -1


NO_SESSION = Session()


def shelter(score: int = SHELTERED) -> None:
    """From now on the kernel, short of memory, ends what this process starts before it ends this one. As root, at the start:
    it also keeps some low descriptors for later. Raises OSError.
    """
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    _oom_score[fd] = b"%d" % score
    os.write(fd, _oom_score[fd])
    _spare[:] = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(_NEEDED)]


@contextlib.contextmanager
def of(session: Session) -> Iterator[None]:
    """What is forked inside inherits the session's limits, but for the time limit, and no shelter. Raises OSError."""
    own = [(which, *resource.getrlimit(which)) for which, _, _ in session.limits]
    try:
        for fd in _oom_score:
            os.write(fd, b"0")
        while _spare:
            os.close(_spare.pop())
        for which, soft, hard in session.limits:
            if which != resource.RLIMIT_CPU:
                _set_limit(which, soft, hard)
        yield
    finally:
        for which, soft, hard in own:
            resource.setrlimit(which, (soft, hard))
        for fd, score in _oom_score.items():
            os.write(fd, score)
            with contextlib.suppress(OSError):       # then the next program may be refused for want of one
                _spare.extend(os.dup(fd) for _ in range(_NEEDED))


def _set_limit(which: int, soft: int, hard: int) -> None:
    """Raises OSError."""
    try:
        resource.setrlimit(which, (soft, hard))
    except ValueError as error:
        raise PermissionError(errno.EPERM, f"limit {which}: {error}") from None


def limit_time(pid: int, session: Session) -> None:
    """The time limit is set on the program itself, which has used none yet: this process may have used more already."""
    for which, soft, hard in session.limits:
        if which == resource.RLIMIT_CPU:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, which, (soft, hard))


def free(pid: int) -> None:
    """The program may run on every processor, whichever this process keeps to."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, range(os.cpu_count() or 1))
