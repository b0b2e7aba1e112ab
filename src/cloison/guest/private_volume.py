"""The private volume on /rw, and what of the root it keeps (reference/storage.md 3, 5).

Nothing that is wrong with it keeps the qube from starting: one that is all zeros is formatted; a damaged one is repaired as far as
that loses nothing, else the qube starts without it; a path that can't be kept is left out. Each is told to the host in a sentence.
"""
from __future__ import annotations

import functools
import grp
import os
import pwd
import re
import subprocess
from collections.abc import Callable, Mapping
from io import RawIOBase

from cloison.guest import libc, volumes
from cloison.wire.agent import NO_PRIVATE

BLANK_HEAD = 10 << 20                   # bytes that must be zero for a volume that nobody has used
FLAGS = libc.MS_NODEV | libc.MS_NOSUID
REPAIR_SECONDS = 40
_GROUP = 128 << 20                      # bytes of an ext4's block group, with blocks of 4 KiB
_BACKUP_GROUPS = (1, 3, 5, 7, 9, 25, 27, 49)
_ENTRY = re.compile(r"(file|dir):([^:]+):([^:]+):([0-7]{1,4}):(/.*)")
_TEMPLATES = volumes.BIND_DIRS[:2]      # the rest is the qube's own, which custom-persist ignores
_PRIVATE = ("/home", "/usr/local")
_HELP = ("what is written to its home is lost at its end. Repair it with `qvm-run -p -u root {name} e2fsck -fy {disk}` and "
         "start it again, or take an older state: qvm-volume revert {name}:private")


def mount(persistence: str, size: int, qubesdb: Mapping[str, str]) -> list[str]:
    """Mount /rw; for a qube whose root is thrown away, put over the root what is kept. Returns what went wrong, in sentences.

    In a disposable whose private volume nobody has used yet, the root's own folders serve: they are thrown away like it.
    """
    os.makedirs("/rw", exist_ok=True)
    disk = volumes.device("private")
    volumes.await_size(disk, lambda now: now == size)
    failure = attach(disk)
    if failure is not None:
        help_ = _HELP.format(disk=disk, name=qubesdb.get("/name", "QUBE"))
        return [f"{NO_PRIVATE} ({failure}), so it runs without: {help_}"]
    problems: list[str] = []
    _noted(problems, "the private volume did not grow", lambda: volumes.grow(disk))
    if persistence == "none" and not os.path.isdir("/rw/config"):
        return problems
    _noted(problems, "the private volume could not be laid out", volumes.first_use)
    if persistence != "full":
        _keep_all(qubesdb, problems)
    return problems


def attach(disk: str) -> str | None:
    """Mount the disk on /rw, formatting or mending it first if need be; why it can't be, or None."""
    try:
        _mount(disk)
    except OSError as error:
        if is_blank_disk(disk):
            failure = _run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "assume_storage_prezeroed=1", disk], (0,))
        else:
            failure = _run(["fsck.ext4", "-p", disk], (0, 1))     # 1: mended, without loss
        if failure is not None:
            return f"{error.strerror}; {failure}"
        try:
            _mount(disk)
        except OSError as again:
            return str(again.strerror)
    return None


def _mount(disk: str) -> None:
    libc.mount(disk, "/rw", "ext4", FLAGS, "discard")


def is_blank_disk(disk: str) -> bool:
    """One that can't be read is not: it is not to be written then."""
    try:
        with open(disk, "rb", buffering=0) as file:
            return is_blank(file)
    except OSError:
        return False


def is_blank(disk: RawIOBase) -> bool:
    """Whether nobody has used it: the reference's test, and no copy of an ext4's superblock where one would be. Raises OSError."""
    size = disk.seek(0, os.SEEK_END)
    left = min(BLANK_HEAD, size)
    disk.seek(0)
    while left:
        data = disk.read(min(left, 1 << 20))
        if not data or any(data):
            return False
        left -= len(data)
    for at in (group * _GROUP for group in _BACKUP_GROUPS):
        if at < size:                    # a disk, other than a file, can't be sought beyond its end
            disk.seek(at)
            if volumes.file_system_size(disk.read(1024) or b"") is not None:
                return False
    return True


def _run(argv: list[str], good: tuple[int, ...]) -> str | None:
    """What it complained about, or None. It is on no usual start's path."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=REPAIR_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode in good:
        return None
    said = (done.stderr or done.stdout).decode("ascii", "replace").split("\n")
    return f"{argv[0]}: {next(filter(None, map(str.strip, said)), done.returncode)}"[:200]


# -- what is kept ------------------------------------------------------------------------------------------------------------


def is_custom(qubesdb: Mapping[str, str]) -> bool:
    """Whether the host says what is kept, and nothing else is: feature service.custom-persist."""
    return qubesdb.get("/qubes-service/custom-persist") == "1"


def _keep_all(qubesdb: Mapping[str, str], problems: list[str]) -> None:
    if not is_custom(qubesdb):
        for path in (*_PRIVATE, *volumes.bind_dirs()):
            _noted(problems, f"{path} is not kept", functools.partial(volumes.bind, path))
        return
    for path in volumes.bind_dirs(_TEMPLATES):
        _noted(problems, f"{path} is not kept", functools.partial(volumes.bind, path))
    for name in sorted(path for path in qubesdb if path.startswith("/persist/")):
        _noted(problems, f"{qubesdb[name]} is not kept", functools.partial(_keep_entry, qubesdb[name]))


def _keep_entry(text: str) -> None:
    """`/path`, or `file|dir:owner:group:mode:/path`, which makes what is nowhere yet. Raises OSError, ValueError, KeyError."""
    match = _ENTRY.fullmatch(text)
    path = match[5] if match else text
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError("it is no absolute path")
    path = volumes.resolved(os.path.normpath(path))
    if match and not os.path.lexists(path) and not os.path.lexists(volumes.kept(path)):
        _make(volumes.kept(path), match[1], _id(match[2], lambda name: pwd.getpwnam(name).pw_uid),
              _id(match[3], lambda name: grp.getgrnam(name).gr_gid), int(match[4], 8))
    volumes.bind(path)


def _make(path: str, kind: str, owner: int, group: int, mode: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind == "dir":
        os.mkdir(path, 0o700)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    os.chown(path, owner, group)
    os.chmod(path, mode)


def _id(name: str, look_up: Callable[[str], int]) -> int:
    return int(name) if name.isdecimal() else look_up(name)


def _noted(problems: list[str], what: str, do: Callable[[], None]) -> None:
    try:
        do()
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"{what}: {error}")
