"""cloison up, down, status, against a fake qubesd; and which verbs and scripts there are."""
from __future__ import annotations

import json
import socket
import tomllib
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd

from cloison import begin
from cloison.cli import completion, main
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
