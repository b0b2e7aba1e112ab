"""What the tools decide by themselves: who is meant, what is tried again, given up or ended, and with which status."""
from __future__ import annotations

import argparse
import builtins
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, FakeWarden
from tests.cli.test_tools import changes, run

from cloison.cli import qvm_create, qvm_shutdown, tool
from cloison.client.connection import Connection
from cloison.client.failures import QrexecError
from cloison.errors import CloisonError, QubeNotFound, QubeNotStarted
from cloison.values import InvalidValue
from cloison.wire import admin
from cloison.wire import qrexec as wire

LATE = admin.exception("QubesVMShutdownTimeoutError", "too slow")
DOWN = admin.exception("QubesVMNotStartedError", "it is down")
BROKEN = admin.exception("QubesException", "no")


def refused(kind: str) -> bytes:
    return admin.exception(kind, "no")


# -- every tool's end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raised", "status", "words"), [
    (None, 0, ""), (CloisonError("no"), 1, "x: error: no\n"), (QubeNotFound("a"), 2, "x: error: "),
    (QrexecError("gone"), 125, "x: error: gone\n"),
    (InvalidValue("bad"), 1, "x: error: bad\n"), (EOFError("end"), 1, "x: error: end\n"), (KeyboardInterrupt(), 130, ""),
    (BrokenPipeError(), 141, ""), (OSError(5, "bad disk", "/f"), 1, "x: error: /f: bad disk\n"),
    (OSError(5, "bad disk"), 1, "x: error: bad disk\n"), (SystemExit(7), 7, ""), (SystemExit("words"), 1, ""),
    (SystemExit(None), 0, ""),
    (CloisonError(""), 1, "x: error: CloisonError\n"),
])
def test_each_failure_has_its_status(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], raised: BaseException | None, status: int, words: str,
) -> None:
    def fails(_args: argparse.Namespace, _connection: Connection) -> None:
        if raised is not None:
            raise raised

    assert tool.main(tool.Parser(prog="x"), fails, []) == status
    assert capsys.readouterr().err.startswith(words) if words else True
    assert tool.main(tool.Parser(prog="x"), lambda _args, _connection: 9, []) == 9


@pytest.mark.parametrize(("typed", "answers", "agreed"), [
    ("y", (), True), ("Y ", (), True), ("yes", (), False), ("", (), False), ("n", (), False), ("sure", ("SURE",), True),
    ("y", ("SURE",), False), (EOFError, (), False), (OSError, (), False),
])
def test_only_the_answer_means_yes(
    monkeypatch: pytest.MonkeyPatch, typed: str | type[Exception], answers: tuple[str, ...], agreed: bool,
) -> None:
    def typing(_question: str) -> str:
        if isinstance(typed, str):
            return typed
        raise typed

    monkeypatch.setattr(builtins, "input", typing)
    assert tool.confirm("? ", *answers) is agreed


def test_the_same_call_to_many_tells_each_by_itself(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["admin.vm.Kill"] = lambda _, request: {"work": DOWN, "sys-net": BROKEN}.get(request.dest, admin.ok())
    done: list[str] = []
    failed = tool.each("x", Connection(), ["work", "sys-net", "debian-12"], "admin.vm.Kill", ignore=(QubeNotStarted,),
                       what="killing", done=done.append)
    assert (list(failed), done) == (["sys-net"], ["debian-12"])
    assert capsys.readouterr().err == "x: error: killing: sys-net: no\n"
    failed = tool.each("x", Connection(), ["work"], "admin.vm.Kill")
    assert (list(failed), capsys.readouterr().err) == (["work"], "")


def test_columns_are_two_apart_and_the_last_is_not_filled() -> None:
    assert tool.table([]) == ""
    assert tool.table([("a", "bb", "c"), ("aaa", "b", "cc")]) == "a    bb  c\naaa  b   cc"


# -- who is meant ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "meant"), [
    (("work",), {"work"}), (("*",), {"dom0", "debian-12", "work", "sys-net"}), (("--all",), {"debian-12", "work", "sys-net"}),
    (("--all", "--exclude", "work", "--exclude", "sys-net"), {"debian-12"}), (("[ws]*", "work"), {"work", "sys-net"}),
    (("x*",), set()),
    (("work", "work"), {"work"}),
])
def test_who_is_meant(qubesd: FakeQubesd, words: tuple[str, ...], meant: set[str]) -> None:
    chosen = [qube.name for qube in tool.chosen(tool.Parser(prog="x", qubes="+").parse_args(words), Connection())]
    assert set(chosen) == meant and len(chosen) == len(meant)


