"""What a machine's processes have used: QEMU's, below bubblewrap's two."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cloison.daemon import zygote_wardens

CHAIN = """
import os, sys, time
for _ in range(2):                      # bubblewrap, and pid 1 of the box: idle
    if os.fork():
        os.wait()
        os._exit(0)
while time.process_time() < 0.2:
    pass
print("used", flush=True)
sys.stdin.read()
"""


def test_it_is_qemus_and_not_that_of_what_is_around_it() -> None:
    with subprocess.Popen([sys.executable, "-c", CHAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outer:
        assert outer.stdout is not None and outer.stdout.readline() == b"used\n"
        assert zygote_wardens._cpu_time(outer.pid) >= 150_000_000


@pytest.mark.parametrize("pid", [None, "x", 0, pytest.param(os.getpid(), id="a process without children")])
def test_what_is_not_there_has_used_nothing(pid: object) -> None:
    assert zygote_wardens._cpu_time(pid) == 0
