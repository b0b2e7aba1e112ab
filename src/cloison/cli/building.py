"""What the verbs share that build something for minutes: a bar, a log, and an end by a signal that undoes it all."""
from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from cloison.cli import tool
from cloison.runtime.paths import Paths
from cloison.templates.build import Report

MIRROR_VARIABLE = "CLOISON_MIRROR"


def add_mirror(parser: argparse.ArgumentParser, also: str = "") -> None:
    parser.add_argument("--mirror", metavar="URL", default=os.environ.get(MIRROR_VARIABLE) or None, help=(
        f"Debian archive to use{also} (default: ${MIRROR_VARIABLE}, else the host's own or Debian's)"))


def fresh_log(paths: Paths, name: str) -> str:
    """Path of an empty log; the one of the last time goes."""
    path = os.path.join(paths.log, f"{name}.log")
    with open(path, "wb"):
        return path


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP undo the work as Ctrl-C does, instead of leaving it to the next run."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress(name: str) -> Iterator[Report]:
    """A bar on a terminal; elsewhere a line for each step."""
    if not tool.is_terminal(sys.stderr):
        yield lambda percent, words: print(f"{name}: {percent:3} % {words}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    columns = (
        TextColumn("{task.fields[title]}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=100, title=name)
        yield lambda percent, words: bar.update(task, completed=percent, description=words)
