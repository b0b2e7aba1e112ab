"""The tools as a person uses them: words in, text and status out, calls to qubesd as expected."""
from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, FakeWarden
from tests.patience import PATIENCE

from cloison.cli import completion, tool
from cloison.client import agent_wait
from cloison.client.connection import Connection
from cloison.wire import admin

Tool = Callable[..., int]


def run(command: str, *words: str) -> int:
    main: Tool = importlib.import_module("cloison.cli." + command.replace("-", "_")).main
    return main(words)


def changes(qubesd: FakeQubesd) -> list[tuple[str, str, str, bytes]]:
    """Calls that are no mere reads."""
    reads = ("List", "Get", "GetAll", "Status", "CheckWithTemplate", "CurrentState", "Info")
    return [call for call in qubesd.calls if call[1].rpartition(".")[2] not in reads]


# -- hostile names --------------------------------------------------------------------------------------------------------

HOSTILE = ["a,b", "a=b", 'a"b', "a\nb", "../etc", "a\x1b[31m", "a b", "x" * 32, "none", "-dm-dm", "é", "a\0b", "uuid:x"]
MAKERS = ("qvm-create",)                 # a name that is to be: its refusal is a failure, not wrong usage
NAMED = [
    ("qvm-start",), ("qvm-shutdown",), ("qvm-kill",), ("qvm-pause",), ("qvm-unpause",), ("qvm-remove", "-f"), ("qvm-prefs",),
    ("qvm-features",), ("qvm-create", "-l", "red"), ("qvm-run",), ("qvm-tags",), ("qvm-service",),
    ("qvm-notes", "-p"),
]


