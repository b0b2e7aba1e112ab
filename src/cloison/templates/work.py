"""A folder for one piece of work under `data/tmp`, locked while its owner lives; what a dead one left is swept by the next run and
by the next qubesd.

A kernel lock (flock) ends with its holder, however it dies, so no pid is ever compared. What a build leaves may belong to
subordinate users of ours: it is removed in the namespace where these are ours (`contained`).
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator

from cloison.runtime.paths import Paths
from cloison.runtime.programs import find
from cloison.templates.contain import contained

PREFIX = "template-"
_LOCK = "lock"


@contextlib.contextmanager
def work_folder(paths: Paths) -> Iterator[str]:
    """A new empty folder, removed at the end. Sweeps the ones that died first."""
    os.makedirs(paths.tmp, mode=0o700, exist_ok=True)
    sweep(paths)
    with _exclusive(_lock_of_all(paths)):
        folder = os.path.join(paths.tmp, PREFIX + secrets.token_hex(8))
        os.mkdir(folder, 0o700)
        lock = _open_lock(os.path.join(folder, _LOCK))
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        try:
            remove_tree(folder)
        finally:
            os.close(lock)


def sweep(paths: Paths) -> None:
    """Remove the folders whose owner died. Raises OSError, HostError, CalledProcessError."""
    with _exclusive(_lock_of_all(paths)):
        for name in os.listdir(paths.tmp):
            if name.startswith(PREFIX):
                _sweep(os.path.join(paths.tmp, name))


def _lock_of_all(paths: Paths) -> str:
    return os.path.join(paths.tmp, f".{PREFIX}lock")


def remove_tree(folder: str) -> None:
    """Remove a tree that may hold files of our subordinate users. Gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        try:
            shutil.rmtree(folder)
        except PermissionError:
            subprocess.run([*contained(), find("rm"), "--recursive", "--force", "--one-file-system", "--", folder], check=True)


def _sweep(folder: str) -> None:
    """Remove a work folder unless its owner lives."""
    lock = _open_lock(os.path.join(folder, _LOCK))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        remove_tree(folder)
    finally:
        os.close(lock)


@contextlib.contextmanager
def _exclusive(path: str) -> Iterator[None]:
    """One process at a time makes or sweeps folders, so that none is swept between its making and its locking."""
    lock = _open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open_lock(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
