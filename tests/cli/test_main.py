"""cloison up, down, status, against a fake qubesd; and which verbs and scripts there are."""
from __future__ import annotations

import json
import socket
import threading
import tomllib
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd
from tests.patience import PATIENCE

from cloison import begin
from cloison.cli import completion, main, tool
from cloison.runtime.paths import Paths
from cloison.wire import admin


def test_down_without_qubesd_is_no_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["down"]) == 0
    assert "does not run" in capsys.readouterr().out
    assert main.main(["status"]) == 3
    told = capsys.readouterr()
    assert told.out == "qubesd does not run\n" and told.err == "cloison: hint: Start it with: cloison up\n"
    assert main.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"running": False}


@pytest.mark.parametrize("patience", [300.0, 0.0])
def test_down_kills_no_qube_that_is_late_before_its_time(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, patience: float,
) -> None:
    def shutdown(fake: FakeQubesd, request: admin.Request) -> bytes:
        tries = sum(method == "admin.vm.Shutdown" for _, method, _, _ in fake.calls)
        return admin.exception("QubesVMShutdownTimeoutError", "too slow") if tries < 3 else admin.ok()

    ended: list[str] = []
    monkeypatch.setattr("cloison.cli.daemons.end", lambda _paths, at: ended.append(at))
    monkeypatch.setattr(main, "DOWN_TIME", patience)
    qubesd.answers["admin.vm.Shutdown"] = shutdown
    assert main.main(["down"]) == 0
    assert ended[0] == "qubesd.sock"
    told = capsys.readouterr().err
    asked = [method for _, method, _, _ in qubesd.calls if method in ("admin.vm.Shutdown", "admin.vm.Kill")]
    if patience:
        assert asked == ["admin.vm.Shutdown"] * 3
        assert told.count("sys-net has not shut down yet; what is late is killed in 300 s") == 2 and "killing it" not in told
        assert told.endswith("cloison: sys-net is shut down\n")
    else:
        assert asked == ["admin.vm.Shutdown", "admin.vm.Kill"]
        assert "sys-net did not shut down in time: killing it" in told and "not shut down yet" not in told


def test_down_waits_for_one_that_was_down_when_asked_again(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [admin.exception("QubesVMShutdownTimeoutError", "too slow"), admin.exception("QubesVMNotStartedError", "it is down")]
    monkeypatch.setattr("cloison.cli.daemons.end", lambda _paths, _at: None)
    qubesd.answers["admin.vm.Shutdown"] = lambda _, __: answers.pop(0)
    assert main.main(["down"]) == 0
    assert capsys.readouterr().err.endswith("cloison: sys-net is shut down\n") and not answers


def test_who_waits_long_for_qubesd_is_told_once_what_for(
    qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloison.client.connection.SLOW", 0.01)
    told = threading.Event()
    tell = tool._tell_slow
    monkeypatch.setattr(tool, "_tell_slow", lambda *words: (tell(*words), told.set()))

    def status(_fake: FakeQubesd, _request: admin.Request) -> bytes:
        assert told.wait(PATIENCE)
        return admin.ok(b"{}")

    qubesd.answers["internal.cloison.Status"] = status
    assert main.main(["status"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["cloison: still waiting for qubesd's answer to internal.cloison.Status of dom0; Ctrl-C ends the wait, "
                     "`cloison log qubesd` may tell why"]


def test_status(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["internal.cloison.Status"] = lambda _, __: admin.ok(b'{"accelerator": "tcg", "warm_images": []}')
    assert main.main(["status"]) == 0
    assert capsys.readouterr().out == (
        "qubesd       runs\naccelerator  tcg\nwarm images  -\npolicy       not served: such calls are denied\n"
        "questions    not served: such calls are denied\nqubes        1 of 3 running\n             sys-net (Running)\n")
    assert main.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["qubes"]["sys-net"] == "Running"


def test_status_says_what_is_wrong_with_a_qube(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["internal.cloison.Status"] = lambda _, __: admin.ok(b'{"problems": {"sys-net": "it is ill"}}')
    assert main.main(["status"]) == 0
    assert "sys-net (Running): it is ill\n" in capsys.readouterr().out
    assert main.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == {"sys-net": "it is ill"}


def test_status_says_once_which_template_has_an_older_agent(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    older = b'{"old_agents": {"tpl": "tpl is old", "work": "tpl is old"}}'
    qubesd.answers["internal.cloison.Status"] = lambda _, __: admin.ok(older)
    assert main.main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines if "old" in line] == [["template", "tpl is old"]]
    assert main.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["old_agents"] == {"tpl": "tpl is old", "work": "tpl is old"}


def test_a_dead_socket_is_no_qubesd(paths: Paths) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(paths.socket("qubesd.sock"))
    listener.close()
    assert main.main(["down"]) == 0


def test_help_and_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in ("up", "down", "status", "completion", *main.OTHERS):
        assert verb in text
    for words in (["dance"], []):        # what there is, is told to whoever asks for something else
        assert main.main(words) == 2
        text = capsys.readouterr().err
        for verb in ("up", "down", "status", "completion", *main.OTHERS):
            assert verb in text


def test_every_tool_has_its_script() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    scripts = project["project"]["scripts"]
    assert scripts == {name: f"cloison.begin:{name.replace('-', '_')}" for name in scripts}
    ours = {name for name in scripts if begin.ELSEWHERE.get(name.replace("-", "_"), "cloison.cli.").startswith("cloison.cli.")}
    assert ours == {"cloison", *completion.TOOLS}
