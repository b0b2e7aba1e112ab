"""qubes.Backup, qubes.Restore, qubes.RegisterBackupLocation, qubes.RestoreById: this qube keeps the host's backups.

A place is a folder or file, or a command with its words quoted as for a shell; it is started by its words, never by a shell.
"""
from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from cloison.errors import CloisonError
from cloison.guest.rpc import restore
from cloison.guest.rpc.stdin import copy, read_line
from cloison.runtime.files import fsync_dir

LINE_MAX = 65536
_ID_BYTES = 6


class BadPlace(CloisonError):
    """A folder, file or command that is none."""


def _told(prog: str, do: Callable[[], int]) -> int:
    try:
        return do()
    except (CloisonError, OSError, ValueError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1


def main_backup(argv: Sequence[str]) -> int:
    """qubes.Backup: what follows the first line goes to a new file in that folder, or to that command."""
    return _told("qubes.Backup", _backup)


def _backup() -> int:
    place = os.fsdecode(read_line(LINE_MAX))
    if not os.path.isdir(place):
        return subprocess.run(_words(place), check=False).returncode
    path = os.path.join(place, time.strftime("qubes-backup-%Y-%m-%dT%H%M%S"))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    print(f"Copying to {path}", flush=True)
    copy(0, fd)
    os.fsync(fd)
    os.close(fd)
    fsync_dir(place)
    return 0


def main_restore(argv: Sequence[str]) -> int:
    """qubes.Restore: the place in the first line, the wanted paths in the second; a file copy stream comes out."""
    return _told("qubes.Restore", lambda: _restore(os.fsdecode(read_line(LINE_MAX)), read_line(LINE_MAX)))


def _restore(place: str, untrusted_paths: bytes) -> int:
    paths = [path for path in untrusted_paths.split(b" ") if path]
    if os.path.isfile(place):
        with open(place, "rb") as archive:
            return restore.send(archive, paths, 1, 0)
    with subprocess.Popen(_words(place), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        status = restore.send(process.stdout, paths, 1, 0)
        process.stdout.close()           # it may not have been wanted to its end
    return status


def _words(place: str) -> list[str]:
    import shutil

    words = shlex.split(place)
    if not words or shutil.which(words[0]) is None:
        raise BadPlace(f"{place[:60]!r} is no folder or file, nor a command of this qube")
    return words


# -- places by their id ----------------------------------------------------------------------------------------------------


def _registry() -> str:
    path = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}", "qubes-backup-location")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def main_register(argv: Sequence[str]) -> int:
    """qubes.RegisterBackupLocation: says an id for a place; it is good for as long as the caller stays."""
    return _told("qubes.RegisterBackupLocation", _register)


def _register() -> int:
    place = read_line(LINE_MAX)
    location = secrets.token_hex(_ID_BYTES)
    path = os.path.join(_registry(), location)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, _alive(os.getpid()).encode() + b"\n" + place)
        os.close(fd)
        os.write(1, location.encode() + b"\n")
        os.close(1)
        while os.read(0, 4096):
            pass
    finally:
        os.unlink(path)
    return 0


def _alive(pid: int) -> str:
    """This process and no later one of the same number. Raises OSError if it is gone."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return f"{pid} {file.read().rpartition(')')[2].split()[19]}"


def main_restore_by_id(argv: Sequence[str]) -> int:
    """qubes.RestoreById: as qubes.Restore, from the place of an id."""
    return _told("qubes.RestoreById", lambda: _restore(_place(argv[1] if len(argv) == 2 else ""), read_line(LINE_MAX)))


def _place(location: str) -> str:
    if len(location) != 2 * _ID_BYTES or not set(location) <= set("0123456789abcdef"):
        raise BadPlace("no such location")
    try:
        with open(os.path.join(_registry(), location), "rb") as file:
            owner, _, place = file.read(LINE_MAX + 100).partition(b"\n")
        if _alive(int(owner.split()[0])).encode() != owner:
            raise BadPlace("no such location")
    except (OSError, ValueError, IndexError):
        raise BadPlace("no such location") from None
    return os.fsdecode(place)
