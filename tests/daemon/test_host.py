"""The facts of the real host."""
from __future__ import annotations

import time

from cloison.daemon.host import RealHost

HOST = RealHost("/nowhere", lambda: ["6.1"])


def test_processors_work_as_long_as_somebody_does() -> None:
    before, own = HOST.cpu_time(), time.process_time_ns()
    while HOST.cpu_time() == before:
        pass
    assert time.process_time_ns() > own
    assert 0 < before < HOST.cpu_time() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) * HOST.cpus


def test_memory_and_kernels() -> None:
    assert 0 < HOST.free_memory() <= HOST.memory == HOST.dom0_memory
    assert HOST.kernels() == ["6.1"] and HOST.kernel_options("6.1", pci=False) is None
