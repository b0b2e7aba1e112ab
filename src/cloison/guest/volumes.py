"""The qube's own disks: private on /rw, home and bind-dirs over the root, volatile as swap (reference/storage.md 3, 5)."""
from __future__ import annotations

import contextlib
import glob
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from cloison.guest import background, libc

SWAP_BYTES = 1 << 30
SIZE_SECONDS = 10.0
_NETLINK_UEVENT, _KERNEL_GROUP, _ANNOUNCEMENT = 15, 1, 8192
GROWTH = 8 << 20        # bytes that a disk must have beyond its file system: below a block group's worth resize2fs does nothing
BIND_DIRS = ("/usr/lib/qubes-bind-dirs.d", "/etc/qubes-bind-dirs.d", "/rw/config/qubes-bind-dirs.d")
_BINDS = re.compile(r"""binds\+?=\(\s*((?:'[^']*'|"[^"]*"|[^\s()'"]+|\s)*)\)""")
_WORD = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s()'"]+)""")
RC_LOCAL_PATH = "/rw/config/rc.local"
RC_LOCAL = "#!/bin/sh\n# Runs at each start of this qube, once it is made executable.\n"
MAX_LINKS = 10
_WHOLE = {"/home": "/rw/home", "/usr/local": "/rw/usrlocal"}


_devices: dict[str, str] = {}


def find_devices() -> dict[str, str]:
    """Role -> /dev/vdX, by the disks' serial numbers `qubes-ROLE`. They never change while a guest runs."""
    if not _devices:
        for path in glob.glob("/sys/block/vd*/serial"):
            with open(path, encoding="ascii") as file:
                serial = file.read().strip()
            if serial.startswith("qubes-"):
                _devices[serial.removeprefix("qubes-")] = "/dev/" + path.split("/")[3]
    return _devices


def device(role: str) -> str:
    """Raises FileNotFoundError."""
    path = find_devices().get(role)
    if path is None:
        raise FileNotFoundError(f"no disk qubes-{role}")
    return path


