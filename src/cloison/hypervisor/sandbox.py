"""The box around a QEMU: its own user, mount, pid, ipc, uts, cgroup and *empty network* namespace, by bubblewrap.

Inside there is a read-only root that holds the program, the shared libraries and firmware it loads, the files handed to it
by name, and nothing else: no home, no other process, no socket but the descriptors it inherits. `wrap` is pure; only
`libraries` looks at the host, once per process.
"""
from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping, Sequence

LOADER = "/lib64/ld-linux-x86-64.so.2"
FIRMWARE = ("/usr/share/qemu", "/usr/share/seabios")
# Accelerators and device models that Debian's QEMU loads at run time, beside its own libraries.
MODULES = "/usr/lib/x86_64-linux-gnu/qemu"


@functools.cache
def libraries(program: str) -> tuple[str, ...]:
    """Shared libraries of a program, as the loader itself resolves them. Empty for a static one."""
    output = subprocess.run([LOADER, "--list", program], capture_output=True, text=True, check=False).stdout
    words = (word for line in output.splitlines() for word in line.split())
    return tuple(sorted({word for word in words if word.startswith("/")}))


def wrap(
    argv: Sequence[str], *, files: Mapping[str, str], libs: Sequence[str] = (), devices: Sequence[str] = (), bwrap: str = "bwrap",
) -> list[str]:
    """The argv that runs `argv` boxed. `files`: path inside -> path on the host, read-only; `devices`: host device nodes."""
    box = [
        bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL", "--clearenv",
        "--hostname", "qube", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin",
        "--proc", "/proc", "--dev", "/dev",
    ]
    for lib in libs:
        box += ["--ro-bind", lib, _merged(lib)]
    for folder in (*FIRMWARE, MODULES):
        box += ["--ro-bind-try", folder, folder]
    for inside, outside in files.items():
        box += ["--ro-bind", outside, inside]
    for device in devices:
        box += ["--dev-bind", device, device]
    return [*box, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--", *argv]


def _merged(path: str) -> str:
    """/lib64/x -> /usr/lib64/x: the box has the merged layout whatever the host has."""
    return "/usr" + path if path.startswith(("/lib", "/bin")) else path
