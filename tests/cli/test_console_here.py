"""qvm-console-dispvm --here: plain text on this terminal, keys to the qube, and a way out."""
from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator

import pytest
from fake_qubesd import FakeQubesd
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import PATIENCE

from cloison.cli import console_here, qvm_console_dispvm
from cloison.cli.console_here import Plain
from cloison.wire import admin

TOOL = [sys.executable, "-c", "import sys; from cloison.cli.qvm_console_dispvm import main; sys.exit(main())", "--here", "work"]


@pytest.fixture
def console(qubesd: FakeQubesd) -> Iterator[int]:
    """The qube's end of the terminal that qubesd names."""
    qube, person = os.openpty()
    tty.setraw(person)
    path = os.ttyname(person).encode()
    qubesd.qubes["work"] |= {"state": "Running"}
    qubesd.answers["admin.vm.Console"] = lambda _, __: admin.ok(path)
    yield qube
    os.close(qube)
    os.close(person)


def read_until(fd: int, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += os.read(fd, 4096)
    return data


def test_a_person_types_sees_plain_text_and_leaves(console: int) -> None:
    """In a terminal of its own, as a person sits there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(TOOL[0], TOOL)  # noqa: S606 the tool takes the child's place
    read_until(terminal, b"Ctrl-] leaves it\r\n")
    os.write(console, b"\x1b[2J\x1b]0;owned\x07work login: ")
    assert read_until(terminal, b"login: ") == b"work login: "
    os.write(terminal, b"ro\x03ot\r")
    assert read_until(console, b"\r") == b"ro\x03ot\r", "Ctrl-C is the qube's"
    os.write(terminal, b"x\x1dnever sent")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(console, 100) == b"x"
    os.close(terminal)


def test_the_end_of_input_leaves(console: int) -> None:
    done = subprocess.run(TOOL, input=b"echo hello\r", capture_output=True, check=True)
    assert os.read(console, 100) == b"echo hello\r" and done.stdout == b"" == done.stderr


def test_the_end_of_the_qube_leaves() -> None:
    qube, person = os.openpty()
    stdin, _keep = os.pipe()
    stdout, output = os.pipe()
    tty.setraw(person)
    thread = threading.Thread(target=console_here.join, args=(person, stdin, output))
    thread.start()
    os.write(qube, b"going down")
    assert os.read(stdout, 100) == b"going down"
    os.close(qube)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    for fd in (person, stdin, _keep, stdout, output):
        os.close(fd)


def test_no_management_disposable_is_needed_but_a_running_qube_is(
    console: int, qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str],
) -> None:
    qubesd.qubes["work"] |= {"state": "Halted", "management_dispvm": ""}
    assert qvm_console_dispvm.main(["--here", "work"]) == 1
    assert "does not run" in capsys.readouterr().err
    qubesd.qubes["work"]["state"] = "Running"
    assert qvm_console_dispvm.main(["work"]) == 1
    assert "--here shows the console in this terminal" in capsys.readouterr().err


@pytest.mark.parametrize(("untrusted", "shown"), [
    (b"plain text\r\n\tand a tab\b", b"plain text\r\n\tand a tab\b"), (b"\x1b[31mred\x1b[0m", b"red"), (b"\x1b]0;title\x07x", b"x"),
    (b"\x1b]0;title\x1b\\x", b"x"), (b"\x1bP1$r\x1b\\x", b"x"), (b"\x1bcx", b"x"), (b"\x1b\x1b[Kx", b"x"), (b"\x9b31mx", b"_31mx"),
    (b"a\x00b\x07c\x7fd\xc3\xa9", b"a_bc_d__"), (b"\x1b[" + b"9" * 10000, b""), (b"\x1b]" + b"9" * 10000, b""),
])
def test_lesson_control_sequences_never_reach_the_terminal(untrusted: bytes, shown: bytes) -> None:
    assert Plain().feed(untrusted) == shown


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_in_any_pieces_become_plain_text(untrusted: bytes, cut: int) -> None:
    plain = Plain()
    shown = plain.feed(untrusted[:cut]) + plain.feed(untrusted[cut:])
    assert shown == Plain().feed(untrusted)
    assert set(shown) <= set(b"\b\t\n\r") | set(range(0x20, 0x7F))
