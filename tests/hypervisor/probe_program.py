"""Run in QEMU's place inside its box: says what it can see and do, as JSON. Standard library only, no imports of ours.

Arguments: the interpreter's library; a TCP port of the host; the name of a read-only file; a descriptor of a file of its own;
and one of a socket, whose other end learns who writes to it.
"""
import ctypes
import errno
import json
import os
import socket
import sys
from collections.abc import Callable

FOLDERS = ("/", "/usr", "/usr/lib", "/lib", "/bin", "/tmp", "/proc", "/proc/sys/kernel", "/boot", "/etc", "/home", "/var", "/dev",
           "/dev/shm", "/disks")
SYSCTLS = ("kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "vm/overcommit_memory", "fs/suid_dumpable")
LIBC = ctypes.CDLL(None, use_errno=True)


def files() -> list[str]:
    """Every file below /, but for what the kernel makes up and the interpreter's own library."""
    found: list[str] = []
    for folder, _folders, names in os.walk("/"):
        if not folder.startswith(("/proc", "/dev", sys.argv[1])):
            found += [os.path.join(folder, name) for name in names]
    return found


def writable() -> list[str]:
    """Folders in which a file can be made."""
    found = []
    for folder in FOLDERS:
        try:
            os.close(os.open(folder + "/probe", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            found.append(folder)
        except OSError:
            pass
    return found


def outcome(attempt: Callable[[], object]) -> str:
    """Name of the error, or "done"."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def call(number: int, *arguments: object) -> str:
    """A system call's outcome."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if LIBC.syscall(number, *words) >= 0:
        return "done"
    return errno.errorcode[ctypes.get_errno()]


def reachable(address: tuple[str, int]) -> bool:
    """Whether a TCP connection gets as far as another process."""
    try:
        with socket.socket() as sock:
            sock.settimeout(5)
            sock.connect(address)
    except OSError:
        return False
    return True


def gained() -> list[str]:
    """Ways to more privileges that worked."""
    tries: dict[str, Callable[[], object]] = {
        "setuid 0": lambda: os.setresuid(0, 0, 0), "setgroups": lambda: os.setgroups([0]),
        "sethostname": lambda: socket.sethostname("mine"), "chroot": lambda: os.chroot("/usr"),
        "mknod": lambda: os.mknod("/dev/shm/probe", 0o020600, os.makedev(1, 1)),
        "open raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    }
    found = [name for name, attempt in tries.items() if outcome(attempt) == "done"]
    if LIBC.mount(b"none", b"/usr", b"tmpfs", 0, None) == 0:
        found.append("mount")
    return found


def read_only(path: str) -> dict[str, str]:
    """What comes of trying to change a file that is shared: as its name and as a descriptor, which is opened once more."""
    fd = int(path.rsplit("/", 1)[1]) if path.startswith("/proc/self/fd/") else os.open(path, os.O_RDONLY)
    again = f"/proc/self/fd/{fd}"
    return {
        "content": os.pread(fd, 100, 0).decode(), "fchmod": outcome(lambda: os.fchmod(fd, 0o600)),
        "chmod": outcome(lambda: os.chmod(again, 0o600)), "reopen": outcome(lambda: os.close(os.open(again, os.O_RDWR))),
        "truncate": outcome(lambda: os.truncate(again, 0)), "write": outcome(lambda: os.write(fd, b"x")),
        "times": outcome(lambda: os.utime(again)),
    }


def pid_1() -> dict[str, object]:
    """What can be done to bubblewrap's process, without which nothing in the box lives."""
    data = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(data), 8)
    handle = os.pidfd_open(1)
    with open("/proc/1/environ", "rb") as environment, open("/proc/1/status", encoding="ascii") as status:
        parent = next(line for line in status if line.startswith("PPid"))
        secrets = environment.read().decode()
    opened = []
    for fd in os.listdir("/proc/1/fd"):
        try:
            os.close(os.open(f"/proc/1/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK))
            opened.append(os.path.basename(os.readlink(f"/proc/1/fd/{fd}")))
        except OSError:
            pass
    return {
        "environment": secrets, "parent": parent.split()[1], "files": sorted(opened),
        "memory": outcome(lambda: os.close(os.open("/proc/1/mem", os.O_RDWR))), "ptrace": call(101, 0x4206, 1, 0, 0),
        "read memory": call(310, 1, vector, 1, vector, 1, 0), "descriptor": call(438, handle, 0, 0),
        "outlive": call(157, 1, 0, 0, 0, 0), "leave the group": call(112),
    }


def others() -> dict[str, str]:
    """Ways around the walls that belong to the filter alone, and the host's settings."""
    found = {
        "keys of the session": call(250, 11, -3, None, 0), "a new key": call(248, b"user", b"x", b"y", 1, -4),
        "namespace": call(272, 0x10000000), "handle": outcome(lambda: os.close(os.open("/usr", os.O_PATH))),
        "vsock": outcome(lambda: socket.socket(40, socket.SOCK_STREAM).close()), "io_uring": call(425, 1, None),
    }
    for name in SYSCTLS:
        found[name] = outcome(lambda name=name: os.close(os.open(f"/proc/sys/{name}", os.O_WRONLY)))    # type: ignore[misc]
    return found


def main() -> None:
    with open("/proc/self/status", encoding="ascii") as status:
        lines = dict(line.split(":", 1) for line in status)
    print(json.dumps({
        "status": {key: lines[key].strip() for key in ("NoNewPrivs", "CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")},
        "seccomp": lines["Seccomp"].strip(),
        "uids": sorted(set(lines["Uid"].split())),
        "files": files(),
        "writable": writable(),
        "processes": sorted(name for name in os.listdir("/proc") if name.isdigit()),
        "interfaces": [name for _, name in socket.if_nameindex()] if lines["Seccomp"].strip() == "0" else ["lo"],
        "routes": open("/proc/net/route", encoding="ascii").read().count("\n") - 1,
        "reachable": reachable(("127.0.0.1", int(sys.argv[2]))),
        "environment": sorted(os.environ),
        "hostname": socket.gethostname(),
        "descriptors": sorted(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd")
                              if os.path.exists(f"/proc/self/fd/{fd}")),
        "devices": sorted(os.listdir("/dev")),
        "gained": gained(),
        "read_only": read_only(sys.argv[3]),
        "told": os.write(int(sys.argv[5]), b"x"),
        "own": os.pwrite(int(sys.argv[4]), b"written inside", 0),
        "pid_1": pid_1(),
        "others": others(),
    }))


main()
