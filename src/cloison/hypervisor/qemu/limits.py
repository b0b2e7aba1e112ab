"""What the kernel holds a QEMU to, from before its first instruction: addresses, open files, tasks, and the length of files.

A file is the last that is needed to fill the host's disk: a guest that owns its QEMU may write to its own uppermost layers, and
their length is nobody's but the kernel's to bound. RLIMIT_FSIZE is one number for a process, so it is what the largest of its disks
can come to. The filter (runtime/seccomp.py) keeps it from raising the limit and from having space that is beyond a file's end. An
honest QEMU never gets there: a full image of a disk is as long as the disk, and a six-thousandth of that for its tables; it grows
with the disk (`let_grow`). The signal that comes with the error is ignored, so that it would be the guest that hears of it.
"""
from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterable

from cloison.errors import MachineError
from cloison.hypervisor import sandbox
from cloison.hypervisor.base import Disk, MachineSpec
from cloison.hypervisor.qemu import argv
from cloison.runtime.memory import (
    ends_first,
    family,
    hold_tasks_of,
    let_write,
    lift,
    limit_addresses,
    limit_files,
    limit_length,
    limit_tasks,
)
from cloison.runtime.programs import find

OPEN_FILES = 1024           # some sixty are open; each disk, queue and processor more takes a few
TASKS = 1024                # a thread for each processor, 64 for disks, a few more
OOM_SCORE = 700             # a QEMU goes before its warden, and both before qubesd
_TABLES = 1 << 10           # of a disk, one byte in so many for an image's tables: six times what they take
_SPARE = 64 << 20           # bytes of every file: headers, an encrypted one's key slots, a machine's state, lost clusters


def confine(memory: int, length: int) -> None:
    """Between fork and exec: what holds for the sandbox and QEMU."""
    lift()
    limit_addresses(argv.addresses(memory) << 20)
    limit_files(OPEN_FILES)
    if os.getuid() >= sandbox.FIRST_USER:
        limit_tasks(TASKS)                     # of a user of its own; another's: hold_tasks
    limit_length(length)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ends_first(OOM_SCORE)


def hold_tasks(pid: int) -> None:
    """No more threads than TASKS, of a machine that is up and belongs to the user who runs Cloison.

    The kernel counts a user's processes for each user namespace since 5.14: set from outside, when the box is there, the limit
    holds what is in the box and counts nothing else. Before that it would count all that the user runs: warden/watch.py is left.
    """
    if sandbox.host_user() is None and counted_by_namespace(os.uname().release):
        with contextlib.suppress(OSError):     # it has ended
            hold_tasks_of(pid, TASKS)


def counted_by_namespace(release: str) -> bool:
    """By the kernel's version; False for one that can't be read."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) >= (5, 14)


def length_for(size: int) -> int:
    """Bytes that the image of a disk of that size may come to."""
    return size + size // _TABLES + _SPARE


def longest(spec: MachineSpec) -> int:
    """Bytes of the longest file that this machine may come to write. Raises OSError."""
    return max([length_for(max(disk.size, _written(disk))) for disk in spec.disks] + [(spec.memory << 20) + _SPARE])


def _written(disk: Disk) -> int:
    """Bytes that its writable files have already."""
    files: Iterable[int] = (os.fstat(file.fd).st_size for file in disk.files if not file.read_only)
    return max(files, default=0)


def let_grow(pid: int, length: int) -> None:
    """The processes of a machine may write files of that length from now on. Raises MachineError, HostError.

    The kernel lets a process of the same user do so. Another user's limits are for those with a capability of its own
    (CAP_SYS_RESOURCE), which a container's root has not: so root has a process of the box's user do it.
    """
    user = sandbox.host_user()
    try:
        if user is None:
            let_write(pid, length)
        else:
            for each in family(pid):
                _as_user(user, [find("prlimit"), "--pid", str(each), f"--fsize={length}:"])
    except OSError as error:
        raise MachineError(f"it may write no longer files until it is started again: {error.strerror}") from error


def _as_user(user: int, argv: list[str]) -> None:
    """Raises OSError."""
    done = subprocess.run(argv, user=user, group=user, extra_groups=[], env={}, stdin=subprocess.DEVNULL, check=False,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
