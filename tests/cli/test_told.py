"""What tools tell a person: one wording for an unknown qube, the next step, why a call failed, what is waited for."""
from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, FakeWarden

from cloison.cli import progress, qvm_start, tool
from cloison.client.connection import Connection
from cloison.wire import admin


def run(line: str) -> int:
    command, *words = shlex.split(line)
    status: int = importlib.import_module("cloison.cli." + command.replace("-", "_")).main(words)
    return status


# -- a qube that there isn't ---------------------------------------------------------------------------------------------

UNKNOWN = """
qvm-block list nosuch
qvm-block attach nosuch net:sda
qvm-block detach nosuch
qvm-clone nosuch other
qvm-console-dispvm nosuch
qvm-copy-to-vm nosuch /etc/hostname
qvm-device pci list nosuch
qvm-features nosuch
qvm-firewall nosuch
qvm-kill nosuch
qvm-ls nosuch
qvm-move-to-vm nosuch /etc/hostname
qvm-notes -p nosuch
qvm-pause nosuch
qvm-prefs nosuch
qvm-remove -f nosuch
qvm-run nosuch true
qvm-service nosuch
qvm-shutdown nosuch
qvm-start nosuch
qvm-tags nosuch
qvm-unpause nosuch
qvm-usb list nosuch
qvm-volume list nosuch
""".strip().splitlines()
# As with Qubes OS's tools: a qube that another argument names is a failure, not wrong usage.
ELSEWHERE = """
qvm-block attach work nosuch:sda
qvm-create --label red --template nosuch made
qvm-volume info nosuch:private
qvm-volume extend nosuch:private 9G
""".strip().splitlines()


@pytest.mark.parametrize("line", UNKNOWN + ELSEWHERE)
def test_an_unknown_qube_is_told_in_one_way(real: Connection, capsys: pytest.CaptureFixture[str], line: str) -> None:
    prog = line.split(maxsplit=1)[0]
    assert run(line) == (1 if line in ELSEWHERE else 2)
    assert capsys.readouterr().err == f"{prog}: error: there is no qube 'nosuch'\n{prog}: hint: qvm-ls lists the qubes.\n"


@pytest.mark.parametrize("line", UNKNOWN)
def test_before_there_is_a_template_the_next_command_is_told(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], line: str,
) -> None:
    qubesd.qubes = {"dom0": qubesd.qubes["dom0"]}
    assert run(line) == 2
    assert "hint: There is no template yet, so no qube. Make one: cloison template build debian-13\n" in capsys.readouterr().err


def test_without_a_default_template_the_next_command_is_told(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-create --label red made") == 1
    wanted = "class AppVM needs a template, and no default is set: name one, or set it: qubes-prefs default_template NAME"
    assert wanted in _err(capsys)
    assert run("qvm-create --label red --disp made") == 1
    assert "qubes-prefs default_dispvm NAME" in _err(capsys)
    for name in ("work", "net", "tpl"):
        real.call(name, "admin.vm.Remove")
    assert run("qvm-create --label red made") == 1
    assert "there is no template yet; cloison template build debian-13 makes one" in _err(capsys)
    assert run("qvm-run -p --dispvm -- true") == 255
    assert "dom0 has no default_dispvm: there is no template yet; cloison template build debian-13 makes one" in _err(capsys)


def _err(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


# -- the order of arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [
    "qvm-prefs work -s label green", "qvm-prefs -s work label green", "qvm-prefs work label -s green",
    "qvm-prefs work label green --set",
])
def test_options_stand_anywhere_between_the_arguments_of_prefs(real: Connection, line: str) -> None:
    assert run(line) == 0
    assert real.call("work", "admin.vm.property.Get", "label").endswith(b" green")


@pytest.mark.parametrize("line", [
    "qvm-features work -q some 1", "qvm-features work some -q 1", "qvm-features -q work some 1",
    "qvm-service work -q some on", "qvm-service work some on -q", "qvm-service work -e some", "qvm-service -e work some",
])
def test_and_of_other_tools(real: Connection, line: str) -> None:
    assert run(line) == 0
    feature = "service.some" if line.startswith("qvm-service") else "some"
    assert real.call("work", "admin.vm.feature.Get", feature) == b"1"
    assert run(f"qvm-features work -D {feature}") == 0
    assert run(f"qvm-features work {feature}") == 1


