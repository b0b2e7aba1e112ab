"""The box around QEMU: its argv, and what a program in QEMU's place really finds in it, run by root and by an ordinary user."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloison.hypervisor import sandbox

PROBE = Path(__file__).with_name("probe_program.py")
USER = f"cloison-probe-{os.getpid()}"


def test_golden(golden: Callable[[str, str], None]) -> None:
    argv = sandbox.wrap(
        ["/usr/bin/qemu-system-x86_64", "-nodefaults"], bwrap="/usr/bin/bwrap", devices=["/dev/kvm"],
        libs=("/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2", "/usr/lib/x86_64-linux-gnu/libz.so.1"),
        files={"/usr/bin/qemu-system-x86_64": "/usr/bin/qemu-system-x86_64", "/boot/vmlinuz": "/data/vm-kernels/6.1/vmlinuz"})
    golden("qemu/sandbox.txt", "".join(f"{word}\n" for word in argv))


@pytest.mark.parametrize("path", ["--bind / /", "-", "--", "/x\n--bind", "a b", '"', "/a=b,c"])
def test_no_path_becomes_an_option(path: str) -> None:
    argv = sandbox.wrap(["/q", path], files={path: path})
    box, program = argv[:argv.index("--chdir")], argv[argv.index("--chdir"):]
    assert program == ["--chdir", "/", "--", "/q", path]
    start = box.index("--ro-bind")
    assert box[start:start + 3] == ["--ro-bind", path, path]


def test_libraries_are_those_the_loader_names() -> None:
    libraries = sandbox.libraries("/bin/sh")
    assert sandbox.LOADER in libraries and any("libc.so" in path for path in libraries)
    assert all(os.path.isabs(path) and os.path.exists(path) for path in libraries)


def test_program_that_is_no_program_has_no_libraries() -> None:
    assert sandbox.libraries(str(PROBE)) == ()


# -- a probe in QEMU's place ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["as we are", "ordinary user"])
def prefix(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What makes a command run as the user; root makes one for the purpose, an ordinary user is one already."""
    if request.param == "as we are" or os.getuid() != 0:
        yield []
        return
    subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/sh", USER], check=True)
    try:
        yield ["runuser", "-u", USER, "--"]
    finally:
        subprocess.run(["userdel", USER], check=True)


def interpreter() -> str:
    """One that every user can read: the distribution's, if there is one."""
    return os.path.realpath("/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable)


@pytest.fixture
def seen(prefix: list[str], tmp_path: Path) -> dict[str, Any]:
    """The probe's report. A service of this host listens on 127.0.0.1 meanwhile."""
    python = interpreter()
    ask = "import os, ctypes, _ctypes; print(os.path.dirname(os.__file__)); print(getattr(_ctypes, '__file__', ''))"
    library, extension = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True).stdout.splitlines()
    libs = {*sandbox.libraries(python), *(sandbox.libraries(extension) if extension else ())}
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [python, "-I", "-S", "-c", PROBE.read_text(), library, str(server.getsockname()[1])]
        boxed = sandbox.wrap(command, files={python: python, library: library}, libs=sorted(libs))
        done = subprocess.run([*prefix, *boxed], capture_output=True, text=True, check=False, cwd="/", stdin=subprocess.DEVNULL,
                              env={**os.environ, "SECRET": "of the host"})
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    report["own"] = {python, *libs}
    return report


def test_probe_finds_nothing_of_the_host(seen: dict[str, Any]) -> None:
    allowed = {os.path.basename(path) for path in seen["own"]}
    firmware = (*sandbox.FIRMWARE, sandbox.MODULES)
    foreign = [path for path in seen["files"] if os.path.basename(path) not in allowed and not path.startswith(firmware)]
    assert foreign == []
    assert seen["processes"] == ["1"]
    assert seen["environment"] in (["LC_CTYPE", "PWD"], ["PWD"], [])
    assert seen["hostname"] == "qube"
    assert seen["descriptors"] <= 4, "its standard streams, and the one that lists them"
    assert not {"kvm", "mem", "sda", "vda", "net"} & set(seen["devices"])


def test_probe_has_no_network(seen: dict[str, Any]) -> None:
    assert seen["interfaces"] == ["lo"] and seen["routes"] == 0
    assert seen["reachable"] is False


def test_probe_can_change_nothing(seen: dict[str, Any]) -> None:
    assert seen["writable"] == []


def test_probe_gains_no_privileges(seen: dict[str, Any]) -> None:
    status = seen["status"]
    assert status.pop("NoNewPrivs") == "1"
    assert set(status.values()) == {"0" * 16}
    allowed = ["setuid 0"] if seen["uids"] == ["0"] else []      # being who one is already
    assert seen["gained"] == allowed