def test_dom0_is_among_all_only_where_it_is_wanted(qubesd: FakeQubesd) -> None:
    args = tool.Parser(prog="x", qubes="+").parse_args(["--all"])
    assert "dom0" in [qube.name for qube in tool.chosen(args, Connection(), with_dom0=True)]


# -- shutting down -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "argument"), [
    (("work",), ""), (("--wait", "work"), "wait"), (("--timeout", "9", "work"), "wait"), (("--force", "work"), "force"),
    (("--force", "--wait", "work"), "force+wait"), (("--all",), "force"), (("--all", "--exclude", "debian-12"), ""),
    (("--all", "--exclude", "debian-12", "--force"), "force"),
])
def test_all_are_forced_and_some_only_when_told(qubesd: FakeQubesd, words: tuple[str, ...], argument: str) -> None:
    qubesd.answers["admin.vm.Shutdown"] = lambda *_: admin.ok()
    assert run("qvm-shutdown", *words) == 0
    assert {call[2] for call in changes(qubesd)} == {argument}


def test_a_dry_run_shuts_nothing_down(qubesd: FakeQubesd) -> None:
    assert run("qvm-shutdown", "--dry-run", "--all") == 0
    assert changes(qubesd) == []


@pytest.mark.parametrize(("state", "klass", "preload", "method"), [
    ("Paused", "AppVM", "", "admin.vm.Unpause"), ("Suspended", "AppVM", "", "admin.vm.Resume"), ("Running", "AppVM", "", None),
    ("Halted", "AppVM", "", None), ("Paused", "DispVM", "True", None), ("Paused", "DispVM", "False", "admin.vm.Unpause"),
])
def test_what_stands_still_is_let_go_on_first(
    qubesd: FakeQubesd, state: str, klass: str, preload: str, method: str | None,
) -> None:
    qubesd.qubes["work"] |= {"state": state, "class": klass, "is_preload": preload}
    for name in ("Shutdown", "Unpause", "Resume"):
        qubesd.answers[f"admin.vm.{name}"] = lambda *_: admin.ok()
    assert run("qvm-shutdown", "work") == 0
    assert [call[1] for call in changes(qubesd)] == [*filter(None, [method]), "admin.vm.Shutdown"]


def test_one_that_can_not_go_on_is_told_and_not_asked_to_shut_down(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str],
) -> None:
    qubesd.qubes["work"]["state"] = "Paused"
    qubesd.answers |= {"admin.vm.Unpause": lambda *_: BROKEN, "admin.vm.Shutdown": lambda *_: admin.ok()}
    assert run("qvm-shutdown", "work", "sys-net") == 1
    assert [call[:2] for call in changes(qubesd)] == [("work", "admin.vm.Unpause"), ("sys-net", "admin.vm.Shutdown")]
    assert capsys.readouterr().err == "qvm-shutdown: error: failed to shut down: work: no\n"
    qubesd.calls.clear()
    qubesd.answers["admin.vm.Unpause"] = lambda *_: refused("QubesVMNotPausedError")      # somebody else was quicker
    assert run("qvm-shutdown", "work") == 0
    assert [call[1] for call in changes(qubesd)] == ["admin.vm.Unpause", "admin.vm.Shutdown"]


