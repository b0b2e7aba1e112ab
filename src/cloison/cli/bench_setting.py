"""What every measure of the bench is given, and what several of them do."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cloison.cli.bench_bare import Bare
from cloison.cli.bench_qubes import Qubes
from cloison.cli.bench_report import Figure
from cloison.client.connection import Connection

MS, MB = 1e3, 1e-6


class Bench(NamedTuple):
    """What every measure is given.

    `runs`: samples of each figure; `many`: qubes for the memory figures; `size`: bytes of a stream.
    """

    connection: Connection
    qubes: Qubes
    bare: Bare
    runs: int
    many: int
    size: int


Measure = Callable[[Bench], list[Figure]]


def forget(*samples: list[Any]) -> None:
    """The round that is not counted."""
    for each in samples:
        each.clear()


def running(bench: Bench, name: str) -> str:
    """An AppVM of the bench's, running; its name begins with `name`."""
    name = bench.qubes.app(name)
    bench.connection.call(name, "admin.vm.Start")
    return name
