"""Limits that the host holds: on a process's own memory, lifted for what it starts, and for good on what a guest may own."""
from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.runtime import memory
from cloison.runtime.memory import used_by

LIMITED = """
import resource, subprocess, sys
from cloison.runtime.memory import lift, lifted, limit_data
limit_data(60 << 20)
try:
    bytearray(100 << 20)
except MemoryError:
    print("refused")
bytearray(10 << 20)
ask = [sys.executable, "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0])"]
print(subprocess.run(ask, capture_output=True, text=True).stdout.strip())
with lifted():
    print(subprocess.run(ask, capture_output=True, text=True).stdout.strip())
print(resource.getrlimit(resource.RLIMIT_DATA)[0])
lift()
bytearray(100 << 20)
"""


def run(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_process_that_takes_too_much_hears_of_it_and_what_it_starts_lifted_does_not() -> None:
    limit = str(60 << 20)
    before = resource.getrlimit(resource.RLIMIT_DATA)[1]
    assert run(LIMITED) == ["refused", limit, str(before), limit]


def test_addresses_are_limited_for_good() -> None:
    program = """
import resource
from cloison.runtime.memory import limit_addresses
limit_addresses(1 << 30)
print(*resource.getrlimit(resource.RLIMIT_AS))
limit_addresses(2 << 30)
print(*resource.getrlimit(resource.RLIMIT_AS))
"""
    assert run(program) == [str(1 << 30)] * 4, "and never raised"


@pytest.mark.parametrize(("first", "then", "score"), [(300, 700, 700), (700, 300, 700)])
def test_the_score_only_rises(first: int, then: int, score: int) -> None:
    program = f"""
from cloison.runtime.memory import ends_first
ends_first({first})
ends_first({then})
print(open("/proc/self/oom_score_adj").read())
"""
    assert run(program) == [str(score)]


def test_memory_of_a_process_and_of_those_below_it() -> None:
    child = "import sys; data = bytearray(b'x') * (30 << 20); print('there', flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"there\n"
        own = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert own < 30 << 20 <= used_by(process.pid) - own
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
    assert used_by(process.pid) == 0


def test_open_files_are_limited_for_good() -> None:
    program = """
import resource
from cloison.runtime.memory import limit_files
limit_files(100)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
limit_files(200)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    assert run(program) == ["100"] * 4


LEADERLESS = """
import ctypes, sys, threading
data = bytearray(b"x") * (30 << 20)
leader = threading.main_thread().native_id
def watch():
    while open(f"/proc/self/task/{leader}/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    print("alone", flush=True)
    sys.stdin.read()
threading.Thread(target=watch).start()
ctypes.CDLL(None).syscall(60, 0)         # exit, of this thread alone
"""


def test_a_process_without_its_first_thread_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", LEADERLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"alone\n"
            assert Path(f"/proc/{process.pid}/statm").read_text().split()[1] == "0"
            assert used_by(process.pid) >= 30 << 20
        finally:
            process.kill()


def test_processes_of_a_user_are_limited_for_good() -> None:
    program = """
import resource
from cloison.runtime.memory import limit_tasks
limit_tasks(100)
print(*resource.getrlimit(resource.RLIMIT_NPROC))
limit_tasks(200)
print(*resource.getrlimit(resource.RLIMIT_NPROC))
"""
    assert run(program) == ["100"] * 4


@pytest.mark.parametrize(("threads", "most", "each"), [(50, 512, 32 << 10), (50, 40, 1 << 20)])
def test_threads_cost_memory_of_the_kernels_and_too_many_more(threads: int, most: int, each: int) -> None:
    program = f"""
import os, threading
from cloison.runtime import memory
memory.MAX_THREADS = {most}
end = threading.Event()
threads = [threading.Thread(target=end.wait) for _ in range({threads})]
for each in threads:
    each.start()
resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
found = memory.used_by(os.getpid()) - resident
print({threads * each} <= found < {threads * each} + (5 << 20))
end.set()
"""
    assert run(program) == ["True"]


INF = resource.RLIM_INFINITY
MOST = 1 << 30


class Limits:
    """The kernel's, of this process and others; whoever is not in `others` is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: tuple[int, int], others: tuple[int, ...] = ()) -> None:
        self.now, self.others = dict.fromkeys((0, *others), now), others
        self.said: list[tuple[int, int]] = []
        monkeypatch.setattr(memory.resource, "getrlimit", lambda which: self.prlimit(0, which))
        monkeypatch.setattr(memory.resource, "setrlimit", lambda which, new: self.prlimit(0, which, new))
        monkeypatch.setattr(memory.resource, "prlimit", self.prlimit)

    def prlimit(self, pid: int, which: int, new: tuple[int, int] | None = None) -> tuple[int, int]:
        if pid not in self.now:
            raise ProcessLookupError
        if new is not None:
            self.said.append((pid, which))
            self.now[pid] = new
        return self.now[pid]


@pytest.mark.parametrize(("hard", "soft"), [(INF, MOST), (MOST + 1, MOST), (MOST, MOST), (MOST - 1, MOST - 1), (0, 0)])
@pytest.mark.parametrize(("limit", "which", "for_good"), [
    (memory.limit_data, resource.RLIMIT_DATA, False), (memory.limit_length, resource.RLIMIT_FSIZE, False),
    (memory.limit_addresses, resource.RLIMIT_AS, True), (memory.limit_files, resource.RLIMIT_NOFILE, True),
    (memory.limit_tasks, resource.RLIMIT_NPROC, True),
])
def test_a_limit_is_what_was_said_or_what_is_allowed_at_most(
    monkeypatch: pytest.MonkeyPatch, limit: Callable[[int], None], which: int, for_good: bool, hard: int, soft: int,
) -> None:
    kernel = Limits(monkeypatch, (hard, hard))
    limit(MOST)
    assert kernel.now == {0: (soft, soft if for_good else hard)} and kernel.said == [(0, which)]


@pytest.mark.parametrize(("now", "then"), [
    ((INF, INF), (MOST, MOST)), ((5, INF), (MOST, MOST)), ((MOST + 1, MOST + 1), (MOST, MOST)), ((4, 5), (5, 5)),
])
def test_tasks_of_others_are_held_for_good(monkeypatch: pytest.MonkeyPatch, now: tuple[int, int], then: tuple[int, int]) -> None:
    kernel = Limits(monkeypatch, now, (7, 8))
    monkeypatch.setattr(memory, "family", lambda pid: [pid, 8])
    memory.hold_tasks_of(7, MOST)
    assert kernel.now == {0: now, 7: then, 8: then} and {which for _, which in kernel.said} == {resource.RLIMIT_NPROC}


@pytest.mark.parametrize(("now", "then"), [
    ((5, INF), (MOST, INF)), ((MOST - 1, MOST + 1), (MOST, MOST + 1)), ((5, MOST - 1), (MOST - 1, MOST - 1)),
    ((MOST, INF), None), ((MOST + 1, INF), None), ((INF, INF), None), ((5, 5), None),
])
def test_files_may_be_longer_and_never_shorter(
    monkeypatch: pytest.MonkeyPatch, now: tuple[int, int], then: tuple[int, int] | None,
) -> None:
    """One of them has ended meanwhile: that is no reason to leave out the next."""
    kernel = Limits(monkeypatch, now, (7, 9))
    monkeypatch.setattr(memory, "family", lambda pid: [pid, 8, 9])
    memory.let_write(7, MOST)
    assert kernel.now == {0: now, 7: then or now, 9: then or now}
    assert kernel.said == ([(pid, resource.RLIMIT_FSIZE) for pid in (7, 9)] if then else [])