@pytest.mark.parametrize(("shutdown", "kill", "status", "calls"), [
    (DOWN, None, 0, ["Shutdown"]), (BROKEN, None, 1, ["Shutdown"]), (LATE, admin.ok(), 0, ["Shutdown", "Kill"]),
    (LATE, DOWN, 0, ["Shutdown", "Kill"]), (LATE, BROKEN, 1, ["Shutdown", "Kill"]),
    (refused("QubesVMNotRunningError"), None, 1, ["Shutdown"]), (refused("QubesVMInUseError"), None, 1, ["Shutdown"]),
])
def test_how_a_shutdown_ends(
    qubesd: FakeQubesd, shutdown: bytes, kill: bytes | None, status: int, calls: list[str],
) -> None:
    qubesd.answers["admin.vm.Shutdown"] = lambda *_: shutdown
    qubesd.answers["admin.vm.Kill"] = lambda *_: kill or BROKEN
    assert run("qvm-shutdown", "--wait", "work") == status
    assert [call[1].removeprefix("admin.vm.") for call in changes(qubesd)] == calls


def test_a_late_one_is_killed_only_when_patience_is_over(qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(qvm_shutdown.time, "monotonic", lambda: now[0])
    done: list[str] = []
    late: list[tuple[list[str], float]] = []

    def shutdown(fake: FakeQubesd, request: admin.Request) -> bytes:
        if request.dest == "sys-net":
            return admin.ok()
        now[0] += 10
        return LATE

    qubesd.answers |= {"admin.vm.Shutdown": shutdown, "admin.vm.Kill": lambda *_: admin.ok()}
    assert qvm_shutdown.shut_down(Connection(), ["work", "sys-net"], wait=True, force=True, done=done.append, patience=25,
                                  late=lambda names, seconds: late.append((names, seconds))) == 0
    assert late == [(["work"], 15), (["work"], 5)] and done == ["sys-net"]
    assert [call[1].removeprefix("admin.vm.") for call in changes(qubesd) if call[0] == "work"] == ["Shutdown"] * 3 + ["Kill"]


# -- removing and checking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "typed", "removed"), [
    (("work",), ["y"], True), (("work",), ["n"], False), (("-f", "work"), [], True), (("--all",), ["n"], False),
    (("--all",), ["iknowwhatiamdoing", "y"], True), (("--all",), ["IKNOWWHATIAMDOING", "n"], False), (("--all",), ["y"], False),
    (("--all", "--exclude", "sys-net"), ["y"], True), (("-f", "--all"), [], True),
])
def test_nothing_is_removed_without_the_right_answers(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], typed: list[str], removed: bool,
) -> None:
    monkeypatch.setattr(builtins, "input", lambda _: typed.pop(0))
    assert run("qvm-remove", *words) == (0 if removed else 1)
    assert ("work" not in qubesd.qubes) is removed and typed == []


