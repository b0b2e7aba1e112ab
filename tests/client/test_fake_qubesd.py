"""The fakes of the tools' tests let go of whoever leaves, whenever that is: no thread is left, raises or waits."""
from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import fake_qubesd
import pytest
from fake_qubesd import FakeQubesd, FakeWarden, listening
from tests.patience import PATIENCE

from cloison.wire import admin
from cloison.wire import qrexec as wire

CALL = admin.encode_request(admin.Request("admin.vm.List", "", "dom0", "name", "dom0", b""))
LEASE = admin.encode_request(admin.Request("cloison.Disposable", "", "dom0", "name", "dom0", b""))


def caller(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


@pytest.mark.parametrize("said", [b"", CALL[:1], CALL[:-1], CALL, LEASE, b"no request\0", b"\xff\0"])
@pytest.mark.parametrize("leave", ["closed", "half-closed", "killed before it reads"])
def test_qubesd(tmp_path: Path, said: bytes, leave: str) -> None:
    fake = FakeQubesd(tmp_path)
    with listening(tmp_path / "qubesd.sock", fake.serve):
        with caller(tmp_path / "qubesd.sock") as sock:
            sock.sendall(said)
            if leave != "closed":
                sock.shutdown(socket.SHUT_WR)
            if leave == "half-closed" and said != LEASE:     # a lease lasts
                while sock.recv(4096):
                    pass
        assert said != LEASE or fake.ended_leases.wait(PATIENCE)


def request(command: str) -> bytes:
    return wire.hello(wire.SOCKET_VERSION) + wire.exec_command(wire.EXEC_CMDLINE, 0, 0, command)


@pytest.mark.parametrize("cut", [0, 1, 12, 20, -1])
@pytest.mark.parametrize("with_channel", [True, False])
def test_a_warden_whose_caller_goes_before_it_has_asked(tmp_path: Path, cut: int, with_channel: bool) -> None:
    fake = FakeWarden()
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with ours, theirs, listening(tmp_path / "qrexec.work", fake.serve):
        with caller(tmp_path / "qrexec.work") as sock:
            if cut:
                socket.send_fds(sock, [request("user:true")[:cut]], [theirs.fileno()] if with_channel else [])
        theirs.close()
        assert ours.recv(100) == b""     # nobody keeps the other end
    assert fake.commands == []


def told_to_ask_and_went(path: Path, command: str, said: bytes, until: Callable[[socket.socket], None]) -> None:
    """A call whose caller goes when `until` returns."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with ours, theirs, caller(path) as sock:
        socket.send_fds(sock, [request(command)], [theirs.fileno()])
        theirs.close()
        ours.sendall(wire.hello(wire.VERSION) + said)
        until(ours)


def at_once(_: socket.socket) -> None:
    """Goes with everything unread."""


def when_it_speaks(channel: socket.socket) -> None:
    heard = b""
    while b"ready" not in heard:
        heard += channel.recv(4096)


@pytest.mark.parametrize("command", [
    "cat", "true", "echo ready; sleep 600", "trap '' HUP TERM; echo ready; while :; do sleep 600; done", "exec >&- 2>&-; sleep 600",
    "echo ready; yes", "echo ready; trap '' HUP; yes", "echo ready; sleep 600 < /dev/null & exec sleep 600",
])
@pytest.mark.parametrize("said", [b"", b"".join(b"".join(wire.data(wire.STDIN, bytes(1 << 15))) for _ in range(6))])
@pytest.mark.parametrize("until", [at_once, when_it_speaks])
def test_a_warden_whose_caller_goes_while_its_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: bytes, until: Callable[[socket.socket], None],
) -> None:
    if until is when_it_speaks and "ready" not in command:
        command = f"echo ready; {command}"
    for patience in ("GRACE", "LAST_WORDS"):
        monkeypatch.setattr(fake_qubesd, patience, 0.1)
    fake = FakeWarden()
    with listening(tmp_path / "qrexec.work", fake.serve):
        told_to_ask_and_went(tmp_path / "qrexec.work", f"user:{command}", said, until)
    assert set(fake.signals) <= {signal.SIGHUP, signal.SIGKILL}


@pytest.mark.parametrize("holds", ["qubesd", "warden"])
def test_a_connection_that_a_test_holds_open_is_told_and_keeps_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: str,
) -> None:
    monkeypatch.setattr(fake_qubesd, "PATIENCE", 0.1)
    begun, fake = threading.Event(), FakeQubesd(tmp_path) if holds == "qubesd" else FakeWarden()

    def serve(sock: socket.socket) -> None:
        begun.set()
        fake.serve(sock)

    with pytest.raises(AssertionError, match="held open"), listening(tmp_path / "s", serve):
        sock = caller(tmp_path / "s")
        assert begun.wait(PATIENCE)
    with sock:                           # what served it is gone
        left = sock.recv(4096)
        assert left == b"" or sock.recv(4096) == b""
    assert not os.path.exists(tmp_path / "s")
