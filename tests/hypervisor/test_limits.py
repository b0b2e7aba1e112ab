"""A QEMU writes no longer files than its disks need, and is held to that by the kernel; it is let, when one of them grows."""
from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cloison.errors import MachineError
from cloison.hypervisor import sandbox
from cloison.hypervisor.base import Disk, DiskFile, MachineSpec
from cloison.hypervisor.qemu import limits
from cloison.runtime import memory
from cloison.runtime.programs import find
from cloison.storage.base import MAX_SIZE

GIB, MIB = 1 << 30, 1 << 20
CHILD = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
while line := sys.stdin.readline():
    found = []
    for attempt in (lambda at: os.pwrite(fd, b"x", at - 1), lambda at: os.ftruncate(fd, at),
                    lambda at: os.posix_fallocate(fd, at - 4096, 4096)):
        os.ftruncate(fd, 0)
        try:
            attempt(int(line))
            found.append(0)
        except OSError as error:
            found.append(error.errno)
    print(*found, flush=True)
"""


def spec(*disks: Disk, memory: int = 400) -> MachineSpec:
    return MachineSpec("", memory, 1, "tcg", disks)


def on_disk(size: int, *lengths: int, read_only: bool = False) -> Iterator[Disk]:
    """A disk of files of these lengths."""
    fds = [os.memfd_create("layer") for _ in lengths]
    for fd, length in zip(fds, lengths, strict=True):
        os.ftruncate(fd, length)
    yield Disk("private", size, tuple(DiskFile(fd, "qcow2", read_only) for fd in fds))
    for fd in fds:
        os.close(fd)


def test_the_largest_disk_decides_and_its_tables_fit() -> None:
    found = limits.longest(spec(Disk("root", 10 * GIB), Disk("private", 2 * GIB)))
    assert 10 * GIB + 10 * GIB // 6000 + MIB < found < 10 * GIB * 1.01 + 65 * MIB
    assert limits.longest(spec(Disk("private", 2 * GIB), Disk("root", 10 * GIB))) == found
    assert limits.length_for(MAX_SIZE) > MAX_SIZE + MAX_SIZE // 6000


def test_the_memory_of_a_warm_image_in_the_making_fits() -> None:
    assert limits.longest(spec(Disk("root", MIB), memory=4096)) > 4096 * MIB


def test_a_file_that_is_longer_already_may_stay_and_be_written(tmp_path: Path) -> None:
    for disk in on_disk(GIB, 3 * GIB):
        assert limits.longest(spec(disk)) > 3 * GIB + MIB
    for disk in on_disk(GIB, 3 * GIB, read_only=True):
        assert limits.longest(spec(disk)) < 2 * GIB, "what it can't write is no matter"


@pytest.fixture(autouse=True)
def same_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an ordinary user's; root's: test_driver.py."""
    monkeypatch.setattr(sandbox, "host_user", lambda: None)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that tries to have a file of the length that it is told, in three ways; held to 1 GiB."""
    confine = partial(limits.confine, 400, GIB)
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, preexec_fn=confine) as process:          # noqa: PLW1509 as sandbox.run does
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


HELD = """
import resource
for name in ("DATA", "AS", "NOFILE", "FSIZE"):
    print(*resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
print(open("/proc/self/oom_score_adj").read().strip())
"""


def test_a_qemu_is_held_to_its_own_limits_and_not_to_its_wardens() -> None:
    """The warden's, on private memory, would end a guest with more; nobody in the box raises one again but that of files."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (900 * MIB, hard))
        limits.confine(400, GIB)

    done = subprocess.run([sys.executable, "-c", HELD], stdout=subprocess.PIPE, text=True, check=True, timeout=30,
                          preexec_fn=confine)
    data, addresses, files, length, score = done.stdout.splitlines()
    most = limits.argv.addresses(400) * MIB
    assert (data, addresses, files) == (f"{hard} {hard}", f"{most} {most}", f"{limits.OPEN_FILES} {limits.OPEN_FILES}")
    assert length.split()[0] == str(GIB) and int(length.split()[1]) in (-1, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert score == str(limits.OOM_SCORE)


def tried(child: subprocess.Popen[str], length: int) -> list[int]:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(f"{length}\n")
    child.stdin.flush()
    return [int(word) for word in child.stdout.readline().split()]


def test_beyond_the_length_there_is_an_error_and_no_signal(child: subprocess.Popen[str]) -> None:
    assert tried(child, GIB) == [0, 0, 0]
    assert tried(child, GIB + 4096) == [errno.EFBIG] * 3


def test_it_is_let_from_outside_when_a_disk_grows_and_never_less(child: subprocess.Popen[str]) -> None:
    assert tried(child, GIB + 4096) == [errno.EFBIG] * 3
    limits.let_grow(child.pid, 2 * GIB)
    assert tried(child, 2 * GIB) == [0, 0, 0]
    limits.let_grow(child.pid, GIB)
    assert tried(child, 2 * GIB) == [0, 0, 0]
    assert tried(child, 2 * GIB + 4096) == [errno.EFBIG] * 3


def test_one_that_may_not_be_let_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is larger from the next start on."""
    def refuse(_pid: int, _which: int, new: object = None) -> tuple[int, int]:
        if new is not None:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return GIB, resource.RLIM_INFINITY

    monkeypatch.setattr(resource, "prlimit", refuse)
    with pytest.raises(MachineError, match="until it is started again: Operation not permitted"):
        limits.let_grow(os.getpid(), 2 * GIB)


@pytest.mark.skipif(os.getuid() != 0, reason="what root does for its boxes' users")
def test_root_has_a_process_of_the_boxs_user_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever capabilities it has itself: a container's root may not."""
    monkeypatch.setattr(sandbox, "host_user", lambda: sandbox.FIRST_USER)
    confine = partial(limits.limit_length, GIB)
    with subprocess.Popen([find("cat")], stdin=subprocess.PIPE, user=sandbox.FIRST_USER, group=sandbox.FIRST_USER, extra_groups=[],
                          preexec_fn=confine) as process:                     # noqa: PLW1509 as sandbox.run does
        limits.let_grow(process.pid, 2 * GIB)
        shown = Path(f"/proc/{process.pid}/limits").read_text()
        assert next(line.split()[3] for line in shown.splitlines() if line.startswith("Max file size")) == str(2 * GIB)
        monkeypatch.setattr(sandbox, "host_user", lambda: sandbox.FIRST_USER + 1)
        with pytest.raises(MachineError, match="until it is started again"):
            limits.let_grow(process.pid, 3 * GIB)


def test_one_that_has_ended_has_no_limit_to_change() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    limits.let_grow(process.pid, 2 * GIB)


@pytest.mark.parametrize(("release", "by_namespace"), [
    ("6.1.0-18-amd64", True), ("5.14.0", True), ("5.13.19-2-pve", False), ("4.19.0", False), ("10.2", True), ("?", False),
    ("", False),
])
def test_threads_are_counted_for_a_box_alone_by_newer_kernels_only(
    monkeypatch: pytest.MonkeyPatch, release: str, by_namespace: bool,
) -> None:
    """An older one counts all that the user runs: QEMU could make no thread at all."""
    held: list[tuple[int, int]] = []
    monkeypatch.setattr(limits, "hold_tasks_of", lambda pid, most: held.append((pid, most)))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", release, "", "")))
    limits.hold_tasks(7)
    assert held == ([(7, limits.TASKS)] if by_namespace else [])


def test_a_machine_that_has_ended_is_held_to_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_pid: int, _most: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(limits, "hold_tasks_of", gone)
    limits.hold_tasks(7)


BOXED = """
import os, sys, threading
print("up", flush=True)
sys.stdin.readline()
wait, made = threading.Event(), 0
try:
    for made in range(100):
        threading.Thread(target=wait.wait, daemon=True).start()
except RuntimeError:
    pass
print(made, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not limits.counted_by_namespace(os.uname().release), reason="the kernel counts all that the user runs")
@pytest.mark.skipif(os.getuid() != 0, reason="to be a user who runs more than that already")
def test_what_an_ordinary_user_runs_besides_is_not_counted() -> None:
    """Forty processes outside, twenty allowed inside, which the box has to itself."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    box = ["bwrap", "--unshare-all", "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib",
           "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "/usr/bin/python3", "-c", BOXED]
    others = [subprocess.Popen([find("cat")], stdin=subprocess.PIPE, **nobody) for _ in range(40)]      # type: ignore[call-overload]
    try:
        with subprocess.Popen(box, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **nobody) as process:  # type: ignore[call-overload]
            assert process.stdout.readline() == "up\n"
            for pid in memory.family(process.pid):
                subprocess.run(["prlimit", "--pid", str(pid), "--nproc=20:20"], check=True, **nobody)   # type: ignore[call-overload]
            process.stdin.write("\n")
            process.stdin.flush()
            assert 15 < int(process.stdout.readline()) < 20
    finally:
        for each in others:
            each.communicate()