def test_dom0_is_never_removed(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-remove", "-f", "work", "dom0") == 1
    assert changes(qubesd) == [] and "dom0" in capsys.readouterr().err


def test_who_uses_what_can_not_be_removed_is_named(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {"sys-net": admin.exception("QubesVMInUseError", "in use"), "work": BROKEN}
    qubesd.answers["admin.vm.Remove"] = lambda _, request: answers.get(request.dest, admin.ok())
    qubesd.answers["admin.property.GetAll"] = lambda *_: admin.ok(
        b"default_netvm default=False type=vm sys-net\nclockvm default=False type=vm work\n")
    assert run("qvm-remove", "-f", "sys-net", "work", "debian-12") == 1
    said = capsys.readouterr().err
    users = [line for line in said.splitlines() if line.startswith(" - ")]
    assert users == [" - netvm for work", " - global property default_netvm"]
    assert "sys-net: in use" in said and "work: no" in said
    assert [call[0] for call in changes(qubesd)] == ["sys-net", "work", "debian-12"], "one that fails keeps no other"


@pytest.mark.parametrize(("words", "status"), [
    (("work",), 0), (("work", "sys-net"), 0), (("nobody",), 1), (("work", "nobody"), 1), (("--running", "sys-net"), 0),
    (("--running", "work"), 1), (("--running", "work", "sys-net"), 3), (("--paused", "sys-net"), 1),
    (("--template", "debian-12"), 0),
    (("--template", "work"), 1), (("--networked", "work"), 0), (("--networked", "sys-net"), 0), (("--networked", "debian-12"), 1),
    (("--running", "--networked", "sys-net"), 0), (("--running", "--template", "debian-12"), 1), (("--all", "--running"), 3),
    (("--all", "--running", "--exclude", "work", "--exclude", "debian-12"), 0), (("--all",), 0),
])
@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_what_a_check_says_by_its_status(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int, quiet: tuple[str, ...],
) -> None:
    assert run("qvm-check", *quiet, *words) == status
    captured = capsys.readouterr()
    assert captured.out == "" and bool(captured.err) is not bool(quiet)


@pytest.mark.parametrize(("state", "words", "status", "started"), [
    ("Halted", (), 0, True), ("Running", (), 1, False), ("Running", ("--skip-if-running",), 0, False), ("Paused", (), 1, False),
    ("Transient", (), 0, True), ("Paused", ("--skip-if-running",), 0, False),
])
def test_only_what_does_not_run_is_started(
    qubesd: FakeQubesd, state: str, words: tuple[str, ...], status: int, started: bool,
) -> None:
    qubesd.qubes["work"]["state"] = state
    assert run("qvm-start", *words, "work") == status
    assert [call[:2] for call in changes(qubesd)] == ([("work", "admin.vm.Start")] if started else [])


def test_one_start_that_fails_keeps_no_other_and_is_the_status(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["admin.vm.Start"] = lambda _, request: BROKEN if request.dest == "work" else admin.ok()
    assert run("qvm-start", "work", "debian-12") == 1
    assert sorted(call[0] for call in changes(qubesd)) == ["debian-12", "work"]
    assert "starting qube failed: work: no" in capsys.readouterr().err


@pytest.mark.parametrize(("ends", "local", "status"), [
    ([5, 3], (), 5), ([3, 5], (), 5), ([0, 0], (), 0), ([0, 0], ("-p", "--localcmd", "exit 4"), 4),
    ([7, 0], ("-p", "--localcmd", "exit 4"), 7),
])
def test_of_many_qubes_the_greatest_status_counts(
    qubesd: FakeQubesd, warden: FakeWarden, ends: list[int], local: tuple[str, ...], status: int,
) -> None:
    for name in ("work", "disp1"):
        qubesd.qubes[name] = {"class": "AppVM", "state": "Running", "label": "red"}
        qubesd.features[name] = {}
    left = list(ends)
    warden.script = lambda channel: channel.sendall(wire.hello(wire.VERSION) + wire.exit_code(left.pop()))
    assert run("qvm-run", "-q", *local, "--all", "--exclude", "sys-net", "x") == status
    assert left == []


@pytest.mark.parametrize(("option", "fails", "stays"), [
    ("--root-copy-from", False, True), ("--root-move-from", False, False), ("--root-copy-from", True, True),
    ("--root-move-from", True, True),
])
def test_only_an_image_that_was_to_be_moved_and_has_arrived_is_deleted(
    qubesd: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, fails: bool, stays: bool,
) -> None:
    def make(*_: object) -> None:
        if fails:
            raise CloisonError("no")

    monkeypatch.setattr(qvm_create, "_make", make)
    (tmp_path / "image").write_text("mine")
    assert run("qvm-create", "-C", "StandaloneVM", "-l", "red", option, str(tmp_path / "image"), "new") == int(fails)
    assert (tmp_path / "image").exists() is stays
