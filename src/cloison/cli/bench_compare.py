"""Two runs of the bench compared, each figure by what it costs over its floor: the machine's speed of the day cancels out.

A run is what `cloison bench --json` printed. Shown as times of before: 1.20 is a fifth worse, 0.80 a fifth less.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cloison.cli import tool
from cloison.cli.bench_report import Figure
from cloison.errors import CloisonError

HEAD = ("figure", "before", "now", "times before", "")
FACTS = ("template", "accelerator", "memory_MiB", "vcpus", "qemu", "host_cpus")     # runs that differ in one are not alike
MORE_IS_BETTER = "MB/s"
MAX_FILE = 64 << 20             # bytes of a former run


class NoFormerRun(CloisonError):
    """What was given is no former run."""

    hint = "Make one by: cloison bench --json > FILE"


class Run(NamedTuple):
    """A former run. `figures`: name -> median and its floor's (None: it has none), in the figure's unit."""

    facts: Mapping[str, object]
    figures: Mapping[str, tuple[float, float | None]]


class Change(NamedTuple):
    """Of one figure. `before` and `now` are over their floors, or as measured where a run has none; `times`: above 1 is worse."""

    name: str
    unit: str                   # "x floor", or the figure's
    before: float
    now: float
    times: float


def read(path: str) -> Run:
    """Raises NoFormerRun."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(MAX_FILE))
        figures = {str(each["name"]): (_positive(each["median"]), None if each["floor"] is None else _positive(each["floor"]))
                   for each in found["figures"]}
        return Run(dict(found["facts"]), figures)
    except OSError as error:
        raise NoFormerRun(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NoFormerRun(f"{path} does not hold what the bench prints with --json") from error


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError("no measurement")
    return float(value)


def changes(former: Run, figures: Sequence[Figure]) -> list[Change]:
    """Of all figures that both runs have."""
    return [_change(figure, *former.figures[figure.name]) for figure in figures if figure.name in former.figures]


def _change(figure: Figure, median: float, floor: float | None) -> Change:
    unit, before, now = figure.unit, median, figure.median
    if floor is not None and figure.ratio is not None:
        unit, before, now = "x floor", median / floor, figure.ratio
    return Change(figure.name, unit, before, now, before / now if figure.unit == MORE_IS_BETTER else now / before)


def worse(found: Sequence[Change], limit: float) -> list[str]:
    """Names of the figures that got worse by more than `limit`, a share of what they were."""
    return [change.name for change in found if change.times > 1 + limit]


def differences(former: Run, facts: Mapping[str, object]) -> list[str]:
    """What the two runs don't have in common."""
    return [f"{key.replace('_', ' ')} was {tool.printable(str(former.facts.get(key, 'unknown')))} and is {facts.get(key)}"
            for key in FACTS if former.facts.get(key) != facts.get(key)]


def show(found: Sequence[Change], former: Run, facts: Mapping[str, object], limit: float) -> None:
    """On standard output."""
    slower = worse(found, limit)
    rows = [(change.name, _number(change.before, change.unit), _number(change.now, change.unit), f"{change.times:.2f}",
             "WORSE" if change.name in slower else "") for change in found]
    print(tool.table([HEAD, *rows]))
    for difference in differences(former, facts):
        print(f"- not alike: {difference}")


def as_json(found: Sequence[Change], limit: float) -> list[dict[str, Any]]:
    slower = worse(found, limit)
    return [{**change._asdict(), "worse": change.name in slower} for change in found]


def _number(value: float, unit: str) -> str:
    return f"{value:.3f} s" if unit == "s" else f"{value:.2f} {unit}"
