"""cloison log: what the host has to tell of a qube, from the file that its warden writes; and which logs there are.

Files are read as they are: qubesd need not run. A log has a bounded size, and the one before it, `.1`, is shown first. To follow
one is to look at it a few times a second: the file is renamed now and then, and may not be there yet.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from cloison.cli import tool
from cloison.errors import CloisonError
from cloison.qrexec.caller import TERMINAL_TABLE
from cloison.runtime.paths import Paths

LOOK_EVERY = 0.3          # s between two looks at a log that is followed
LINES = 200


class NoLog(CloisonError):
    """There is no such log."""

    hint = "cloison log, without a name, lists the logs that there are. A qube has one from its first start to its removal."


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "log", help="what happened to a qube, and which logs there are",
        description="Show what the host has to tell of a qube: its starts and ends, refused calls, broken protocols. "
                    "Without a name: list the logs.",
        examples=[("cloison log work", "the last lines of work's log"),
                  ("cloison log work -f", "go on as lines come, until Ctrl-C"),
                  ("cloison log qubesd", "that of a daemon"),
                  ("cloison log", "which logs there are, and where")])
    parser.add_argument("log", metavar="VMNAME", nargs="?", help="a qube, or the name of a daemon's log")
    parser.add_argument("--follow", "-f", action="store_true", help="show new lines as they come")
    parser.add_argument("--lines", "-n", metavar="N", type=int, default=LINES, help="so many of the last (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    paths = Paths.from_environment()
    if args.log is None:
        if args.follow:
            tool.quit_usage("cloison log", "--follow needs the name of a log")
        lines = listed(paths)
        for line in lines:
            tool.say(line)
        if not lines:
            print(f"cloison: there is no log yet in {paths.log}: the first `cloison up` begins them", file=sys.stderr)
        return 0
    path = found(paths, args.log)
    follow(path, show(path, max(args.lines, 0))) if args.follow else show(path, max(args.lines, 0))
    return 0


def listed(paths: Paths) -> list[str]:
    """A line a log: its name, when it was written last, its size, where it is."""
    lines = []
    for folder in (paths.log, paths.qube_logs):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            if name.endswith(".log") and os.path.isfile(path):
                status = os.stat(path)
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
                lines.append(f"{name.removesuffix('.log'):20}  {when}  {status.st_size:9}  {path}")
    return lines


def found(paths: Paths, name: str) -> str:
    """The path of a qube's log, or else of a daemon's. Raises NoLog."""
    for path in (paths.qube_log(name), os.path.join(paths.log, f"{name}.log")):
        if "/" not in name and (os.path.isfile(path) or os.path.isfile(f"{path}.1")):
            return path
    raise NoLog(f"there is no log of {name!r}")


def show(path: str, count: int) -> tuple[int, int]:
    """The last lines, those of the log before it first; where the file was read up to, and which one that was."""
    text, inode = b"", 0
    for name in (f"{path}.1", path):
        try:
            with open(name, "rb") as file:
                part, inode = file.read(), os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            part, inode = b"", 0
        text += part
    _put(b"".join(text.splitlines(keepends=True)[-count:]) if count else b"")
    return len(part), inode


def follow(path: str, state: tuple[int, int]) -> None:
    """New lines as they come, through renames, until interrupted; ends when the log is removed."""
    read, inode = state
    while True:
        read, inode = news(path, read, inode)
        if inode < 0:
            return
        time.sleep(LOOK_EVERY)


def news(path: str, read: int, inode: int) -> tuple[int, int]:
    """Show what has come since; where that ends. An inode below zero: the log is gone, and its qube."""
    for name in (f"{path}.1", path):
        try:
            with open(name, "rb") as file:
                this = os.fstat(file.fileno()).st_ino
                if this == inode:
                    file.seek(read)
                elif name != path:
                    continue                 # a log before the one that was read
                data = file.read()
                _put(data)
                read, inode = file.tell(), this
        except FileNotFoundError:
            if name == path and not os.path.exists(os.path.dirname(path)):
                return 0, -1
            if name == path and not os.path.exists(f"{path}.1") and inode:
                return 0, -1
    return read, inode


def _put(data: bytes) -> None:
    """What stands in a log is printable, but for what a program has written by itself."""
    for line in data.translate(TERMINAL_TABLE).decode("ascii").splitlines():
        tool.say(line)
    sys.stdout.flush()
