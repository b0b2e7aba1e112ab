"""Limits that the host holds: on a process's own memory, lifted for what it starts, and for good on what a guest may own."""
from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

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