def await_size(path: str, fits: Callable[[int], bool]) -> bool:
    """Until the kernel knows a size of the disk, in bytes, that fits: the host's notice of it may be under way. False: none."""
    if fits(_size(path)):
        return True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_UEVENT) as kernel:
        kernel.bind((0, _KERNEL_GROUP))      # it announces each new size; what it says is not looked into
        deadline = time.monotonic() + SIZE_SECONDS
        while not fits(_size(path)):
            if not select.select([kernel], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            with contextlib.suppress(OSError):       # more announcements than it keeps: a reason to look, too
                kernel.recv(_ANNOUNCEMENT)
    return True


def _size(path: str) -> int:
    with open(f"/sys/block/{os.path.basename(path)}/size", encoding="ascii") as file:
        return int(file.read()) * 512


def can_wait(persistence: str, *, blank: bool) -> bool:
    """A disposable whose private volume holds nothing yet looks the same without it: it is mounted after the start."""
    return persistence == "none" and blank


def grow(disk: str) -> None:
    """Have a mounted ext4 follow its disk, which the host has enlarged while the qube was off. Usually nothing is to be done,
    and no process is started. A failure costs the new space only: the qube starts with what it has.
    """
    with open(disk, "rb") as file:
        file.seek(1024)
        used = file_system_size(file.read(1024))
    if used is not None and _size(disk) - used >= GROWTH:
        done = subprocess.run(["resize2fs", "-f", disk], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            print(f"{disk} could not be grown: {done.stderr[-300:].decode('ascii', 'replace')}", file=sys.stderr)


def grow_root() -> None:
    """The same for the root, once a boot. In a throw-away system of a test there is none."""
    disk = find_devices().get("root")
    if disk is not None:
        grow(disk)


def file_system_size(superblock: bytes) -> int | None:
    """Bytes that an ext4 takes, from its superblock (1024 bytes); None if it is no such thing."""
    if len(superblock) < 1024 or superblock[56:58] != b"\x53\xef":
        return None
    low, shift = struct.unpack_from("<I", superblock, 4)[0], struct.unpack_from("<I", superblock, 24)[0]
    is_64bit = struct.unpack_from("<I", superblock, 96)[0] & 0x80
    high = struct.unpack_from("<I", superblock, 336)[0] if is_64bit else 0
    return None if shift > 6 else (high << 32 | low) * (1024 << shift)


def first_use() -> None:
    """Lay out an empty private volume."""
    for source, target in (("/home", "/rw/home"), ("/usr/local", "/rw/usrlocal")):
        if not os.path.isdir(target):
            _keep(source, target)
    if not os.path.isdir("/rw/config"):
        os.makedirs("/rw/bind-dirs", exist_ok=True)
        os.makedirs("/rw/config.new", exist_ok=True)
        _write_new("/rw/config.new/rc.local", RC_LOCAL)
        os.rename("/rw/config.new", "/rw/config")


def _write_new(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def run_rc_local() -> None:
    """Start the user's own start-up script, if it is executable; it runs beside everything else."""
    if os.access(RC_LOCAL_PATH, os.X_OK):
        background.spawn([RC_LOCAL_PATH])


def _keep(source: str, kept: str) -> None:
    """Copy aside, write out, rename: half a copy is never taken for a whole one, not even when the power fails."""
    shutil.rmtree(kept + ".new", ignore_errors=True)
    copy_tree(source, kept + ".new")
    libc.sync_filesystem(os.path.dirname(kept))
    os.rename(kept + ".new", kept)


def copy_tree(source: str, target: str) -> None:
    """Copy with owners and modes; symbolic links stay links."""
    status = os.lstat(source)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    elif os.path.isdir(source):
        os.mkdir(target)
        for name in os.listdir(source):
            copy_tree(f"{source}/{name}", f"{target}/{name}")
    elif os.path.isfile(source):
        shutil.copyfile(source, target)
    else:
        return
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not os.path.islink(target):
        os.chmod(target, status.st_mode & 0o7777)


def bind_dirs(folders: Sequence[str] = BIND_DIRS) -> list[str]:
    """Paths listed in bind-dirs snippets (`binds+=( '/etc/foo' )`), in order, without running them as a shell would."""
    paths: list[str] = []
    for folder in folders:
        for name in sorted(glob.glob(f"{folder}/*.conf")):
            with open(name, encoding="utf-8", errors="replace") as file:
                text = "\n".join(line for line in file.read().splitlines() if not line.lstrip().startswith("#"))
            for match in _BINDS.finditer(text):
                paths += ["".join(word) for word in _WORD.findall(match.group(1))]
    return [path for path in paths if path.startswith("/") and ".." not in path.split("/")]


def resolved(path: str) -> str:
    """What a link leads to."""
    for _ in range(MAX_LINKS):
        if not os.path.islink(path):
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return path


def bind(path: str) -> None:
    """Keep one path of the root in the private volume; copied there once. Raises OSError."""
    path = resolved(path)
    own = kept(path)
    if not os.path.lexists(own):
        if not os.path.exists(path):
            return
        os.makedirs(os.path.dirname(own), exist_ok=True)
        _keep(path, own)
    if not os.path.exists(path):
        _placeholder(path, os.path.isdir(own))
    libc.mount(own, path, flags=libc.MS_BIND)


def kept(path: str) -> str:
    """Where the private volume has it."""
    if path in _WHOLE:
        return _WHOLE[path]
    for root, volume in (("/home/", "/rw/home/"), ("/usr/local/", "/rw/usrlocal/")):
        if path.startswith(root):
            return volume + path[len(root):]
    return "/rw/bind-dirs" + path


def _placeholder(path: str, folder: bool) -> None:
    os.makedirs(path if folder else os.path.dirname(path), exist_ok=True)
    if not folder:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def enable_swap() -> None:
    """The volatile disk's first GiB as swap; the header is written here, so no program is started."""
    path = device("volatile")
    page = os.sysconf("SC_PAGE_SIZE")
    header = bytearray(page)
    struct.pack_into("<III", header, 1024, 1, SWAP_BYTES // page - 1, 0)
    header[-10:] = b"SWAPSPACE2"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, header)
        os.fsync(fd)
    finally:
        os.close(fd)
    libc.swapon(path)
