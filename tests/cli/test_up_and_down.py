"""`cloison up`, `down` and `status` decide who is started and ended, and in which order; nothing is, here."""
from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from fake_qubesd import FakeQubesd
from tests.cli.test_tools import run

from cloison.cli import ask_agent, daemons
from cloison.cli import main as cloison
from cloison.client.connection import Connection
from cloison.wire import admin


class Daemons:
    """Who was started or ended. `running`: qubesd runs already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[object] = []
        self.running = False
        self.status = 0
        self.windows = False
        monkeypatch.setattr(daemons, "ensure", self._ensure)
        monkeypatch.setattr(daemons, "end", lambda _paths, at: self.done.append(f"end {at}"))
        monkeypatch.setattr(daemons, "answers", lambda _paths, at: at == "policy.sock")
        monkeypatch.setattr(ask_agent, "has_windows", lambda: self.windows)
        monkeypatch.setattr(cloison, "shut_down", self._shut_down)
        monkeypatch.setattr(cloison.os, "execv", lambda _path, argv: self.done.append(" ".join(argv[1:])))

    def _ensure(self, _paths: object, name: str, at: str, command: list[str]) -> bool:
        self.done.append((name, at, " ".join(command[1:])))
        return not self.running

    def _shut_down(self, _: Connection, names: Iterable[str], **how: object) -> int:
        self.done.append((sorted(names), how["wait"], how["force"], how["patience"]))
        return self.status


@pytest.fixture
def world(qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch) -> Daemons:
    return Daemons(monkeypatch)


POLICYD = ("policyd", "policy.sock", "-P -m cloison.qrexec.policyd.server")
QUBESD = ("qubesd", "qubesd.sock", "-P -m cloison.daemon")
AGENT = ("ask-agent", "policy-agent.sock", "-P -m cloison.cli.main ask-agent")


@pytest.mark.parametrize(("words", "started", "windows", "said"), [
    ((), [POLICYD, QUBESD], False, "qubesd runs\n"), ((), [POLICYD, AGENT, QUBESD], True, "qubesd runs\n"),
    (("--bare",), [POLICYD, (*QUBESD[:2], f"{QUBESD[2]} --bare")], False, "qubesd runs\n"), (("-q",), [POLICYD, QUBESD], False, ""),
    (("--foreground",), [POLICYD, QUBESD[2]], False, ""), (("--foreground", "--bare"), [POLICYD, f"{QUBESD[2]} --bare"], False, ""),
])
def test_who_decides_on_calls_is_there_before_qubesd(
    world: Daemons, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], started: list[object], windows: bool, said: str,
) -> None:
    world.windows = windows
    cloison.main(["up", *words])
    if "--foreground" in words:
        assert world.done[:2] == started     # a real execv does not come back
        return
    assert world.done == started and capsys.readouterr().out == said


def test_up_says_what_runs_already_and_what_comes_next(
    world: Daemons, qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str],
) -> None:
    del qubesd.qubes["debian-12"]
    assert cloison.main(["up"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "qubesd runs\n" and "cloison template build" in captured.err
    for words in (["up", "--bare"], ["up", "-q"]):
        assert cloison.main(words) == 0
        assert capsys.readouterr().err == ""
    world.running = True
    assert cloison.main(["up"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("qubesd runs already\n", "")


ENDS = ["end qubesd.sock", "end policy.sock", "end policy-agent.sock"]


@pytest.mark.parametrize(("words", "failed", "status", "asked"), [
    ((), 0, 0, True), ((), 2, 1, True), (("--keep",), 0, 0, False), (("--all",), 0, 0, True), (("-q",), 1, 1, True),
])
def test_down_ends_qubes_then_qubesd_then_its_helpers(
    world: Daemons, qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], failed: int, status: int,
    asked: bool,
) -> None:
    qubesd.qubes |= {"box": {"class": "AppVM", "state": "Paused"}, "far": {"class": "RemoteVM", "state": "Running"}}
    world.status = failed
    assert cloison.main(["down", *words]) == status
    shut = [(["box", "sys-net"], True, True, cloison.DOWN_TIME)] if asked else []
    assert world.done == [*shut, *ENDS]
    said = capsys.readouterr().err
    assert said == ("" if not asked or "-q" in words else "cloison: shutting down sys-net, box\n")


def test_down_without_qubes_ends_the_rest(world: Daemons, qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.qubes["sys-net"]["state"] = "Halted"
    assert cloison.main(["down"]) == 0
    assert world.done == [([], True, True, cloison.DOWN_TIME), *ENDS] and capsys.readouterr().err == ""


FACTS = {"accelerator": "kvm", "problems": {"sys-net": "it hangs"}, "space": ["the disk is full"], "qubes": 9,
         "host": {"memory": 7}, "empty": {}, "none": [], "two": [1, 2], "old_agents": {"a": "t is old", "b": "t is old"}}


def test_the_status_for_programs_and_for_people(world: Daemons, qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["internal.cloison.Status"] = lambda *_: admin.ok(json.dumps(FACTS).encode())
    assert run("main", "status", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["running"] is True and said["problems"] == {"sys-net": "it hangs"}
    assert (said["policy"], said["questions"]) == (True, False)
    assert said["qubes"] == {"debian-12": "Halted", "work": "Halted", "sys-net": "Running"}
    assert run("main", "status") == 0
    rows = [[cell.strip() for cell in line.split("  ", 1)] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["qubesd", "runs"] and ["disk space", "the disk is full"] in rows
    assert rows.count(["template", "t is old"]) == 1
    assert ["policy", "served"] in rows and ["questions", "not served: such calls are denied"] in rows
    assert ["host", "memory 7"] in rows and ["empty", "-"] in rows and ["none", "-"] in rows and ["two", "1, 2"] in rows
    assert ["qubes", "1 of 3 running"] in rows and rows[-1] == ["", "sys-net (Running): it hangs"]


def test_a_status_that_can_not_be_read_is_a_failure(
    world: Daemons, qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str],
) -> None:
    qubesd.answers["internal.cloison.Status"] = lambda *_: admin.ok(b"no json")
    assert run("main", "status") == 1
    assert "could not be read" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "out", "err"), [
    (("--json",), '{"running": false}\n', ""), ((), "qubesd does not run\n", "cloison: hint: Start it with: cloison up\n"),
    (("-q",), "qubesd does not run\n", ""),
])
def test_without_qubesd_the_status_is_three(
    root: object, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], out: str, err: str,
) -> None:
    assert run("main", "status", *words) == 3
    assert capsys.readouterr() == (out, err)
