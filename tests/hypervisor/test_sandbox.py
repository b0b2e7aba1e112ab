"""The box around QEMU: its argv, and what a program in QEMU's place really finds in it, run by root and by an ordinary user."""
from __future__ import annotations

import copy
import fcntl
import json
import os
import pwd
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE

from cloison.hypervisor import readonly, sandbox
from cloison.runtime import seccomp

PROBE = Path(__file__).with_name("probe_program.py")
USER = f"cloison-probe-{os.getpid()}"


def test_golden(golden: Callable[[str, str], None]) -> None:
    argv = sandbox.wrap(
        ["/usr/bin/qemu-system-x86_64", "-nodefaults"], bwrap="/usr/bin/bwrap", devices=["/dev/kvm"], filter_fd=9, life_fd=8,
        libs=("/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2", "/usr/lib/x86_64-linux-gnu/libz.so.1",
              "/opt/qemu/lib/libown.so"),
        files={"/usr/bin/qemu-system-x86_64": "/usr/bin/qemu-system-x86_64", "/boot/vmlinuz": "/data/vm-kernels/6.1/vmlinuz"})
    golden("qemu/sandbox.txt", "".join(f"{word}\n" for word in argv))


@pytest.mark.parametrize("path", ["--bind / /", "-", "--", "/x\n--bind", "a b", '"', "/a=b,c"])
def test_no_path_becomes_an_option(path: str) -> None:
    argv = sandbox.wrap(["/q", path], files={path: path})
    box, program = argv[:argv.index("--chdir")], argv[argv.index("--chdir"):]
    assert program == ["--chdir", "/", "--", "/q", path]
    start = box.index("--ro-bind")
    assert box[start:start + 3] == ["--ro-bind", path, path]


def test_libraries_are_bound_by_the_folder_or_one_by_one() -> None:
    argv = sandbox.wrap(["/q"], files={}, libs=("/lib64/ld.so", "/opt/x/libown.so"))
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--ro-bind"] == ["/lib64/ld.so", "/opt/x/libown.so"]
    argv = sandbox.wrap(["/q"], files={}, libs=("/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libz.so.1"))
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--ro-bind"] == list(sandbox.LIBRARIES)


def test_what_qemus_modules_need_is_among_the_libraries() -> None:
    """Modules that later parts load; each one's libraries as the loader itself resolves them."""
    found = set(sandbox.libraries(shutil.which("qemu-system-x86_64") or ""))
    for name in ("hw-usb-redirect", "hw-usb-host", "ui-dbus", "accel-tcg-x86_64"):
        module = f"{sandbox.MODULES}/{name}.so"
        if not os.path.exists(module):
            continue
        listed = subprocess.run([sandbox.LOADER, "--list", module], capture_output=True, text=True, check=True).stdout
        needed = {word for line in listed.splitlines() for word in line.split() if word.startswith("/")}
        assert needed and needed <= found, name


@pytest.mark.parametrize(("uid", "mapped", "root"), [
    (0, "         0          0 4294967295\n", True), (1000, "         0          0 4294967295\n", False),
    (0, "         0     100000      65536\n", False), (0, "0 1000 1\n", False),
])
def test_only_the_hosts_own_root_gives_its_boxes_other_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid: int, mapped: str, root: bool,
) -> None:
    (tmp_path / "uid_map").write_text(mapped)
    monkeypatch.setattr(sandbox, "UID_MAP", str(tmp_path / "uid_map"))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    sandbox.is_host_root.cache_clear()
    try:
        assert sandbox.host_user() == (sandbox.FIRST_USER + os.getpid() if root else None)
    finally:
        sandbox.is_host_root.cache_clear()


@pytest.mark.parametrize(("mode", "group", "groups"), [(0o660, 108, [108]), (0o600, 108, []), (0o660, 0, []), (0o666, 20, [20])])
def test_a_box_of_roots_has_the_group_of_a_device_that_needs_it(
    monkeypatch: pytest.MonkeyPatch, mode: int, group: int, groups: list[int],
) -> None:
    status = os.stat_result((stat.S_IFCHR | mode, 0, 0, 1, 0, group, 0, 0, 0, 0))
    monkeypatch.setattr(os, "stat", lambda _path: status)
    assert sandbox.device_groups(["/dev/kvm"]) == groups


def test_libraries_are_those_the_loader_names() -> None:
    libraries = sandbox.libraries("/bin/sh")
    assert sandbox.LOADER in libraries and any("libc.so" in path for path in libraries)
    assert all(os.path.isabs(path) and os.path.exists(path) for path in libraries)


def test_program_that_is_no_program_has_no_libraries() -> None:
    assert sandbox.libraries(str(PROBE)) == ()


