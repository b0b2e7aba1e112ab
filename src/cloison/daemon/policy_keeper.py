"""Keeps a policy daemon running: without one every call is denied, and nobody should have to notice that.

qubesd is who can do it: when qubesd itself does not run, every call is denied anyway, since nobody knows the qubes. A policy
daemon that a former qubesd, or a person, has started is as good as ours; it outlives qubesd.
"""
from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from functools import partial

from cloison.runtime.children import when_ended
from cloison.runtime.paths import Paths
from cloison.runtime.spawn import listener, spawn

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-P", "-m", "cloison.qrexec.policyd.server")
SOCKET = "policy.sock"
STEADY = 10.0                            # seconds of life after which an end counts as the first
LONGEST_PAUSE = 60.0


def pause(ends: int) -> float:
    """Seconds to wait after so many ends in a row, so that what can't live is not started without end."""
    return 0.0 if ends < 2 else min(2.0 ** (ends - 2), LONGEST_PAUSE)


class PolicyKeeper:
    """`run` it as a task; cancelled, it leaves a policy daemon that serves alone, and ends one that it has only begun to start."""

    def __init__(self, paths: Paths, command: tuple[str, ...] = COMMAND) -> None:
        self._paths, self._command = paths, command
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """For ever."""
        ends = 0
        while True:
            began = self._loop.time()
            await self._life()
            ends = 1 if self._loop.time() - began > STEADY else ends + 1
            log.warning("the policy daemon has ended; it is started again in %.0f s", pause(ends))
            await self._back_off(pause(ends))

    async def _back_off(self, seconds: float) -> None:
        """The delay is the meaning: there is no event that says when a program that can't live would."""
        over = asyncio.Event()
        timer = self._loop.call_later(seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    async def _life(self) -> None:
        """Until the one that runs, or else a new one, has ended. A failure to start is a short life."""
        try:
            found = listener(self._paths.socket(SOCKET))
            if found is not None:
                await self._ended(found[1])
                return
            pid = spawn(list(self._command), os.path.join(self._paths.log, "policyd.log"))
            over = asyncio.Event()
            when_ended(pid, partial(_reap, pid, over))
            try:
                await over.wait()
            except asyncio.CancelledError:
                if not over.is_set() and not self._serves(pid):
                    os.kill(pid, signal.SIGTERM)         # still starting: after us it would serve nobody, and nobody would end it
                raise
        except OSError as error:
            log.error("the policy daemon can't be started: %s", error)

    def _serves(self, pid: int) -> bool:
        found = listener(self._paths.socket(SOCKET))
        if found is None:
            return False
        os.close(found[1])
        return found[0] == pid

    async def _ended(self, process: int) -> None:
        """A process's descriptor, which is closed here."""
        over = asyncio.Event()
        self._loop.add_reader(process, over.set)
        try:
            await over.wait()
        finally:
            self._loop.remove_reader(process)
            os.close(process)


def _reap(pid: int, over: asyncio.Event) -> None:
    os.waitpid(pid, 0)
    over.set()
