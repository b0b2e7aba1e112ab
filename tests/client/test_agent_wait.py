"""A qube that runs, and whose agent is being replaced, is waited for; any other one is not."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.client import agent_wait
from cloison.client.agent_wait import AgentSilent, NotInAQube, when_there
from cloison.errors import QubeNotRunning
from cloison.runtime.paths import Paths


def attempts(fail: int) -> tuple[list[int], Callable[[], str]]:
    made: list[int] = []

    def attempt() -> str:
        made.append(1)
        if len(made) <= fail:
            raise QubeNotRunning("nobody listens")
        return "made"

    return made, attempt


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setattr(agent_wait, "RETRY", 0.0)
    return Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})


def state(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(agent_wait, "state", lambda _paths, _qube: said)


def test_a_qube_that_runs_is_waited_for(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    state(monkeypatch, "Running")
    made, attempt = attempts(3)
    assert when_there(paths, "work", attempt) == "made" and len(made) == 4


def test_not_for_ever(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    state(monkeypatch, "Running")
    monkeypatch.setattr(agent_wait, "AGENT_TIME", 0.0)
    with pytest.raises(AgentSilent, match="work runs, but its agent"):
        when_there(paths, "work", attempts(10**9)[1])


def test_dom0_is_no_qube(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it is said to run, no agent is waited for, and nobody is told to restart it."""
    state(monkeypatch, "Running")
    made, attempt = attempts(10**9)
    with pytest.raises(NotInAQube, match="dom0 is this machine, not a qube"):
        when_there(paths, "dom0", attempt)
    assert len(made) == 1


@pytest.mark.parametrize(("said", "text"), [
    ("", "work does not run$"), ("Halted", "work does not run$"), ("Paused", "work does not run: it is paused$"),
    ("Transient", "work does not run: it is transient$"),
])
def test_any_other_is_told_of_at_once(paths: Paths, monkeypatch: pytest.MonkeyPatch, said: str, text: str) -> None:
    state(monkeypatch, said)
    made, attempt = attempts(10**9)
    with pytest.raises(QubeNotRunning, match=text):
        when_there(paths, "work", attempt)
    assert len(made) == 1


def test_where_no_qubesd_answers_nothing_is_known(paths: Paths) -> None:
    with pytest.raises(QubeNotRunning):
        when_there(paths, "work", attempts(10**9)[1])