# -- a probe in QEMU's place ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["as we are", "ordinary user"])
def user(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whom the box is started by: empty for who runs the tests; root makes an ordinary user for the purpose."""
    if request.param == "as we are":
        yield ""
        return
    if os.getuid() != 0:
        pytest.skip("an ordinary user runs these tests already")
    subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/sh", USER], check=True)
    try:
        yield USER
    finally:
        subprocess.run(["userdel", USER], check=True)


def interpreter() -> str:
    """One that every user can read: the distribution's, if there is one."""
    return os.path.realpath("/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable)


@pytest.fixture(scope="module", params=["root.1.raw", "a b,c=\\d\n'e\"é"])
def layer(request: pytest.FixtureRequest, user: str) -> Iterator[str]:
    """A disk image that is read-only and belongs to who starts the box, in a folder that is nobody else's."""
    folder = tempfile.mkdtemp(prefix="cloison-box-")
    path = os.path.join(folder, request.param)
    Path(path).write_text("template")
    os.chmod(path, 0o400)
    if user:
        for each in (folder, path):
            os.chown(each, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    yield path
    assert Path(path).read_text() == "template" and stat.S_IMODE(os.stat(path).st_mode) == 0o400
    shutil.rmtree(folder)


class Boxed:
    """The probe in a box, with a read-only layer and a file of its own."""

    def __init__(self, user: str, layer: str) -> None:
        self.python = interpreter()
        ask = "import os, ctypes, _ctypes; print(os.path.dirname(os.__file__)); print(getattr(_ctypes, '__file__', ''))"
        told = subprocess.run([self.python, "-I", "-c", ask], capture_output=True, text=True, check=True).stdout
        library, extension = told.splitlines()
        self.libs = {*sandbox.libraries(self.python), *(sandbox.libraries(extension) if extension else ())}
        self.files = {self.python: self.python, library: library}
        self.own = os.memfd_create("own", os.MFD_CLOEXEC)
        here, there = socket.socketpair()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.life, shown = os.memfd_create("life", os.MFD_CLOEXEC), "/disks/root.0"
        self.handed = [self.own, there.detach()]
        source = os.open(layer, os.O_RDONLY | os.O_CLOEXEC)
        if sandbox.host_user() is not None and not user:
            self.handed.append(readonly.frozen(source))
            shown = f"/proc/self/fd/{self.handed[-1]}"
        else:
            self.files[shown] = layer
        os.close(source)
        with socket.create_server(("127.0.0.1", 0)) as server:      # a service of this host
            port = str(server.getsockname()[1])
            self.argv = [self.python, "-I", "-S", "-c", PROBE.read_text(), library, port, shown, str(self.own), str(self.handed[1])]
            done = self._as_user(user) if user else self._as_we_are()
        for fd in (*self.handed, self.life):
            os.close(fd)
        assert done.returncode == 0, done.stderr.decode()
        self.report: dict[str, Any] = json.loads(done.stdout)
        with here:
            ancillary = here.recvmsg(1, socket.CMSG_SPACE(12))[1]
        self.report["host uid"] = struct.unpack("3i", ancillary[0][2])[1]

    def _as_we_are(self) -> subprocess.CompletedProcess[bytes]:
        process = sandbox.run(self.argv, files=self.files, handed=self.handed, life_fd=self.life, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        with process:
            out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(self.argv, process.returncode, out, err)

    def _as_user(self, user: str) -> subprocess.CompletedProcess[bytes]:
        """By the words that `run` makes."""
        filter_fd = seccomp.pipe()
        words = sandbox.wrap(self.argv, files=self.files, libs=sorted(self.libs), filter_fd=filter_fd, life_fd=self.life)
        try:
            return subprocess.run(["runuser", "-u", user, "--", "env", "-i", *words], capture_output=True, check=False, cwd="/",
                                  stdin=subprocess.DEVNULL, pass_fds=[*self.handed, self.life, filter_fd])
        finally:
            os.close(filter_fd)


@pytest.fixture(scope="module")
def reported(user: str, layer: str) -> dict[str, Any]:
    return Boxed(user, layer).report


@pytest.fixture
def seen(reported: dict[str, Any]) -> dict[str, Any]:
    """The probe's report."""
    return copy.deepcopy(reported)


@pytest.fixture
def seen_without_filter(user: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The same with a filter that allows everything: what the mounts and users alone hold."""
    monkeypatch.setattr(seccomp, "program", lambda: struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
    return Boxed(user, layer).report


def test_probe_finds_nothing_of_the_host(seen: dict[str, Any]) -> None:
    allowed = (*sandbox.FIRMWARE, sandbox.MODULES, *sandbox.LIBRARIES, "/usr/lib64/ld-linux-x86-64.so.2", "/disks/root.0",
               interpreter())
    assert [path for path in seen["files"] if not path.startswith(allowed)] == []
    assert seen["environment"] in (["LC_CTYPE", "PWD"], ["PWD"], [])
    assert seen["hostname"] == "qube"
    assert not {"kvm", "mem", "sda", "vda", "net"} & set(seen["devices"])


def test_probe_has_its_streams_and_what_it_was_handed(seen: dict[str, Any]) -> None:
    """Not what the lock that says "this qube lives" hangs on, nor what the filter came through."""
    names = {name.partition(":")[0].removesuffix(" (deleted)") for name in seen["descriptors"]}
    assert names <= {"null", "pipe", "socket", "memfd", "", "fd", "root.0"} and "life" not in str(seen["descriptors"])
    assert len(seen["descriptors"]) <= 7


def test_probe_has_no_network(seen: dict[str, Any]) -> None:
    assert seen["interfaces"] == ["lo"] and seen["routes"] == 0
    assert seen["reachable"] is False


def test_probe_can_change_nothing_but_its_own_file(seen: dict[str, Any]) -> None:
    assert seen["writable"] == [] and seen["own"] == len("written inside")
    changed = seen["read_only"]
    assert changed.pop("content") == "template"
    assert set(changed.values()) <= {"EPERM", "EROFS", "EACCES", "EBADF"}, changed


def test_no_mode_owner_or_trick_makes_a_shared_file_writable_even_without_the_filter(seen_without_filter: dict[str, Any]) -> None:
    """A layer of the template was written once: fchmod, then open of /proc/self/fd/N. Now the mount says no to both."""
    assert seen_without_filter["seccomp"] == "2"
    changed = seen_without_filter["read_only"]
    assert (changed.pop("content"), changed.pop("write")) == ("template", "EBADF")
    assert changed["fchmod"] == changed["chmod"] == "EROFS"
    assert set(changed.values()) <= {"EROFS", "EACCES"}, "the latter for a user who is not its owner in the first place"
    assert {seen_without_filter["others"][f"{name}"] for name in SYSCTLS} <= {"EROFS", "EACCES", "ENOENT"}


SYSCTLS = ("kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "vm/overcommit_memory", "fs/suid_dumpable")


def test_the_hosts_settings_keys_and_other_ways_out_are_barred(seen: dict[str, Any]) -> None:
    others = seen["others"]
    assert {others.pop(name) for name in SYSCTLS} <= {"EROFS", "EACCES", "ENOENT"}
    assert others == {"keys of the session": "EPERM", "a new key": "EPERM", "namespace": "EPERM", "handle": "EPERM",
                      "vsock": "EAFNOSUPPORT", "io_uring": "ENOSYS"}


def test_pid_1_of_the_box_is_bubblewraps_and_out_of_reach(seen: dict[str, Any]) -> None:
    """It ends with the process around the box, and all in the box with it. What it holds open, nobody inside can make it drop."""
    assert len(seen["processes"]) == 2 and seen["processes"][0] == "1"
    found = seen["pid_1"]
    assert found["environment"] == "" and found["parent"] == "0"
    assert {found[name] for name in ("ptrace", "read memory", "descriptor", "outlive", "leave the group")} == {"EPERM"}
    assert found["memory"] == "EROFS"


def test_nobody_in_the_box_is_root_of_anything(seen: dict[str, Any], user: str) -> None:
    assert seen["uids"] == [str(sandbox.INSIDE)]
    host = sandbox.host_user()
    assert seen["host uid"] == (pwd.getpwnam(user).pw_uid if user else os.getuid() if host is None else host) != 0


def test_probe_gains_no_privileges(seen: dict[str, Any]) -> None:
    status = seen["status"]
    assert status.pop("NoNewPrivs") == "1" and seen["seccomp"] == "2"
    assert set(status.values()) == {"0" * 16}
    assert seen["gained"] == []


# -- its end -------------------------------------------------------------------------------------------------------------------

STARTER = """
import os, subprocess, sys
from cloison.hypervisor import sandbox
python, library, life = sys.argv[1], sys.argv[2], int(sys.argv[3])
script = "import os, signal; os.getppid(); print('up', flush=True); signal.pause()"
sandbox.run([python, "-I", "-S", "-c", script], files={python: python, library: library}, life_fd=life, stdout=sys.stdout)
os.close(life)
input()
"""


@pytest.mark.parametrize("victim", ["who started it", "bubblewrap"])
def test_all_ends_with_who_started_it_and_the_lock_tells(victim: str, tmp_path: Path) -> None:
    """The lock is held by pid 1 of the box: when it is free, nothing in there can go on."""
    python = interpreter()
    ask = "import os; print(os.path.dirname(os.__file__))"
    library = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    lock = os.open(tmp_path / "life", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with subprocess.Popen([sys.executable, "-c", STARTER, python, library, str(lock)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, pass_fds=[lock]) as starter:
        os.close(lock)
        assert starter.stdout is not None and starter.stdout.readline() == b"up\n"
        again = os.open(tmp_path / "life", os.O_RDONLY | os.O_CLOEXEC)
        with pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_SH | fcntl.LOCK_NB)
        children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
        os.kill(starter.pid if victim == "who started it" else int(children[0]), 9)
        fcntl.flock(again, fcntl.LOCK_SH)
        os.close(again)
        starter.kill()
        assert starter.stdout.read() == b"", "the box's standard output is closed: its program has ended"
