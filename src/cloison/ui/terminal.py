"""Questions on a terminal, where there is no display. Enter alone is a no; what was typed before the question is thrown away."""
from __future__ import annotations

import asyncio
import os
import termios

from cloison.client.connection import Connection
from cloison.ui.colours import UNKNOWN, colours
from cloison.ui.targets import order, shown
from cloison.wire.ask import Notice, Question

MAX_LINE = 256            # bytes of an answer
_MAX_SHOWN = 40           # targets listed; any can be typed by name


class Terminal:
    """An `Asker` on one terminal, whose descriptor it is given."""

    def __init__(self, fd: int, connection: Connection) -> None:
        self._fd, self._connection = fd, connection

    async def ask(self, question: Question) -> str | None:
        shades = await asyncio.to_thread(colours, question.icons, self._connection)
        self._say("\n".join(_lines(question, shades)))
        # Keys pressed before the question was there are no answer to it. Then the prompt: whoever waits for that loses none.
        termios.tcflush(self._fd, termios.TCIFLUSH)
        self._say("\nnumber or name of the target (Enter: no): ")
        try:
            line = await self._line()
        except asyncio.CancelledError:
            self._say("\nThe question was withdrawn.\n")
            raise
        chosen = _chosen(question, line)
        self._say(f"allowed: {chosen}\n" if chosen else "refused\n")
        return chosen

    async def tell(self, notice: Notice) -> None:
        self._say(f"{notice.resolution}: {notice.source} -> {notice.target}: {_service(notice.service, notice.argument)}\n")

    def _say(self, text: str) -> None:
        os.write(self._fd, text.encode("ascii", "replace"))

    async def _line(self) -> str:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._fd, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
            return os.read(self._fd, MAX_LINE).decode("ascii", "replace").strip()
        finally:
            loop.remove_reader(self._fd)


def _lines(question: Question, shades: dict[str, str]) -> list[str]:
    width = len(str(len(question.targets)))
    lines = ["", f"{_painted(question.source, shades)} wants to call {_service(question.service, question.argument)} in:"]
    for number, target in enumerate(sorted(question.targets, key=order)[:_MAX_SHOWN], 1):
        proposed = "   (proposed by the policy)" if target == question.default_target else ""
        lines.append(f"  {number:{width}}  {_painted(target, shades)}{proposed}")
    if len(question.targets) > _MAX_SHOWN:
        lines.append(f"  ... and {len(question.targets) - _MAX_SHOWN} more, by name")
    return lines


def _service(service: str, argument: str) -> str:
    shown = f"{service}{argument}".removesuffix("+")
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


def _painted(name: str, shades: dict[str, str]) -> str:
    """The name behind a block of the qube's colour: readable on any background."""
    shade = shades.get(name, UNKNOWN)
    red, green, blue = (int(shade[place:place + 2], 16) for place in (1, 3, 5))
    return f"\x1b[48;2;{red};{green};{blue}m  \x1b[0m {shown(name)}"


def _chosen(question: Question, line: str) -> str | None:
    if line in question.targets:
        return line
    if line.isascii() and line.isdecimal() and 1 <= int(line[:9]) <= len(question.targets):
        return sorted(question.targets, key=order)[int(line[:9]) - 1]
    return None
