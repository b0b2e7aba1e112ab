"""cloison log: a qube's log from the file, the one before it first, and on as lines come; which logs there are."""
from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from cloison.cli import log
from cloison.cli.main import main, parser
from cloison.cli.main import run as run_verb
from cloison.client.connection import Connection
from cloison.runtime.log_file import LogFile
from cloison.runtime.paths import Paths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    paths = Paths.from_environment()
    paths.ensure()
    return paths


def run(*words: str) -> int:
    args: argparse.Namespace = parser("log").parse_args(["log", *words])
    return run_verb(args, Connection(Paths.from_environment()))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_last_lines_across_a_rotation(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    file = LogFile(paths.qube_log("work"), max_size=30)
    for number in range(5):
        file.write(b"0123456789 %d\n" % number)
    file.close()
    assert run("work") == 0
    assert lines(capsys) == [f"0123456789 {number}" for number in range(5)]
    assert run("work", "-n", "3") == 0
    assert lines(capsys) == ["0123456789 2", "0123456789 3", "0123456789 4"]
    assert run("work", "-n", "0") == 0 and lines(capsys) == []


def test_what_could_drive_a_terminal_is_replaced(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    Path(paths.qube_log("work")).write_bytes(b"raw \x1b[2J\xff\n")
    run("work")
    assert lines(capsys) == ["raw _[2J_"]


def test_daemons_have_logs_too_and_a_qube_of_that_name_goes_first(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    Path(paths.log, "qubesd.log").write_text("the daemon's\n")
    run("qubesd")
    assert lines(capsys) == ["the daemon's"]
    Path(paths.qube_log("qubesd")).write_text("the qube's\n")
    run("qubesd")
    assert lines(capsys) == ["the qube's"]


@pytest.mark.parametrize("name", ["missing", "../qubesd", "", "."])
def test_no_such_log_is_a_sentence_with_a_hint(paths: Paths, name: str) -> None:
    Path(paths.log, "qubesd.log").write_text("x\n")
    with pytest.raises(log.NoLog) as raised:
        log.found(paths, name)
    assert "cloison log" in str(raised.value.hint)


def test_which_logs_there_are(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0 and lines(capsys) == []
    Path(paths.log, "qubesd.log").write_text("x\n")
    Path(paths.log, "qubesd.log.1").write_text("x\n")
    Path(paths.qube_log("work")).write_text("12345\n")
    run()
    assert [(line.split()[0], line.split()[3], line.split()[4]) for line in lines(capsys)] == [
        ("qubesd", "2", os.path.join(paths.log, "qubesd.log")), ("work", "6", paths.qube_log("work"))]


def test_no_name_and_follow_is_wrong_usage(paths: Paths) -> None:
    with pytest.raises(SystemExit):
        run("--follow")


def test_followed_through_a_rotation_until_it_is_removed(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    path = paths.qube_log("work")
    file = LogFile(path, max_size=20)
    file.write(b"first, shown\n")
    state = log.show(path, 10)
    assert lines(capsys) == ["first, shown"]
    assert log.news(path, *state) == state and lines(capsys) == []
    file.write(b"second line of it\n")
    file.write(b"third, in another file\n")
    state = log.news(path, *state)
    assert lines(capsys) == ["second line of it", "third, in another file"]
    file.write(b"fourth\n")
    state = log.news(path, *state)
    assert lines(capsys) == ["fourth"]
    file.close()
    os.unlink(path)
    os.unlink(f"{path}.1")
    assert log.news(path, *state)[1] < 0
    log.follow(path, state)              # ends


def test_before_the_first_start_there_is_no_log_and_that_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log"]) == 0
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"cloison: there is no log yet in {root}/data/log: ") and "cloison up" in told.err
