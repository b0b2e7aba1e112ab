"""Where the agent runs: what it starts must not be bound to its processor, and a guest without such a port runs on."""
from __future__ import annotations

import os
from pathlib import Path

from cloison.guest import placement
from cloison.qrexec import process
from cloison.wire.qrexec import Command


def test_a_device_without_interrupts_of_its_own_changes_nothing(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    placement.share_processor_with(str(tmp_path / "no-port"))
    assert os.sched_getaffinity(0) == before


def test_what_a_bound_process_starts_may_run_everywhere() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    everywhere = allowed()
    os.sched_setaffinity(0, {placement.PROCESSOR})
    try:
        started = process.start(Command("", command="read _; exec grep Cpus_allowed_list /proc/self/status"))
        assert isinstance(started, process.Started)
    finally:
        os.sched_setaffinity(0, before)
    started.stdin.sendall(b"\n")
    assert started.stdout.recv(4096).decode() == everywhere
    started.process.wait()
    started.close()


def allowed() -> str:
    """Where this process may run, in the kernel's words."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(line for line in file if line.startswith("Cpus_allowed_list"))
