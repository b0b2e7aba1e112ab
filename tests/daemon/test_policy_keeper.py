"""A policy daemon that dies is there again, by itself: real processes, kill -9."""
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.daemon.policy_keeper import COMMAND, LONGEST_PAUSE, PolicyKeeper, pause
from cloison.runtime import inotify
from cloison.runtime.paths import Paths
from cloison.runtime.spawn import listener, spawn


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    made = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
    made.ensure()
    return made


@contextlib.asynccontextmanager
async def kept(keeper: PolicyKeeper) -> AsyncIterator[None]:
    task = asyncio.create_task(keeper.run())
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(folder: str, true: Callable[[], bool]) -> None:
    """Looked at after each change in the folder."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    watch = inotify.Watch(folder, inotify.CREATE | inotify.MOVED_TO | inotify.CLOSE_WRITE)
    loop.add_reader(watch.fileno(), changed.set)
    try:
        while not true():
            await changed.wait()
            changed.clear()
            watch.clear()
    finally:
        loop.remove_reader(watch.fileno())
        watch.close()


class Policyd:
    """Who listens on the policy daemon's socket."""

    def __init__(self, paths: Paths) -> None:
        self._path = paths.socket("policy.sock")
        self._folder = paths.run

    async def other_than(self, former: int) -> int:
        found: list[int] = []

        def is_another() -> bool:
            one = listener(self._path)
            if one is not None:
                os.close(one[1])
                found[:] = [one[0]]
            return one is not None and one[0] != former

        await until(self._folder, is_another)
        return found[0]

    def end(self) -> None:
        one = listener(self._path)
        if one is not None:
            signal.pidfd_send_signal(one[1], signal.SIGKILL)
            os.close(one[1])


def test_a_killed_policy_daemon_is_started_again_and_outlives_its_keeper(paths: Paths) -> None:
    policyd = Policyd(paths)

    async def conversation() -> None:
        async with kept(PolicyKeeper(paths)):
            first = await policyd.other_than(0)
            os.kill(first, signal.SIGKILL)
            second = await policyd.other_than(first)
            os.kill(second, signal.SIGKILL)
            await policyd.other_than(second)

    try:
        asyncio.run(conversation())
        assert listener(paths.socket("policy.sock")) is not None
    finally:
        policyd.end()


def test_one_that_runs_already_is_kept_and_not_doubled(paths: Paths) -> None:
    policyd = Policyd(paths)
    never = str(paths.run) + "/started"

    pid = spawn(list(COMMAND), os.path.join(paths.log, "policyd.log"))

    async def conversation() -> None:
        assert await policyd.other_than(0) == pid
        async with kept(PolicyKeeper(paths, ("/bin/sh", "-c", f"touch {never}"))):
            await asyncio.sleep(0)       # one turn: it looks
            assert not os.path.exists(never)
            os.kill(pid, signal.SIGKILL)
            await until(paths.run, lambda: os.path.exists(never))

    asyncio.run(conversation())
    os.waitpid(pid, 0)


def test_one_that_can_not_live_is_tried_again_with_longer_and_longer_pauses(paths: Paths) -> None:
    tries = Path(paths.run, "tries")

    async def conversation() -> None:
        async with kept(PolicyKeeper(paths, ("/bin/sh", "-c", f"echo >> {tries}"))):
            await until(paths.run, lambda: tries.exists() and len(tries.read_text()) >= 2)

    asyncio.run(conversation())
    assert [pause(ends) for ends in (1, 2, 3, 4)] == [0, 1, 2, 4]
    assert pause(100) == LONGEST_PAUSE


def test_a_program_that_is_missing_ends_nothing(paths: Paths) -> None:
    told = asyncio.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "can't be started" in record.getMessage():
                told.set()

    async def conversation() -> None:
        async with kept(PolicyKeeper(paths, ("/nonexistent/policyd",))):
            await told.wait()

    handler = Told()
    logging.getLogger("cloison.daemon.policy_keeper").addHandler(handler)
    try:
        asyncio.run(conversation())
    finally:
        logging.getLogger("cloison.daemon.policy_keeper").removeHandler(handler)


def test_one_that_is_only_starting_ends_with_its_keeper(paths: Paths) -> None:
    """Else it would take up its work after `cloison down`, and nobody would end it."""
    told = Path(paths.run, "pid")

    async def conversation() -> int:
        async with kept(PolicyKeeper(paths, ("/bin/sh", "-c", f"echo $$ > {told}; exec sleep 3600"))):
            await until(paths.run, lambda: told.exists() and told.read_text().endswith("\n"))
            return os.pidfd_open(int(told.read_text()))

    process = asyncio.run(conversation())
    try:
        assert select.select([process], [], [], PATIENCE)[0]
        with contextlib.suppress(ChildProcessError):         # the keeper's loop has reaped it
            os.waitid(os.P_PIDFD, process, os.WEXITED)
    finally:
        os.close(process)
