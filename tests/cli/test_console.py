"""qvm-console-dispvm: the console's bytes go to a disposable and nowhere else; its keys come back; one person at a time."""
from __future__ import annotations

import fcntl
import os
import socket
import tty
from collections.abc import Iterator

import pytest
from fake_qubesd import FakeQubesd, FakeWarden
from tests.patience import PATIENCE

from cloison.cli import qvm_console_dispvm
from cloison.wire import admin
from cloison.wire import qrexec as wire


@pytest.fixture
def console(qubesd: FakeQubesd) -> Iterator[tuple[int, int]]:
    """Both ends of the terminal that qubesd names; the first is the qube's."""
    qube, person = os.openpty()
    tty.setraw(person)
    path = os.ttyname(person).encode()
    qubesd.qubes["work"] |= {"state": "Running", "management_dispvm": "debian-12"}
    qubesd.answers["admin.vm.Console"] = lambda _, __: admin.ok(path)
    yield qube, person
    os.close(qube)
    os.close(person)


def test_the_disposable_shows_and_types(
    console: tuple[int, int], qubesd: FakeQubesd, warden: FakeWarden, capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    qube, _ = console
    shown = bytearray()

    def terminal(channel: socket.socket) -> None:
        """The service in the disposable: shows what comes until the prompt is there, types a name, is closed."""
        decoder = wire.Decoder(wire.FROM_CALLER)
        channel.sendall(wire.hello(wire.VERSION))
        while not shown.endswith(b"login: "):
            decoder.feed(channel.recv(65536))
            while message := decoder.next_message():
                if isinstance(message, wire.Data):
                    shown.extend(message.payload)
        channel.sendall(b"".join(wire.data(wire.STDOUT, b"root\n")) + wire.end_of_stream(wire.STDOUT) + wire.exit_code(0))

    warden.script = terminal
    os.write(qube, b"\033[2Jwork login: ")
    assert qvm_console_dispvm.main(["-q", "work"]) == 0
    assert bytes(shown) == b"\033[2Jwork login: "
    assert os.read(qube, 100) == b"root\n"
    assert capfdbinary.readouterr().out == b""           # nothing of it reached the host's terminal
    assert "QUBESRPC qubes.ShowInTerminal+ dom0" in str(warden.commands)
    assert qubesd.ended_leases.wait(PATIENCE)            # the disposable goes with its window


def test_one_person_at_a_time(console: tuple[int, int], warden: FakeWarden, capsys: pytest.CaptureFixture[str]) -> None:
    fcntl.flock(console[1], fcntl.LOCK_EX)
    assert qvm_console_dispvm.main(["-q", "work"]) == 1
    assert "somebody is connected" in capsys.readouterr().err
    assert warden.commands == []


def test_a_disposable_without_a_terminal(
    console: tuple[int, int], warden: FakeWarden, capsys: pytest.CaptureFixture[str],
) -> None:
    warden.script = lambda channel: channel.sendall(wire.hello(wire.VERSION) + wire.exit_code(127))
    assert qvm_console_dispvm.main(["-q", "work"]) == 1
    assert "disp1 has no service qubes.ShowInTerminal" in capsys.readouterr().err


def test_what_is_missing_is_said(console: tuple[int, int], qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.qubes["work"]["management_dispvm"] = ""
    assert qvm_console_dispvm.main(["work"]) == 1
    assert "no management disposable" in capsys.readouterr().err
    qubesd.qubes["work"]["state"] = "Halted"
    assert qvm_console_dispvm.main(["work"]) == 1
    assert "does not run" in capsys.readouterr().err
    assert ("work", "admin.vm.Start", "", b"") not in qubesd.calls
    qvm_console_dispvm.main(["-q", "--autostart", "work"])
    assert ("work", "admin.vm.Start", "", b"") in qubesd.calls
