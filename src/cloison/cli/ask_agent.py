"""cloison ask-agent: asks the person where a rule of the policy says so; in windows, or on a terminal."""
from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
from typing import Any

from cloison.client.connection import Connection
from cloison.errors import HostError
from cloison.runtime.daemon import told_to_end
from cloison.runtime.logs import log_to_own_file
from cloison.runtime.paths import Paths
from cloison.ui.agent import Agent, Asker, take_lock


class NowhereToAsk(HostError):
    """Neither a display with the toolkit for it, nor a terminal."""

    hint = "Start it in the desktop session with PySide6-Essentials installed, or in a terminal with --terminal."


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "ask-agent", help="ask the person where a rule of the policy says so",
        description="Ask the person where a rule of the policy says so, until interrupted. Without it such calls are refused.")
    parser.add_argument("--terminal", action="store_true", help="ask on this terminal, not in windows")


def run(args: argparse.Namespace) -> int:
    log_to_own_file()
    paths = Paths.from_environment()
    paths.ensure()
    asker = _asker(Connection(paths), terminal=args.terminal)
    lock = take_lock(paths)
    try:
        asyncio.run(_serve(paths, asker))
    finally:
        os.close(lock)
    return 0


def has_windows() -> bool:
    """Whether questions can be asked in windows here."""
    display = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
    return bool(display) and importlib.util.find_spec("PySide6") is not None


def _asker(connection: Connection, *, terminal: bool) -> Asker:
    """Raises NowhereToAsk."""
    if not terminal and has_windows():
        from cloison.ui.windows import Windows

        return Windows(connection)
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NowhereToAsk("there is neither a display nor a terminal to ask on") from error
    from cloison.ui.terminal import Terminal

    return Terminal(fd, connection)


async def _serve(paths: Paths, asker: Asker) -> None:
    end = told_to_end()
    agent = Agent(paths, asker)
    agent.listen()
    try:
        await end.wait()
    finally:
        await agent.close()
