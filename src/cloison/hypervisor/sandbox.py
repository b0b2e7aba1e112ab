"""The box around a QEMU: its own user, mount, pid, ipc, uts, cgroup and *empty network* namespace, by bubblewrap.

Inside there is a read-only root that holds the program, the shared libraries and firmware it loads, the files handed to it
by name, and nothing else: no home, no other process, no socket but the descriptors it inherits; and a filter of system calls
(runtime/seccomp.py). pid 1 is bubblewrap's own: it ends with the process around the box, and that with whoever started it.

The host's root is never in a box: run as root, each box belongs to a user of its own, who owns no file of the host
(`host_user`), and bubblewrap is run as that user; such a box gets files as `readonly.py` makes them. Run as an ordinary user,
a box belongs to that user, who owns the files; so what is read-only comes by a read-only mount and no other way.

`wrap` is pure; `libraries` and `host_user` look at the host, and `run` starts the process.
"""
from __future__ import annotations

import functools
import glob
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from cloison.runtime import seccomp
from cloison.runtime.programs import find

LOADER = "/lib64/ld-linux-x86-64.so.2"
FIRMWARE = ("/usr/share/qemu", "/usr/share/seabios")
# Accelerators and device models that Debian's QEMU loads at run time, beside its own libraries.
MODULES = "/usr/lib/x86_64-linux-gnu/qemu"
# Folders of public shared libraries: in the box as a whole, since a mount for each of the hundred that QEMU and its modules may
# load takes longer than all else together (decision 0043).
LIBRARIES = ("/usr/lib/x86_64-linux-gnu",)
# Not bubblewrap's own /dev: with /dev/zero there is memory that no process shows (seccomp.py), with its terminals the kernel's.
DEVICES = ("/dev/null", "/dev/urandom")
INSIDE = 1000                   # user and group as the box sees itself
# Users of boxes on the host: no distribution gives such numbers to anybody, and containers don't either (systemd's UIDS-GIDS).
FIRST_USER = 1_900_000_000
UID_MAP, _ALL_USERS = "/proc/self/uid_map", ["0", "0", "4294967295"]


@functools.cache
def libraries(program: str) -> tuple[str, ...]:
    """Shared libraries of a program, and of QEMU's modules, as the loader itself resolves them. Empty for a static one."""
    modules = [path for path in sorted(glob.glob(f"{glob.escape(MODULES)}/*.so")) if ":" not in path and " " not in path]
    preloaded = ["--preload", ":".join(modules)] if modules else []
    output = subprocess.run([LOADER, *preloaded, "--list", program], capture_output=True, text=True, check=False).stdout
    words = (word for line in output.splitlines() for word in line.split())
    return tuple(sorted({word for word in words if word.startswith("/")}))


@functools.cache
def is_host_root() -> bool:
    """Whether this process is the host's own root, not one whom a user namespace calls so."""
    with open(UID_MAP, encoding="ascii") as file:
        return os.geteuid() == 0 and file.read().split() == _ALL_USERS


def host_user() -> int | None:
    """User and group that a box started by this process belongs to; None: those of this process.

    No two living wardens have the same, so no box can send a signal to another or look into it, whatever else fails.
    """
    return FIRST_USER + os.getpid() if is_host_root() else None


def wrap(
    argv: Sequence[str], *, files: Mapping[str, str], libs: Sequence[str] = (), devices: Sequence[str] = (), bwrap: str = "bwrap",
    filter_fd: int | None = None, life_fd: int | None = None,
) -> list[str]:
    """The argv that runs `argv` boxed. `files`: path inside -> path on the host, read-only; `devices`: host device nodes.

    `filter_fd`: where the filter is read from; `life_fd`: what pid 1 of the box holds open, and nobody else in it.
    """
    box = [
        bwrap, "--unshare-all", "--unshare-user", "--uid", str(INSIDE), "--gid", str(INSIDE), "--die-with-parent",
        "--cap-drop", "ALL", "--clearenv", "--hostname", "qube",
        "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin",
        "--proc", "/proc", "--tmpfs", "/dev",
    ]
    for device in DEVICES:
        box += ["--dev-bind", device, device]
    folders = [folder for folder in LIBRARIES if any(_merged(lib).startswith(f"{folder}/") for lib in libs)]
    for folder in folders:
        box += ["--ro-bind", folder, folder]
    for lib in libs:
        if not any(_merged(lib).startswith(f"{folder}/") for folder in folders):
            box += ["--ro-bind", lib, _merged(lib)]
    for folder in (*FIRMWARE, MODULES):
        box += ["--ro-bind-try", folder, folder]
    for inside, outside in files.items():
        box += ["--ro-bind", outside, inside]
    for device in devices:
        box += ["--dev-bind", device, device]
    if filter_fd is not None:
        box += ["--seccomp", str(filter_fd)]
    if life_fd is not None:
        box += ["--sync-fd", str(life_fd)]
    return [*box, "--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--", *argv]


def run(
    argv: Sequence[str], *, files: Mapping[str, str], devices: Sequence[str] = (), handed: Sequence[int] = (),
    life_fd: int | None = None, stdout: int | IO[bytes] = subprocess.DEVNULL, stderr: int | IO[bytes] = subprocess.DEVNULL,
    confine: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` boxed, in a process group of its own, with the descriptors `handed` and the streams named. Raises OSError,
    HostError.

    The environment is empty from the start: pid 1 of the box has it too, and the box can read it there. `confine` is called
    between fork and exec: it may set limits, and nothing else.
    """
    user = host_user()
    filter_fd = seccomp.pipe()
    try:
        command = wrap(argv, files=files, libs=libraries(argv[0]), devices=devices, bwrap=find("bwrap"), filter_fd=filter_fd,
                       life_fd=life_fd)
        more = [filter_fd] if life_fd is None else [filter_fd, life_fd]
        return subprocess.Popen(
            command, pass_fds=[*handed, *more], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env={}, cwd="/",
            restore_signals=True, process_group=0, user=user, group=user,
            extra_groups=None if user is None else device_groups(devices),
            preexec_fn=confine)          # noqa: PLW1509 a warden has one thread when it starts its machine
    finally:
        os.close(filter_fd)


def device_groups(devices: Sequence[str]) -> list[int]:
    """What lets a user of a box open these devices: their groups, if they have any rights; never root's."""
    found = {status.st_gid for status in map(os.stat, devices) if status.st_mode & 0o060 == 0o060}
    return sorted(found - {0})


def may_open(device: str) -> bool:
    """Whether the user of a box that this process starts may, as far as that depends on being somebody else."""
    return host_user() is None or os.stat(device).st_mode & 0o006 == 0o006 or bool(device_groups([device]))


def _merged(path: str) -> str:
    """/lib64/x -> /usr/lib64/x: the box has the merged layout whatever the host has."""
    return "/usr" + path if path.startswith(("/lib", "/bin")) else path
