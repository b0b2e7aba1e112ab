"""The end of a child is noticed once, by its process descriptor, which goes with it."""
from __future__ import annotations

import asyncio
import os
import subprocess

import pytest
from tests.patience import PATIENCE

from cloison.runtime.children import when_ended


def test_an_end_is_told_once_and_leaves_nothing() -> None:
    async def run() -> None:
        before = len(os.listdir("/proc/self/fd"))
        child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
        assert child.stdin is not None
        ended: asyncio.Queue[int | None] = asyncio.Queue()
        when_ended(child.pid, lambda: ended.put_nowait(child.wait()))
        for _ in range(3):
            await asyncio.sleep(0)
        assert ended.empty(), "it lives"
        child.stdin.close()
        assert await asyncio.wait_for(ended.get(), PATIENCE) == 0
        for _ in range(3):
            await asyncio.sleep(0)
        assert ended.empty() and len(os.listdir("/proc/self/fd")) == before

    asyncio.run(run())


def test_a_child_that_is_gone_already_is_an_error() -> None:
    child = subprocess.Popen(["/bin/true"])
    child.wait()

    async def run() -> None:
        with pytest.raises(ProcessLookupError):
            when_ended(child.pid, lambda: None)

    asyncio.run(run())
