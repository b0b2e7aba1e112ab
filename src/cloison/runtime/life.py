"""Whether any process of a qube still lives: a lock that the kernel lets go when the last of its holders is gone.

The warden takes it and hands its descriptor to the box around QEMU (a lock made by flock belongs to the open file, not to a
process): all that sets up the box holds it, and then pid 1 of the box, without which nothing in the box can live. QEMU does not
hold it and can't make pid 1 let go (seccomp.py). So even after a kill -9 of the warden one can wait, without polling and without
process ids, until the qube is gone, but for the moment that the kernel takes to end what is left in the box: who minds that asks
whether the qube's disks are open (holders.py).

The file is a FIFO: whoever in the box finds it through pid 1 can open it, as its owner, and write to it, but nothing is kept.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal


def _path(folder: str, uuid: str) -> str:
    return os.path.join(folder, f"life.{uuid}")


def take(folder: str, uuid: str) -> int:
    """The descriptor to hand on. Raises BlockingIOError if the qube lives already."""
    path = _path(folder, uuid)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def wait_gone(folder: str, uuid: str) -> None:
    """Block until nobody holds it. Call it in a thread."""
    try:
        fd = os.open(_path(folder, uuid), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)   # not as a holder does, so that `end` tells them apart
    finally:
        os.close(fd)


def end(folder: str, uuid: str) -> None:
    """Kill what still holds it, this process excepted, and block until nobody does. Call it in a thread, when the warden is done.

    A warden's death takes its machine along, but for the milliseconds in which the sandbox has not asked the kernel for that yet.
    Meanwhile the sandbox forks and lets go: a look at all processes may see the parent without the lock and miss the child with
    it. So what counts is the lock: while it is held, look again.
    """
    path = _path(os.path.realpath(folder), uuid)
    while not _is_free(path):
        _kill_holders(path)


def _is_free(path: str) -> bool:
    """Whether nobody holds the lock now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _kill_holders(path: str) -> None:
    """Kill the processes that are found to hold that file, and wait until they are dead."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):          # it is gone, or another user's
                _kill_holder(int(entry), path)


def _kill_holder(pid: int, path: str) -> None:
    process = os.pidfd_open(pid)                        # first: so that what is looked at is what is killed
    try:
        if any(_is_lock(pid, fd, path) for fd in os.listdir(f"/proc/{pid}/fd")):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            dead = select.poll()                        # not select(): qubesd's descriptors can be many
            dead.register(process, select.POLLIN)
            dead.poll()
    finally:
        os.close(process)


def _is_lock(pid: int, fd: str, path: str) -> bool:
    """Whether that is the holders' open file; one who only waits for the end has opened it too."""
    with contextlib.suppress(OSError):                  # closed meanwhile
        if os.readlink(f"/proc/{pid}/fd/{fd}") == path:
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
                return any("FLOCK" in line and "WRITE" in line for line in file)
    return False


def drop(folder: str, uuid: str) -> None:
    """Remove the file; the lock of a living qube stays with its descriptors."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(folder, uuid))


def known(folder: str) -> list[str]:
    """Uuids that have a file, alive or not."""
    return [name.removeprefix("life.") for name in os.listdir(folder) if name.startswith("life.")]


def any_lives(folder: str) -> bool:
    """Whether a process of any qube does. A folder that is gone has none."""
    return os.path.isdir(folder) and not all(_is_free(_path(folder, uuid)) for uuid in known(folder))
