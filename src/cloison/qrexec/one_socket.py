"""Programs that use their stdin both ways, and say so by SIGUSR1 to whom QREXEC_AGENT_PID names (reference/qrexec.md 7.4).

One process, one signal: which program sent it can't be told for sure (it may have ended, signals merge), so each that is running
is then watched for bytes on its stdin, which else has none.
"""
from __future__ import annotations

import asyncio
import signal
from typing import Protocol


class Program(Protocol):
    """A call that a program serves."""

    def may_use_one_socket(self) -> None: ...


_programs: set[Program] = set()
_signalled: list[int] = []
_hearing: list[asyncio.AbstractEventLoop] = []


def hear() -> None:
    """Before any program learns our process id: from then on it may signal at any moment, and must not end us by it.

    Signals come to the loop that is running now; without one they are taken and forgotten.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, _mark)
        return
    if _hearing != [loop]:
        _hearing[:] = [loop]
        _programs.clear()
        loop.add_signal_handler(signal.SIGUSR1, _tell)
        signal.signal(signal.SIGUSR1, _mark)         # runs before the next callback; `_tell` is such a callback


def begin(program: Program) -> None:
    """It runs: tell it of signals."""
    hear()
    _programs.add(program)


def end(program: Program) -> None:
    """Idempotent."""
    _programs.discard(program)


def signalled() -> bool:
    """Whether any program has ever signalled, perhaps in this very turn of the loop."""
    return bool(_signalled)


def _mark(number: int, _frame: object) -> None:
    _signalled[:] = [number]


def _tell() -> None:
    for program in list(_programs):
        program.may_use_one_socket()
