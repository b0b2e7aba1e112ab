"""A peer's end is noticed, once, even after it has half-closed and without reading."""
from __future__ import annotations

import asyncio
import os
import socket

from tests.runtime.ports import News


def watched(act: str) -> tuple[int, int]:
    """(calls after the peer did `act`, bytes that were still to read)."""
    from cloison.runtime.hangup import watch_hangup

    async def run() -> tuple[int, int]:
        ours, theirs = socket.socketpair()
        before = len(os.listdir("/proc/self/fd"))
        news, calls = News(), []

        def hung_up() -> None:
            calls.append(1)
            news.tell()

        stop = watch_hangup(ours, hung_up)
        theirs.send(b"unread")
        if act == "stop":
            stop()
            stop()
        if act != "half":
            theirs.close()
        else:
            theirs.shutdown(socket.SHUT_WR)
        if act == "close":
            await news.until(lambda: bool(calls))
        await asyncio.get_running_loop().run_in_executor(None, len, "")    # a turn of the loop, with its select
        rest = len(ours.recv(100))
        stop()
        assert len(os.listdir("/proc/self/fd")) <= before, "the watch has a descriptor, which ends with it"
        ours.close()
        theirs.close()
        return len(calls), rest

    return asyncio.run(run())


def test_close_is_told_once_and_nothing_is_read() -> None:
    assert watched("close") == (1, 6)


def test_half_close_is_not_a_hang_up() -> None:
    assert watched("half") == (0, 6)


def test_stopped_watch_is_silent() -> None:
    assert watched("stop") == (0, 6)
