"""What qubesd knows of a qube's processes: the table in the module's docstring, cell by cell."""
from __future__ import annotations

import pytest

from cloison.plan import processes
from cloison.plan.processes import Known, Seen, power, problem, step
from cloison.values import PowerState

COLUMNS = [Seen.BEGUN, Seen.ANSWER, Seen.QUIET, Seen.HUNG_UP, Seen.HELD, Seen.GONE]


def table() -> list[tuple[Known, Seen, Known]]:
    lines = [line.split("|") for line in (processes.__doc__ or "").splitlines() if line.count("|") == 6]
    found = []
    for cells in lines[2:]:
        state, *after = (cell.strip() for cell in cells)
        found += [(Known(state), seen, Known(state if word == "-" else word)) for seen, word in zip(COLUMNS, after, strict=True)]
    return found


def test_the_table_is_whole() -> None:
    assert {(known, seen) for known, seen, _ in table()} == {(known, seen) for known in Known for seen in Seen}


@pytest.mark.parametrize(("known", "seen", "after"), table())
def test_each_cell(known: Known, seen: Seen, after: Known) -> None:
    assert step(known, seen) is after


def test_only_what_is_gone_is_halted() -> None:
    assert [known for known in Known if power(known, PowerState.RUNNING) is PowerState.HALTED] == [Known.NONE]
    assert {known.name: power(known, PowerState.PAUSED).value for known in Known} == {
        "NONE": "Halted", "STARTING": "Transient", "ANSWERS": "Paused", "SILENT": "Transient", "ENDING": "Dying"}


def test_what_is_not_known_is_said_with_what_helps() -> None:
    silent, held = problem(Known.SILENT, "work"), problem(Known.SILENT, "work", held=True)
    assert "warden" in silent and "disks of work open" in held and all("qvm-kill work ends it" in each for each in (silent, held))
    assert problem(Known.ENDING, "work")
    assert not any(problem(known, "work") for known in (Known.NONE, Known.STARTING, Known.ANSWERS))