@pytest.mark.parametrize("command", NAMED)
def test_a_hostile_name_is_one_sentence_and_changes_nothing(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    for name in HOSTILE:
        words = [*command[1:], "--", name] if name.startswith("-") else [*command[1:], name]
        status = run(command[0], *words, *(["true"] if command[0] == "qvm-run" else []))
        captured = capsys.readouterr()
        assert status == (1 if command[0] in MAKERS else 2), name
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith(f"{command[0]}: error: ")
        assert "\x1b" not in captured.err
    assert changes(qubesd) == []


@pytest.mark.parametrize("words", [
    ("-l", "red label=x", "new"), ("-l", "red", "-t", "a b", "new"), ("-l", "red", "-P", "p pool:root=x", "new"),
    ("-l", "red", "-p", "root=a\nb", "new"), ("-l", "../x", "new"),
])
def test_qvm_create_sends_no_word_that_reads_as_another(qubesd: FakeQubesd, words: tuple[str, ...]) -> None:
    assert run("qvm-create", *words) == 1
    assert changes(qubesd) == []


# -- the runner ----------------------------------------------------------------------------------------------------------


def test_without_qubesd(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-ls") == 1
    assert capsys.readouterr().err.splitlines()[1] == "qvm-ls: hint: Start it with: cloison up"


def test_an_unknown_qube_is_wrong_usage(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-start", "nowhere") == 2
    assert capsys.readouterr().err.startswith("qvm-start: error: there is no qube 'nowhere'\n")
    assert run("qvm-prefs", "nowhere") == 2


def test_qsb_013b_text_from_qubesd_cannot_drive_a_terminal(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["admin.vm.Start"] = lambda _, __: admin.exception("QubesException", "bad \x1b]0;title\x07 thing")
    assert run("qvm-start", "work") == 1
    assert capsys.readouterr().err.count("bad _]0;title_ thing") == 1
    assert tool.printable("a\x9b1m\u202eb\tc") == "a_1m_b\tc"


def test_an_interrupt_and_a_closed_pipe_have_their_statuses(root: Path) -> None:
    parser = tool.Parser(prog="t")

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    assert tool.main(parser, interrupted, []) == 130
    assert tool.main(tool.Parser(prog="t"), lambda *_: 5, []) == 5


@pytest.mark.parametrize("name", completion.TOOLS)
def test_every_tool_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name}")
    assert "examples:\n" in text


@pytest.mark.parametrize("words", [("qvm-start",), ("qvm-start", "--all", "work"), ("qvm-kill", "work", "--exclude", "work"),
                                   ("qvm-ls", "--all", "work")])
def test_names_or_all(qubesd: FakeQubesd, words: tuple[str, ...]) -> None:
    assert run(*words) == 2


def test_an_options_beginning_is_enough(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    """As scripts know it of Qubes OS's tools; one that could mean two options is refused."""
    assert run("qvm-ls", "--raw-l", "work") == 0
    assert capsys.readouterr().out == "work\n"
    assert run("qvm-ls", "--raw") == 2


# -- power ---------------------------------------------------------------------------------------------------------------


def test_a_qube_that_is_starting_is_waited_for_and_no_error(qubesd: FakeQubesd) -> None:
    qubesd.qubes["work"]["state"] = "Transient"
    assert run("qvm-start", "work") == 0
    assert ("work", "admin.vm.Start", "", b"") in qubesd.calls


def test_start_and_its_refusals(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["internal.cloison.Status"] = lambda _, __: admin.ok(b'{"accelerator": "tcg"}')
    assert run("qvm-start", "work", "sys-net") == 1
    err = capsys.readouterr().err
    assert "NOT a security boundary" in err
    assert "starting qube failed: sys-net: domain is already running" in err
    assert changes(qubesd) == [("work", "admin.vm.Start", "", b"")]
    assert run("qvm-start", "--skip-if-running", "work", "sys-net") == 0
    assert capsys.readouterr().err == ""


def test_no_warning_with_kvm_or_another_qubesd(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["internal.cloison.Status"] = lambda _, __: admin.ok(b'{"accelerator": "kvm"}')
    assert run("qvm-start", "work") == 0
    del qubesd.answers["internal.cloison.Status"]
    assert run("qvm-start", "debian-12") == 0
    assert capsys.readouterr().err == ""


def test_patterns_all_and_exclude(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-kill", "w*", "z*", "--quiet") == 0
    assert run("qvm-kill", "--all", "--exclude", "work") == 0
    assert capsys.readouterr().err == "no qube matches z*\n"
    killed = [call[0] for call in changes(qubesd)]
    assert (killed[0], sorted(killed[1:])) == ("work", ["debian-12", "sys-net"])     # one run's are killed at once, in any order
    assert qubesd.qubes["sys-net"]["state"] == "Halted"


def test_shutdown_retries_what_was_in_use_and_kills_what_is_late(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]
) -> None:
    def shutdown(fake: FakeQubesd, request: admin.Request) -> bytes:
        if request.dest == "work":
            return admin.ok()
        if fake.calls.count(("sys-net", "admin.vm.Shutdown", "wait", b"")) == 1:
            return admin.exception("QubesVMInUseError", "work uses it")
        return admin.exception("QubesVMShutdownTimeoutError", "too slow")

    qubesd.answers["admin.vm.Shutdown"] = shutdown
    assert run("qvm-shutdown", "--wait", "sys-net", "work") == 0
    calls = [call[:3] for call in changes(qubesd)]
    first = {("sys-net", "admin.vm.Shutdown", "wait"), ("work", "admin.vm.Shutdown", "wait")}
    assert set(calls[:2]) == first       # at once, so in any order
    assert calls[2:] == [("sys-net", "admin.vm.Shutdown", "wait"), ("sys-net", "admin.vm.Kill", "")]
    assert "killing it" in capsys.readouterr().err


def test_shutdown_in_use_by_others_fails_once_told(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["admin.vm.Shutdown"] = lambda _, __: admin.exception("QubesVMInUseError", "work uses it")
    assert run("qvm-shutdown", "sys-net") == 1
    assert capsys.readouterr().err == "qvm-shutdown: error: failed to shut down: sys-net: work uses it\n"


def test_pause_and_unpause(qubesd: FakeQubesd) -> None:
    assert run("qvm-pause", "work") == 1
    assert run("qvm-pause", "sys-net") == 0
    assert qubesd.qubes["sys-net"]["state"] == "Paused"
    assert run("qvm-unpause", "sys-net") == 0


# -- settings ------------------------------------------------------------------------------------------------------------


def test_create_remove(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("qvm-create", "-l", "green", "-t", "debian-12", "--prop", "memory=800", "new") == 0
    assert ("dom0", "admin.vm.Create.AppVM", "debian-12", b"name=new label=green unfinished=qvm-create") in qubesd.calls
    assert qubesd.qubes["new"]["memory"] == "800"
    assert run("qvm-create", "-l", "green", "new") == 1
    assert capsys.readouterr().err == "qvm-create: error: qube new exists, 100% sure\n"
    assert run("qvm-create", "-l", "green", "--prop", "colour=x", "newer") == 2
    assert "newer" not in qubesd.qubes
    assert run("qvm-create", "-l", "green", "newer") == 0
    assert ("dom0", "admin.vm.Create.AppVM", "", b"name=newer label=green") in qubesd.calls, "one call is all it takes"
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert run("qvm-remove", "new") == 1
    assert run("qvm-remove", "--force", "new", "newer") == 0
    assert "new" not in qubesd.qubes and "newer" not in qubesd.qubes


def test_create_needs_label_and_name(qubesd: FakeQubesd) -> None:
    assert run("qvm-create", "new") == 2
    assert run("qvm-create", "-l", "red") == 2
    assert changes(qubesd) == []


def test_prefs(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-prefs", "work") == 0
    assert "label     -  blue\n" in capsys.readouterr().out
    assert run("qvm-prefs", "work", "label") == 0
    assert capsys.readouterr().out == "blue\n"
    assert run("qvm-prefs", "work", "netvm", "None") == 0
    assert qubesd.qubes["work"]["netvm"] == ""
    assert run("qvm-prefs", "work", "nonsense") == 2
    assert capsys.readouterr().err == "qvm-prefs: error: no such property: 'nonsense'\n"
    assert run("qvm-prefs", "-D", "work", "netvm") == 0
    assert "netvm" not in qubesd.qubes["work"]


def test_features(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-features", "work", "a") == 1
    assert run("qvm-features", "work", "a", "1") == 0
    assert run("qvm-features", "work", "bb", "") == 0
    assert run("qvm-features", "work") == 0
    assert capsys.readouterr().out == "a   1\nbb  \n"   # a gap stands before an empty value, as column(1) leaves it
    assert run("qvm-features", "--unset", "work", "a") == 0
    assert run("qvm-features", "--unset", "work", "a") == 0
    assert qubesd.features["work"] == {"bb": ""}


def test_tags_services_check(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-tags", "work", "add", "x", "y") == 0
    assert run("qvm-tags", "work", "del", "x") == 0
    assert run("qvm-tags", "work") == 0
    assert capsys.readouterr().out == "y\n"
    assert run("qvm-tags", "work", "list", "z") == 1
    assert run("qvm-service", "work", "cups", "on") == 0
    assert qubesd.features["work"]["service.cups"] == "1"
    assert run("qvm-service", "work", "cups", "maybe") == 1
    assert run("qvm-check", "-q", "work") == 0
    assert run("qvm-check", "-q", "work", "nowhere") == 1
    assert run("qvm-check", "-q", "--running", "work", "sys-net") == 3
    capsys.readouterr()
    assert [run("qvm-check", "--", name) for name in ("*", "a b", "-x")] == [1, 1, 1]
    assert capsys.readouterr().err.count("non-existent!") == 3


# -- qvm-ls --------------------------------------------------------------------------------------------------------------


def test_ls_default_columns(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-ls") == 0
    assert capsys.readouterr().out == (
        "NAME       STATE    CLASS       LABEL  TEMPLATE   NETVM\n"
        "debian-12  Halted   TemplateVM  black  -          -\n"
        "dom0       Running  AdminVM     black  -          -\n"
        "sys-net    Running  AppVM       red    debian-12  -\n"
        "work       Halted   AppVM       blue   debian-12  sys-net\n")


def test_ls_raw(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-ls", "--raw-list") == 0
    assert capsys.readouterr().out == "debian-12\ndom0\nsys-net\nwork\n"
    assert [call[1] for call in qubesd.calls] == ["admin.vm.List"]
    assert run("qvm-ls", "--raw-data", "-O", "name,label", "work") == 0
    assert capsys.readouterr().out == "work|blue\n"
    assert run("qvm-ls", "--tree", "--raw-list", "work", "sys-net") == 0
    assert capsys.readouterr().out == "sys-net\nwork\n"


@pytest.mark.parametrize(("words", "names"), [
    (("--running",), "dom0 sys-net"), (("--halted", "--class", "AppVM"), "work"), (("--label", "red", "blue"), "sys-net work"),
    (("--netvm-is", "sys-net"), "work"), (("--all", "--exclude", "dom0"), "debian-12 sys-net work"), (("--tags", "t"), "work"),
    (("--features", "f=1"), "work"), (("--features", "f="), "debian-12 dom0 sys-net"), (("--prefs", "label=blue"), "work"),
    (("--internal", "y"), ""), (("--template-source", "debian-12"), "sys-net work"), (("--tree",), "debian-12 dom0 sys-net work"),
])
def test_ls_filters(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], names: str) -> None:
    qubesd.tags["work"].append("t")
    qubesd.features["work"]["f"] = "1"
    assert run("qvm-ls", "--raw-list", *words) == 0
    assert capsys.readouterr().out.replace("└─", "").split() == names.split()


def test_ls_other_formats_and_flags(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("-o", "network"), ("-o", "full"), ("-o", "disk"), ("-o", "perf"), ("--help-columns",), ("--help-formats",)):
        assert run("qvm-ls", *words) == 0
    capsys.readouterr()
    assert run("qvm-ls", "--raw-data", "-O", "NAME,FLAGS,gateway", "sys-net") == 0
    assert capsys.readouterr().out == "sys-net|ar-N----|-\n"


# -- qvm-run -------------------------------------------------------------------------------------------------------------


def test_run_passes_streams_and_status(qubesd: FakeQubesd, warden: FakeWarden, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-run", "-p", "work", "echo hello; exit 3") == 3
    assert capfd.readouterr().out == "hello\n"
    assert ("work", "admin.vm.Start", "", b"") in qubesd.calls
    assert warden.commands[0].command == "DEFAULT:echo hello; exit 3"


COMMANDS = [
    (("work", "cmd"), "DEFAULT:cmd"),
    (("-u", "root", "work", "cmd"), "root:cmd"),
    (("work", "QUBESRPC x+ dom0"), "DEFAULT: QUBESRPC x+ dom0"),
    (("work", "nogui:x"), "DEFAULT: nogui:x"),
    (("work", "ls", "-l", "a b"), "DEFAULT:exec ls -l 'a b'"),
    (("work", "--", "ls", "--", "x"), "DEFAULT:exec ls -- x"),
    (("--no-shell", "work", "ls -l"), "DEFAULT:exec 'ls -l'"),
    (("--service", "work", "qubes.GetDate"), "DEFAULT:QUBESRPC qubes.GetDate+ dom0"),
    (("--service", "work", "a.B+c"), "DEFAULT:QUBESRPC a.B+c dom0"),
]


@pytest.mark.parametrize(("words", "command"), COMMANDS)
def test_run_command_lines(qubesd: FakeQubesd, warden: FakeWarden, words: tuple[str, ...], command: str) -> None:
    warden.script = lambda channel: channel.sendall(b"")
    run("qvm-run", "-q", *words)
    assert [exec_.command for exec_ in warden.commands] == [command]


def test_run_uses_vmexec_if_the_template_has_it(
    qubesd: FakeQubesd, warden: FakeWarden, capfd: pytest.CaptureFixture[str]
) -> None:
    qubesd.features["debian-12"]["vmexec"] = "1"
    assert run("qvm-run", "-p", "work", "printf", "%s", "--x $HOME é/") == 0
    assert capfd.readouterr().out == "--x $HOME é/"
    assert warden.commands[0].command == "DEFAULT:QUBESRPC qubes.VMExec+printf+-25s+----x-20-24HOME-20-C3-A9-2F dom0"


def test_run_of_a_command_too_long_for_a_message(
    qubesd: FakeQubesd, warden: FakeWarden, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("qvm-run", "-p", "work", "echo " + "x" * 70000) == 0
    assert capfd.readouterr().out == "x" * 70000 + "\n"
    assert warden.commands[0].command == "DEFAULT:QUBESRPC qubes.VMShell+ dom0"


def test_run_in_a_disposable_ends_its_lease(qubesd: FakeQubesd, warden: FakeWarden, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-run", "-p", "--dispvm=work", "echo in disp") == 0
    assert capfd.readouterr().out == "in disp\n"
    assert qubesd.calls[0][:2] == ("work", "cloison.Disposable")
    assert qubesd.ended_leases.wait(PATIENCE)


def test_run_with_a_local_command(qubesd: FakeQubesd, warden: FakeWarden, tmp_path: Path) -> None:
    assert run("qvm-run", "-p", "--localcmd", f"echo to qube; exec 1>&-; cat > {tmp_path}/got", "work", "cat; echo from qube") == 0
    assert (tmp_path / "got").read_text() == "to qube\nfrom qube\n"


@pytest.mark.parametrize("words", [
    (), ("work",), ("--dispvm=work",), ("--service", "work", "a", "b"), ("--localcmd", "x", "work", "y"), ("-p", "--all", "x"),
    ("--exclude", "a", "work", "x"), ("-p", "--colour-output", "31", "work", "x"),
    ("--colour-output", "31", "work", "x"),
])
def test_run_wrong_usage(qubesd: FakeQubesd, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("qvm-run", *words) == 2
    assert changes(qubesd) == []


@pytest.mark.parametrize("words", [
    ("-u", "a:b", "work", "x"), ("--service", "work", "../x"), ("--service", "work", "a b"),
    ("-p", "--colour-stderr", "1m", "work", "x"),
])
def test_run_hostile_words(qubesd: FakeQubesd, words: tuple[str, ...]) -> None:
    assert run("qvm-run", *words) == 1
    assert changes(qubesd) == []


def test_run_that_never_ran_ends_as_no_common_command_does(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["admin.vm.Start"] = lambda _, __: admin.exception("QubesException", "no kernel to boot")
    assert run("qvm-run", "work", "true") == 255
    assert capsys.readouterr().err == "qvm-run: error: no kernel to boot\n"


def test_run_does_not_start_what_it_may_not(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-run", "-n", "work", "x") == 1
    assert "not started" in capsys.readouterr().err
    assert changes(qubesd) == []


def test_run_on_a_terminal_is_filtered_and_coloured(qubesd: FakeQubesd, warden: FakeWarden) -> None:
    """QSB-013b in whole: a real terminal, no option given."""
    master, slave = os.openpty()
    pid = os.fork()
    if pid == 0:
        os.dup2(slave, 1)
        os._exit(run("qvm-run", "-p", "work", "printf 'a\\033]0;x\\007b'"))
    os.close(slave)
    shown = b""
    while b"\x1b[0m" not in shown[4:]:
        shown += os.read(master, 1000)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(master)
    assert shown == b"\x1b[0;31ma_]0;x\x07b\x1b[0m"


def test_run_takes_no_option_for_a_command(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-run", "work", "--autostart", "true") == 2
    assert "options stand before VMNAME" in capsys.readouterr().err
    assert qubesd.calls == []


def test_ls_says_how_a_qube_started(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["internal.cloison.Status"] = lambda _, __: admin.ok(b'{"starts": {"sys-net": "warm"}}')
    assert run("qvm-ls", "--fields", "name,start", "sys-net", "work") == 0
    assert capsys.readouterr().out == "NAME     START\nsys-net  warm\nwork     -\n"


def test_a_qube_that_waits_is_told_of_by_who_lists_and_by_who_waits_for_it(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str],
) -> None:
    problems = {"work": "work waits for disk space", "other": "other does not answer"}
    qubesd.answers["internal.cloison.Status"] = lambda *_: admin.ok(json.dumps({"problems": problems}).encode())
    qubesd.qubes["work"]["state"] = "Paused"
    assert run("qvm-ls") == 0
    assert capsys.readouterr().err == "qvm-ls: work waits for disk space\nqvm-ls: other does not answer\n"
    assert run("qvm-ls", "--raw-list") == 0
    assert capsys.readouterr().err == "", "scripts read names only"
    qubesd.qubes["work"]["state"] = "Running"
    assert run("qvm-ls") == 0
    assert "qvm-ls: work waits" in capsys.readouterr().err, "one that runs may lack something as well"
    connection, told = Connection(), list[str]()
    for _ in range(2):
        told[:] = tool.tell_problems("qvm-run", connection, ["work"], told)
    assert capsys.readouterr().err == "qvm-run: work waits for disk space\n"
    problems.clear()
    assert tool.tell_problems("qvm-run", connection, ["work"], told) == []
    qubesd.answers["internal.cloison.Status"] = lambda *_: admin.ok(b"no json")
    assert tool.tell_problems("qvm-run", connection) == []


@pytest.mark.parametrize("words", [["qvm-start", "work"], ["qvm-run", "-p", "work", "true"]])
def test_who_starts_a_qube_is_told_once_that_its_agent_is_an_older_one(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], words: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent_wait, "AGENT_TIME", 0.0)   # nothing here answers a call
    older = {"work": "template t is old", "t": "template t is old", "mail": "template u is old"}
    qubesd.answers["internal.cloison.Status"] = lambda *_: admin.ok(json.dumps({"old_agents": older}).encode())
    qubesd.qubes["work"]["state"] = "Halted"
    asked = len([call for call in qubesd.calls if call[1].endswith("Status")])
    run(*words)
    assert [line for line in capsys.readouterr().err.splitlines() if "old" in line] == [f"{words[0]}: template t is old"]
    assert len([call for call in qubesd.calls if call[1].endswith("Status")]) - asked == (2 if words[0] == "qvm-start" else 1)
    run("qvm-ls")
    assert "old" not in capsys.readouterr().err
    assert tool.tell_problems("qvm-run", Connection(), ["work"]) == [], "not in the middle of a call"
    qubesd.qubes["work"]["state"] = "Halted"
    run(words[0], "-q", *words[1:])
    assert "old" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["qvm-start", "work"], ["qvm-run", "-p", "work", "true"]])
def test_a_qube_that_runs_without_its_private_volume_is_told_of_by_who_starts_it(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], words: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent_wait, "AGENT_TIME", 0.0)
    problems = {"work": "work says: what is written to its home is lost", "other": "other does not answer"}
    qubesd.answers["internal.cloison.Status"] = lambda *_: admin.ok(json.dumps({"problems": problems}).encode())
    qubesd.qubes["work"]["state"] = "Halted"
    run(*words)
    said = capsys.readouterr().err
    assert f"{words[0]}: work says: what is written to its home is lost\n" in said and "other" not in said
    qubesd.qubes["work"]["state"] = "Halted"
    run(words[0], "-q", *words[1:])
    assert "is lost" not in capsys.readouterr().err


def test_a_disk_that_is_nearly_full_is_told_of_at_a_start_and_in_the_status(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str],
) -> None:
    sentence = "900 MB are free in /data: the disk is nearly full; when it is full, qubes that write stop"
    facts = {"accelerator": "kvm", "space": [sentence], "problems": {}, "starts": {}, "warm_images": []}
    qubesd.answers["internal.cloison.Status"] = lambda *_: admin.ok(json.dumps(facts).encode())
    qubesd.qubes["work"]["state"] = "Halted"
    assert run("qvm-start", "work") == 0
    assert f"qvm-start: {sentence}\n" in capsys.readouterr().err
    importlib.import_module("cloison.cli.main").main(["status"])
    said = capsys.readouterr().out
    assert any(line.startswith("disk space") and line.endswith(sentence) for line in said.splitlines()), said
    facts["space"] = []
    importlib.import_module("cloison.cli.main").main(["status"])
    assert "disk space" not in capsys.readouterr().out