def test_what_follows_two_dashes_is_no_option(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("-1", "-q", "--unset"):
        assert run(f"qvm-features -- work some {value}") == run(f"qvm-features work -- some {value}") == 0
        assert real.call("work", "admin.vm.feature.Get", "some").decode() == value


# -- power ---------------------------------------------------------------------------------------------------------------


def test_a_paused_qube_goes_on_and_is_shut_down(real: Connection) -> None:
    for wait in ("", "--wait"):
        assert run("qvm-start -q work") == 0
        assert run("qvm-pause work") == 0
        assert b"state=Paused" in real.call("work", "admin.vm.List")
        assert run(f"qvm-shutdown {wait} work") == 0
        assert run("qvm-shutdown --wait work") == 0
        assert b"state=Halted" in real.call("work", "admin.vm.List")


def test_one_that_can_not_go_on_is_a_failure(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.qubes["work"]["state"] = "Paused"
    qubesd.answers["admin.vm.Unpause"] = lambda _, __: admin.exception("QubesException", "it does not answer")
    assert run("qvm-shutdown work sys-net") == 1
    assert "failed to shut down: work: it does not answer" in _err(capsys)
    assert qubesd.qubes["sys-net"]["state"] == "Halted"
    assert ("work", "admin.vm.Shutdown", "", b"") not in qubesd.calls


def test_one_that_was_paused_meanwhile_is_no_success(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["admin.vm.Shutdown"] = lambda _, __: admin.exception("QubesVMNotRunningError", "work is paused")
    assert run("qvm-shutdown work") == 1
    assert "work is paused" in _err(capsys)
    qubesd.answers["admin.vm.Shutdown"] = lambda _, __: admin.exception("QubesVMNotStartedError", "work is halted already")
    assert run("qvm-shutdown work") == 0


def test_a_disposable_made_ahead_is_not_used_up(qubesd: FakeQubesd) -> None:
    qubesd.qubes["disp9"] = {"class": "DispVM", "state": "Paused", "label": "red", "is_preload": "True"}
    qubesd.features["disp9"] = {}
    assert run("qvm-shutdown disp9") == 0
    assert "admin.vm.Unpause" not in [method for _, method, _, _ in qubesd.calls]


@pytest.mark.parametrize(("line", "status"), [
    ("qvm-start far", 1), ("qvm-run -p far true", 255), ("qvm-run far true", 255), ("qvm-copy-to-vm far /etc/hostname", 1)])
def test_a_remote_qube_is_told_as_what_it_is(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], line: str, status: int,
) -> None:
    qubesd.qubes["far"] = {"class": "RemoteVM", "state": "Running", "label": "red"}
    qubesd.features["far"] = {}
    assert run(line) == status
    assert "far is a RemoteVM: there is nothing of it on this machine\n" in (told := _err(capsys))
    assert "relayvm" in told and "exist" not in told


# -- calls that fail -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "told"), [
    (127, "there is no service test.Add in it"), (126, "cloison policy log"), (125, "test.Add could not be started"), (3, "")])
def test_with_pass_io_a_failed_service_is_told(
    qubesd: FakeQubesd, warden: FakeWarden, capfd: pytest.CaptureFixture[str], status: int, told: str,
) -> None:
    from cloison.wire import qrexec as wire

    qubesd.qubes["work"]["state"] = "Running"
    warden.script = lambda channel: channel.sendall(
        wire.hello(wire.VERSION) + wire.end_of_stream(wire.STDOUT) + wire.end_of_stream(wire.STDERR) + wire.exit_code(status))
    assert run("qvm-run -p --service work test.Add") == status
    assert told in (err := capfd.readouterr().err) and bool(err) == bool(told)
    assert run("qvm-run -q -p --service work test.Add") == status
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("status", "told"), [
    (127, "there is no program nonesuch in it, or it ended with status 127"), (126, ""), (3, ""), (0, ""),
    (125, "nonesuch could not be started, or ended with status 125")])
@pytest.mark.parametrize("vmexec", ["1", ""])
def test_a_program_without_a_shell_that_can_not_be_started_is_told(
    qubesd: FakeQubesd, warden: FakeWarden, capfd: pytest.CaptureFixture[str], status: int, told: str, vmexec: str,
) -> None:
    from cloison.wire import qrexec as wire

    qubesd.qubes["work"]["state"] = "Running"
    qubesd.features["work"] = {"vmexec": vmexec}
    warden.script = lambda channel: channel.sendall(
        wire.hello(wire.VERSION) + wire.end_of_stream(wire.STDOUT) + wire.end_of_stream(wire.STDERR) + wire.exit_code(status))
    for line in ("qvm-run -p --no-shell work nonesuch", "qvm-run -p work nonesuch --its-option"):
        assert run(line) == status
        assert told in (err := capfd.readouterr().err) and bool(err) == bool(told)
    assert run("qvm-run -q -p --no-shell work nonesuch") == status
    assert run("qvm-run -p work nonesuch") == status
    assert capfd.readouterr().err == "", "a shell says it itself"


