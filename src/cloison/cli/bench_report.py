"""What the bench found: figures with their floors and targets, as a table for people and as JSON for programs."""
from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from cloison.cli import tool

HEAD = ("figure", "median", "floor", "ratio", "target", "")


class Target(NamedTuple):
    """Reached if the median is at most `ratio` times the floor's plus `plus`, and at most `limit`; None sets no bound.

    `plus` and `limit` are in the figure's unit.
    """

    ratio: float | None = None
    plus: float = 0.0
    limit: float | None = None


class Figure(NamedTuple):
    """One thing measured. Samples of it and of its floor come from the same run, taken in turns."""

    name: str
    unit: str                       # s, ms, MB, MB/s
    samples: Sequence[float]
    floor: Sequence[float] = ()     # in the same unit; empty if there is none
    target: Target | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def floor_median(self) -> float | None:
        return statistics.median(self.floor) if self.floor else None

    @property
    def ratio(self) -> float | None:
        return self.median / self.floor_median if self.floor_median else None

    @property
    def reached(self) -> bool | None:
        """None if no target is set, or its floor was not measured."""
        if self.target is None or (self.target.ratio is not None and self.floor_median is None):
            return None
        within = self.target.limit is None or self.median <= self.target.limit
        if self.target.ratio is not None and self.floor_median is not None:
            within = within and self.median <= self.target.ratio * self.floor_median + self.target.plus
        return within


def as_json(figures: Sequence[Figure], facts: dict[str, object], notes: Sequence[str]) -> dict[str, Any]:
    """`facts`: about the machine and the qubes. Every sample is there."""
    return {"facts": facts, "notes": list(notes), "figures": [{
        "name": figure.name, "unit": figure.unit, "median": figure.median, "floor": figure.floor_median, "ratio": figure.ratio,
        "target": None if figure.target is None else figure.target._asdict(), "reached": figure.reached,
        "samples": list(figure.samples), "floor_samples": list(figure.floor),
    } for figure in figures]}


def show(figures: Sequence[Figure], facts: dict[str, object], notes: Sequence[str]) -> None:
    """The table on standard output: coloured on a terminal, plain text otherwise."""
    rows = [_row(figure) for figure in figures]
    if tool.is_terminal(sys.stdout):
        _paint(rows)
    else:
        print(tool.table([HEAD, *rows]))
    print()
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items()))
    for note in notes:
        print(f"- {note}")


def _row(figure: Figure) -> tuple[str, ...]:
    word = {None: "", True: "ok", False: "MISSED"}[figure.reached]
    floor, ratio = figure.floor_median, figure.ratio
    return (figure.name, _number(figure.median, figure.unit), "" if floor is None else _number(floor, figure.unit),
            "" if ratio is None else f"{ratio:.2f}", _bound(figure), word)


def _number(value: float, unit: str) -> str:
    return f"{value:.3f} {unit}" if unit == "s" else f"{value:.1f} {unit}"


def _bound(figure: Figure) -> str:
    """The target in words."""
    target = figure.target
    if target is None:
        return ""
    words = []
    if target.ratio is not None:
        words.append(f"{target.ratio:g} x floor" + (f" + {target.plus:g} {figure.unit}" if target.plus else ""))
    if target.limit is not None:
        words.append(f"{target.limit:g} {figure.unit}")
    return ", ".join(words)


def _paint(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for heading in HEAD:
        table.add_column(heading, justify="right" if heading in ("median", "floor", "ratio") else "left")
    for row in rows:
        style = {"ok": "green", "MISSED": "bold red"}.get(row[-1], "")
        table.add_row(*(Text(tool.printable(cell)) for cell in row[:-1]), Text(row[-1], style=style))
    Console().print(table)
