"""What qubesd knows of a qube's processes: a small machine of states, and what each means for the qube.

    state     | a start | it answers | it is quiet | it hung up | its disks  | nothing of
              | begins  |            |             |            | are held   | it is left
    ----------+---------+------------+-------------+------------+------------+-----------
    none      | starting| answers    | silent      | ending     | silent     | none
    starting  | -       | answers    | starting    | ending     | -          | none
    answers   | -       | answers    | silent      | ending     | -          | none
    silent    | -       | answers    | silent      | ending     | silent     | none
    ending    | -       | ending     | ending      | ending     | ending     | none

Unknown is not halted: only `none`, which means that no process holds the qube's life lock and none has its images open, lets
anybody start, remove, clone or mend it. A silent one (its warden is stopped, or has not answered a question in time; or its disks
are held by a process that no warden is known for) is Transient, with a sentence that says so; it is killed from outside, by what
holds its lock and its disks. One that answers again goes on as if nothing had been. What hung up ends: a warden that is gone takes
its machine along, and what is left of it is killed and waited for.
"""
from __future__ import annotations

import enum

from cloison.values import PowerState


class Known(enum.Enum):
    """The states."""

    NONE = "none"
    STARTING = "starting"
    ANSWERS = "answers"
    SILENT = "silent"
    ENDING = "ending"


class Seen(enum.Enum):
    """What moves a qube from one to another."""

    BEGUN = "a start begins"
    ANSWER = "it answers"
    QUIET = "it is quiet"
    HUNG_UP = "it hung up"
    HELD = "its disks are held"
    GONE = "nothing of it is left"


_NEXT = {
    (Known.NONE, Seen.BEGUN): Known.STARTING,
    (Known.NONE, Seen.ANSWER): Known.ANSWERS,
    (Known.NONE, Seen.QUIET): Known.SILENT,
    (Known.NONE, Seen.HELD): Known.SILENT,
    (Known.STARTING, Seen.ANSWER): Known.ANSWERS,
    (Known.ANSWERS, Seen.QUIET): Known.SILENT,
    (Known.SILENT, Seen.ANSWER): Known.ANSWERS,
}
_POWER = {
    Known.NONE: PowerState.HALTED, Known.STARTING: PowerState.TRANSIENT, Known.ANSWERS: None, Known.SILENT: PowerState.TRANSIENT,
    Known.ENDING: PowerState.DYING,
}


def step(known: Known, seen: Seen) -> Known:
    """The next state; what has no place in the table above changes nothing."""
    if seen is Seen.GONE:
        return Known.NONE
    if seen is Seen.HUNG_UP:
        return Known.ENDING
    return _NEXT.get((known, seen), known)


def power(known: Known, told: PowerState) -> PowerState:
    """As clients are told. `told`: what its warden said last, which counts while it answers."""
    return _POWER[known] or told


def problem(known: Known, name: str, *, held: bool = False) -> str:
    """What a person is to know of a qube in that state; empty when all is well."""
    if known is Known.SILENT and held:
        return f"a process still has disks of {name} open; qvm-kill {name} ends it"
    if known is Known.SILENT:
        return f"the warden of {name} does not answer; qvm-kill {name} ends it, and it goes on by itself if its warden does"
    if known is Known.ENDING:
        return f"what is left of {name} has not ended yet"
    return ""