@pytest.mark.parametrize("line", ["qvm-run -p work true", "qvm-run work true", "qvm-run -p --service work test.Add"])
def test_a_call_that_is_lost_is_told(
    qubesd: FakeQubesd, warden: FakeWarden, capfd: pytest.CaptureFixture[str], line: str,
) -> None:
    from cloison.wire import qrexec as wire

    qubesd.qubes["work"]["state"] = "Running"
    warden.script = lambda channel: channel.sendall(wire.hello(wire.VERSION))
    assert run(line) == 255
    assert "work: the call was lost: the qube has stopped, or its agent has ended" in capfd.readouterr().err
    warden.script = lambda channel: channel.sendall(wire.hello(wire.VERSION) + wire.exit_code(255))     # the command's own
    assert run(line) == 255
    assert "lost" not in capfd.readouterr().err


def test_with_pass_io_a_halted_qube_is_told(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-run -p --no-autostart work true") == 1
    assert "qube 'work' is not started" in _err(capsys)
    assert run("qvm-run -q -p --no-autostart work true") == 1
    assert _err(capsys) == ""


# -- what is waited for --------------------------------------------------------------------------------------------------


class Busy:
    """A call that is answered after it was looked at some times."""

    def __init__(self, times: int) -> None:
        self.times = times


@pytest.mark.parametrize("klass", ["AppVM", "TemplateVM"])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_start_is_told_in_lines_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, klass: str,
) -> None:
    def looked_at(call: Busy, _seconds: float) -> bool:
        call.times -= 1
        return call.times < 0

    monkeypatch.setattr(progress, "wait_for", looked_at)
    monkeypatch.setattr(tool, "is_terminal", lambda _: terminal)
    what = f"starting {'q' * 31}"
    progress.wait(Busy(3), what, klass=klass)            # type: ignore[arg-type]  # only looked at by the function above
    told = _err(capsys)
    assert told.startswith(f"{what}: it boots" + (", if it has no warm image yet" if klass == "AppVM" else "."))
    assert max(map(len, told.replace("\r", "\n").splitlines())) <= 80
    assert ("warm image" in told) == ("memory, vcpus, kernel or kernelopts" in told) == (klass == "AppVM")
    assert (" s" in told.partition("\r")[2]) == terminal
    progress.wait(Busy(0), what)                         # type: ignore[arg-type]
    progress.wait(Busy(9), what, quiet=True)             # type: ignore[arg-type]
    assert _err(capsys) == ""


def test_the_class_decides_what_is_said_of_a_start(qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(qvm_start.progress, "wait", lambda _, what, klass, quiet: said.append((what, klass)))
    assert run("qvm-start work debian-12") == 0
    assert said == [("starting work", "AppVM"), ("starting debian-12", "TemplateVM")]


def test_without_a_template_the_list_of_templates_tells_the_next_step(
    real: Connection, capsys: pytest.CaptureFixture[str],
) -> None:
    from cloison.cli import main

    assert main.main(["template", "list"]) == 0
    assert "no template" not in _err(capsys)
    for name in ("work", "net", "tpl"):
        real.call(name, "admin.vm.Remove")
    assert main.main(["template", "list"]) == 0
    assert _err(capsys) == "cloison: There is no template yet, so no qube. Make one: cloison template build debian-13\n"


def test_down_says_what_it_does(real: Connection, capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own: it ends the process that listens on qubesd's socket, which is this one."""
    from cloison.cli import main

    assert run("qvm-start -q work") == 0
    code = "import sys; from cloison.cli import daemons, main; daemons.end = lambda *_: None; sys.exit(main.main(['down']))"
    down = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30, cwd=Path.cwd())
    assert (down.returncode, down.stderr) == (0, "cloison: shutting down work\ncloison: work is shut down\n"), down
    assert main.PROG == "cloison"


# -- a firewall's rule ---------------------------------------------------------------------------------------------------


def test_a_rule_ends_in_this_calendar(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("qvm-firewall work add drop expire=253402300800") == 1
    assert "up to 253402300799" in _err(capsys)
    assert run("qvm-firewall work add drop expire=253402300799") == 0
    assert "expire=253402300799" in real.call("work", "admin.vm.firewall.Get").decode()
