"""Starting and ending daemons that are processes of their own, and what is said of one that fails."""
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cloison.cli import daemons, main
from cloison.runtime.paths import Paths

SOCKET = "qubesd.sock"
DAEMON = """
import os, socket, sys
from cloison.runtime import unix
listener = unix.listen(sys.argv[1], 8)
listener.setblocking(True)
print("up", flush=True)
while True:
    sock, _ = listener.accept()
    while sock.recv(1000): pass
    try: sock.sendall(b"0\\0dom0 class=AdminVM state=Running uuid=u\\n")
    except OSError: pass
    sock.close()
"""


@pytest.fixture
def log(paths: Paths) -> str:
    return os.path.join(paths.log, "qubesd.log")


def spawn(paths: Paths, log: str, code: str) -> int:
    return daemons.spawn([sys.executable, "-c", code, paths.socket(SOCKET)], log)


def test_up_waits_for_the_daemon_and_down_ends_it(paths: Paths, log: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    child = spawn(paths, log, DAEMON)
    daemons.await_answer(paths, child, log, SOCKET)
    assert len(os.listdir("/proc/self/fd")) == before
    assert main.main(["up"]) == 0        # it runs already: nothing is started
    assert "already" in capsys.readouterr().out
    assert main.main(["down"]) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -15


def test_one_that_gave_way_to_another_is_no_failure(paths: Paths, log: str) -> None:
    other = spawn(paths, log, DAEMON)
    daemons.await_answer(paths, other, log, SOCKET)
    ours = spawn(paths, log, "print('another runs already')")
    daemons.await_answer(paths, ours, log, SOCKET)
    daemons.end(paths, SOCKET)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (other, ours)] == [-15, 0]


def test_up_shows_why_the_daemon_ended(paths: Paths, log: str) -> None:
    child = spawn(paths, log, "raise SystemExit('no store')")
    with pytest.raises(daemons.StartFailed, match=r"(?s)qubesd ended.*no store") as caught:
        daemons.await_answer(paths, child, log, SOCKET)
    assert caught.value.exit_status == 1


def test_up_does_not_show_what_a_former_daemon_said(paths: Paths, log: str) -> None:
    Path(log).write_text("an old story\n")
    before = os.path.getsize(log)
    child = spawn(paths, log, "raise SystemExit('no store')")
    with pytest.raises(daemons.StartFailed, match="no store") as caught:
        daemons.await_answer(paths, child, log, SOCKET, before)
    assert "old story" not in str(caught.value)
