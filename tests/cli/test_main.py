"""cloison up, down, status: against a fake qubesd, and with a daemon that is a process of its own."""
from __future__ import annotations

import json
import os
import socket
import tomllib
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd

from cloison.cli import completion, main
from cloison.runtime.paths import Paths
from cloison.wire import admin

DAEMON = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(8)
print("up", flush=True)
while True:
    sock, _ = listener.accept()
    while sock.recv(1000): pass
    try: sock.sendall(b"0\\0dom0 class=AdminVM state=Running uuid=u\\n")
    except OSError: pass
    sock.close()
"""


@pytest.fixture
def paths(root: Path) -> Paths:
    paths = Paths.from_environment()
    paths.ensure()
    return paths


def spawn(paths: Paths, code: str) -> int:
    import sys

    return main._spawn([sys.executable, "-c", code, paths.socket("qubesd.sock")], paths.log + "/qubesd.log")


def test_down_without_qubesd_is_no_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["down"]) == 0
    assert "does not run" in capsys.readouterr().out
    assert main.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"running": False}


def test_up_waits_for_the_daemon_and_down_ends_it(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    child = spawn(paths, DAEMON)
    main._await_answer(paths, child, paths.log + "/qubesd.log")
    assert main.main(["up"]) == 0        # it runs already: nothing is started
    assert "already" in capsys.readouterr().out
    assert main.main(["down"]) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -15


def test_up_shows_why_the_daemon_ended(paths: Paths) -> None:
    child = spawn(paths, "raise SystemExit('no store')")
    with pytest.raises(main.StartFailed, match="no store") as caught:
        main._await_answer(paths, child, paths.log + "/qubesd.log")
    assert caught.value.exit_status == 1


def test_up_does_not_show_what_a_former_daemon_said(paths: Paths) -> None:
    log = paths.log + "/qubesd.log"
    with open(log, "w", encoding="utf-8") as file:
        file.write("an old story\n")
    before = os.path.getsize(log)
    child = spawn(paths, "raise SystemExit('no store')")
    with pytest.raises(main.StartFailed, match="no store") as caught:
        main._await_answer(paths, child, log, before=before)
    assert "old story" not in str(caught.value)


def test_status(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["internal.cloison.Status"] = lambda _, __: admin.ok(b'{"accelerator": "tcg", "warm_images": []}')
    assert main.main(["status"]) == 0
    assert capsys.readouterr().out == (
        "qubesd       runs\naccelerator  tcg\nwarm images  -\npolicy       not served: such calls are denied\n"
        "questions    not served: such calls are denied\nqubes        1 of 3 running\n             sys-net (Running)\n")
    assert main.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["qubes"]["sys-net"] == "Running"


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
    assert main.main(["dance"]) == 2


def test_every_tool_has_its_script() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    scripts = {name: f"cloison.cli.{name.replace('-', '_')}:main" for name in completion.TOOLS}
    written = {name: place for name, place in project["project"]["scripts"].items() if place.startswith("cloison.cli.")}
    assert written == {"cloison": "cloison.cli.main:main", **scripts}
