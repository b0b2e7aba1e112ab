"""Who is the agent, and who takes over: real processes and a real lock; and the programs that are executed anew after a start."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.guest import refresh, standby
from cloison.guest.refresh import COMMANDS, PAUSE, SPREAD, WAIT, Refresh

PROGRAM = """
import os, sys
from cloison.guest import standby
standby.IN_TURN = 5                      # only root may be less nice than it was
standby.begin(sys.argv[1])
print("loaded", os.getpriority(os.PRIO_PROCESS, 0), flush=True)
standby.take_turn()
print("agent", os.getpriority(os.PRIO_PROCESS, 0), "NOTIFY_SOCKET" in os.environ, flush=True)
sys.stdin.read()
"""


def candidate(lock: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env={**os.environ, **environment})


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate(timeout=PATIENCE)


def test_one_is_the_agent_and_the_other_takes_over_when_it_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    first = candidate(lock)
    assert [says(first), says(first)] == [f"loaded {nice}", f"agent {nice} False"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(PATIENCE)
        systemd.bind(str(tmp_path / "notify"))
        second = candidate(lock, NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert says(second) == "loaded 19"               # it is in nobody's way
        assert systemd.recv(100) == b"READY=1"
    end(first)
    taken_over = says(second)
    if os.geteuid() == 0:
        assert taken_over == "agent 5 False"
        third = candidate(lock)
        assert says(third) == "loaded 19"
        end(third)
    end(second)


def test_of_two_that_load_at_the_same_time_one_stands_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before either is the agent: who came second loads in nobody's way."""
    nice: list[int] = []
    monkeypatch.setattr(standby, "_lock", [])
    monkeypatch.setattr(standby.os, "setpriority", lambda _which, _who, value: nice.append(value))
    held = []
    for expected in ([], [standby.STANDING_BY], [standby.STANDING_BY] * 2):
        standby.begin(str(tmp_path / "lock"))
        held += standby._lock
        assert nice == expected and not os.get_inheritable(standby._lock[0])
    for fd in held:
        os.close(fd)


@pytest.mark.parametrize(("nice", "becomes"), [(19, [-10]), (0, []), (-10, [])])
@pytest.mark.parametrize("address", ["", "notify", "@cloison-test-notify"])
def test_who_stood_by_is_as_quick_as_the_agent_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nice: int, becomes: list[int], address: str,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(standby, "_lock", [])
    monkeypatch.setattr(standby.os, "setpriority", lambda _which, _who, value: asked.append(value))
    monkeypatch.setattr(standby.os, "getpriority", lambda *_: nice)
    standby.begin(str(tmp_path / "lock"))
    if not address:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        standby.take_turn()
    else:
        place = f"{address}-{os.getpid()}" if address.startswith("@") else str(tmp_path / address)
        monkeypatch.setenv("NOTIFY_SOCKET", place)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.settimeout(PATIENCE)
            systemd.bind("\0" + place[1:] if place.startswith("@") else place)
            standby.take_turn()
            assert systemd.recv(100) == b"READY=1" and "NOTIFY_SOCKET" not in os.environ
    assert asked == becomes
    os.close(standby._lock[0])


def test_programs_are_executed_anew_one_by_one_well_after_the_start() -> None:
    waits: list[float] = []
    waiting: list[Callable[[], None]] = []
    ran: list[Sequence[str]] = []

    def later(seconds: float, then: Callable[[], None]) -> None:
        waits.append(seconds)
        waiting.append(then)

    def run(argv: Sequence[str], then: Callable[[], None]) -> None:
        ran.append(argv)
        waiting.append(then)

    Refresh(later, run).begin()
    while waiting:
        assert len(waiting) == 1
        waiting.pop()()
    assert ran == list(COMMANDS)
    assert WAIT <= waits[0] < WAIT + SPREAD and waits[1:] == [PAUSE] * len(COMMANDS)


def test_qubes_that_start_in_a_crowd_do_not_all_do_it_at_once() -> None:
    assert len({refresh.delay() for _ in range(100)}) > 10
