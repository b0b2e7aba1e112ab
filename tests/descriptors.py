"""No test leaves a descriptor open, so that code that forgets to close one fails whichever test runs it.

A socket or file object that is dropped warns by itself, and warnings are errors; a plain number, or what an event loop or a task
still refers to, is only found by counting.
"""
from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest


def opened() -> dict[int, str]:
    """What this process has open, by number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:        # the folder that is being listed
            continue
    return found


def watchers() -> int:
    """epoll descriptors: the loop's own, and one for each watch (runtime/hangup.py)."""
    return sum("eventpoll" in name for name in opened().values())


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    """For a conftest.py to import: holds for each test of its folder."""
    before = opened()
    yield
    if opened().items() - before.items():
        gc.collect()                     # what only a cycle keeps is let go
        left = opened().items() - before.items()
        assert not left, f"left open: {sorted(left)}"
