"""A session that goes after others for a while: what is written for the kernel, and what the kernel makes of it."""
from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE

from cloison.warden.priority import AUTOGROUP, Priority


class Autogroup:
    """A fifo in the file's place: all that was written, in turn."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "autogroup")
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)

    def __enter__(self) -> Autogroup:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def written(self) -> bytes:
        try:
            return os.read(self._fd, 100)
        except BlockingIOError:
            return b""

    async def next(self) -> bytes:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self._fd, lambda: ready.done() or ready.set_result(None))
        try:
            await asyncio.wait_for(ready, PATIENCE)
        finally:
            loop.remove_reader(self._fd)
        return self.written()


def test_low_once_and_normal_after_the_last_word(tmp_path: Path) -> None:
    async def run(group: Autogroup) -> None:
        priority = Priority(group.path)
        for seconds in (0.001, 0.02, 0.01):
            priority.lower(seconds)
        assert group.written() == b"15"
        assert await group.next() == b"0"
        priority.lower(0.0)
        assert group.written() == b"15"
        assert await group.next() == b"0"
        priority.close()

    with Autogroup(tmp_path) as group:
        asyncio.run(run(group))


def test_a_shorter_word_does_not_take_a_longer_one_back(tmp_path: Path) -> None:
    async def run(group: Autogroup) -> None:
        priority = Priority(group.path)
        for seconds in (0.0, 1000.0, 0.0):
            priority.lower(seconds)
        assert group.written() == b"15"
        priority._over()                         # the first one's time is up
        assert group.written() == b""
        priority.close()

    with Autogroup(tmp_path) as group:
        asyncio.run(run(group))


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    async def run(group: Autogroup) -> None:
        priority = Priority(group.path)
        priority.lower(0.0)
        priority.close()
        passed = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.0, passed.set_result, None)
        await passed
        assert group.written() == b"15"

    with Autogroup(tmp_path) as group:
        asyncio.run(run(group))


def test_without_autogroups_nothing_happens(tmp_path: Path) -> None:
    async def run() -> None:
        priority = Priority(str(tmp_path / "none"))
        priority.lower(1.0)
        priority.lower(1.0)
        priority.close()

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_a_change_that_came_too_early_is_made_later(tmp_path: Path) -> None:
    """As the kernel has it for anybody but root: ten changes a second, of all sessions together."""
    async def run(group: Autogroup) -> None:
        away = tmp_path / "away"
        os.rename(group.path, away)
        priority = Priority(group.path)
        priority.lower(0.001)                        # refused
        os.rename(away, group.path)
        priority.lower(0.001)
        assert group.written() == b"15"
        os.rename(group.path, away)                  # the way back is refused, and tried again
        turned = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, turned.set_result, None)
        await turned
        os.rename(away, group.path)
        assert await group.next() == b"0"
        priority.close()

    with Autogroup(tmp_path) as group:
        asyncio.run(run(group))


PROGRAM = """
import asyncio, os, sys
from cloison.warden.priority import AUTOGROUP, Priority
async def main():
    if os.path.exists(AUTOGROUP):
        os.setsid()
        priority = Priority()
        while "nice 15" not in open(AUTOGROUP).read():       # as the next requests of a flood do
            priority.lower(60)
        print("low")
asyncio.run(main())
"""


def test_the_kernel_takes_it_from_anybody() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == ("low\n" if os.path.exists(AUTOGROUP) else "")
