"""Run in QEMU's place inside its box: says what it can see and do, as JSON. Standard library only, no imports of ours."""
import ctypes
import json
import os
import socket
import sys
from collections.abc import Callable

FOLDERS = ("/", "/usr", "/usr/lib", "/lib", "/bin", "/tmp", "/proc", "/proc/sys/kernel", "/boot", "/etc", "/home", "/var", "/dev",
           "/dev/shm")


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


def reachable(address: tuple[str, int]) -> bool:
    """Whether a TCP connection gets as far as another process."""
    with socket.socket() as sock:
        sock.settimeout(5)
        try:
            sock.connect(address)
        except OSError:
            return False
        return True


def gained() -> list[str]:
    """Ways to more privileges that worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    tries: dict[str, Callable[[], object]] = {
        "setuid 0": lambda: os.setresuid(0, 0, 0), "setgroups": lambda: os.setgroups([0]),
        "sethostname": lambda: socket.sethostname("mine"), "chroot": lambda: os.chroot("/usr"),
        "mknod": lambda: os.mknod("/dev/shm/probe", 0o020600, os.makedev(1, 1)),
        "open raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    }
    found = []
    for name, attempt in tries.items():
        try:
            attempt()
            found.append(name)
        except OSError:
            pass
    if libc.mount(b"none", b"/usr", b"tmpfs", 0, None) == 0:
        found.append("mount")
    return found


def main() -> None:
    with open("/proc/self/status", encoding="ascii") as status:
        lines = dict(line.split(":", 1) for line in status)
    print(json.dumps({
        "status": {key: lines[key].strip() for key in ("NoNewPrivs", "CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")},
        "uids": sorted(set(lines["Uid"].split())),
        "files": files(),
        "writable": writable(),
        "processes": [name for name in os.listdir("/proc") if name.isdigit()],
        "interfaces": [name for _, name in socket.if_nameindex()],
        "routes": open("/proc/net/route", encoding="ascii").read().count("\n") - 1,
        "reachable": reachable(("127.0.0.1", int(sys.argv[2]))),
        "environment": sorted(os.environ),
        "hostname": socket.gethostname(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "devices": sorted(os.listdir("/dev")),
        "gained": gained(),
    }))


main()
