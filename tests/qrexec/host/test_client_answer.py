"""`qrexec-client -c` piece by piece: whom it understands, whom it tells in which order, and how long a disposable lives."""
from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from tests.patience import PATIENCE

from cloison.errors import CloisonError
from cloison.qrexec.host import client_answer, client_main
from cloison.qrexec.host.client_main import EXEC_CMDLINE, SERVICE_CONNECT, Failure, Options
from cloison.wire.qrexec import Command, request_id

UUID = "uuid:12345678-1234-4234-8234-123456789abc"


class Daemons:
    """Those of all qubes: what they are asked, one after the other. A call is over soon after its caller was told of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[object] = []
        self.answered: socket.socket | None = None
        self._called: socket.socket | None = None
        self.refuses: str | None = None
        monkeypatch.setattr(client_main, "request", self._request)
        monkeypatch.setattr(client_answer.qubesd_client, "Disposable", self._disposable)

    def _request(self, path: str, kind: int, params: tuple[int, int], body: bytes) -> tuple[socket.socket, int, int]:
        self.asked.append((os.path.basename(path), kind, params, body))
        if path == self.refuses:
            raise Failure("refused")
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        if kind == EXEC_CMDLINE:
            self._called = theirs
            theirs.send(b"said meanwhile")
        else:
            self.answered = ours
            theirs.close()
            self._ending = threading.Timer(0.01, self.over)
            self._ending.start()
        return ours, 9, 600

    def ended(self) -> None:
        """Nobody may have waited for it."""
        self._ending.join()

    def over(self) -> None:
        assert self._called is not None
        self.asked.append("over")
        self._called.close()

    def _disposable(self, _qubesd: str, template: str) -> Daemons:
        self.asked.append(("disposable", template))
        return self

    target = "disp1"

    async def __aenter__(self) -> Daemons:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.asked.append("killed")


EXEC = ("qrexec.vault", EXEC_CMDLINE, (7, 0), b"user:QUBESRPC s work\0")
ANSWER = ("qrexec.work", SERVICE_CONNECT, (9, 600), request_id("SOCKET9"))


def run(folder: Path, target: str, *words: str) -> int:
    return client_answer.run(Options(["-c", "SOCKET9,work,7", *words]), target, "user:QUBESRPC s work", str(folder))


def test_the_target_is_called_and_then_the_caller_is_told_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons = Daemons(monkeypatch)
    assert run(tmp_path, "vault") == 0
    daemons.ended()
    assert daemons.asked == [EXEC, ANSWER, "over"]
    assert daemons.answered is not None and daemons.answered.fileno() < 0


def test_it_waits_for_the_end_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons = Daemons(monkeypatch)
    assert run(tmp_path, "vault", "-W") == 0
    assert daemons.asked == [EXEC, ANSWER, "over"]


def test_a_disposable_lives_until_the_call_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons = Daemons(monkeypatch)
    assert run(tmp_path, "@dispvm:default-dvm") == 0
    assert daemons.asked == [("disposable", "default-dvm"), ("qrexec.disp1", *EXEC[1:]), ANSWER, "over", "killed"]


def test_a_target_that_refuses_is_nothing_to_tell_the_caller_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons = Daemons(monkeypatch)
    daemons.refuses = str(tmp_path / "qrexec.vault")
    with pytest.raises(Failure, match="refused"):
        run(tmp_path, "vault")
    assert daemons.asked == [EXEC]
    daemons.refuses = str(tmp_path / "qrexec.disp1")
    with pytest.raises(Failure, match="refused"):
        run(tmp_path, "@dispvm:default-dvm")
    assert daemons.asked[-1] == "killed"


@pytest.mark.parametrize("name", ["work", UUID])
def test_who_has_asked(name: str) -> None:
    assert client_answer._origin(f"SOCKET9,{name},7") == (request_id("SOCKET9"), name, 7)


@pytest.mark.parametrize("text", [
    "", "SOCKET9", "SOCKET9,work", "SOCKET9,work,7,8", "SOCKET9,work,x", "SOCKET9,../x,7", "SOCKET9,,7",
    "x" * 32 + ",work,7", "SOCKET9,uuid:x,7",
])
def test_who_can_not_have_asked(text: str) -> None:
    with pytest.raises(Failure, match="-c needs"):
        client_answer._origin(text)


@pytest.mark.parametrize(("line", "command"), [
    ("QUBESRPC s+a work name dom0", Command("", service="s", argument="a", source="work", target_type="name", target="dom0")),
    ("nogui:QUBESRPC s work keyword adminvm",
     Command("", nogui=True, service="s", source="work", target_type="keyword", target="adminvm")),
    ("true; false", Command("", command="true; false")), ("QUBESRPC", Command("", command="QUBESRPC")),
    ("QUBESRPC s work", None), ("QUBESRPC ../s work name dom0", None), ("nogui:QUBESRPC s", None),
])
def test_what_the_host_is_to_do(line: str, command: Command | None) -> None:
    assert client_answer._host_command(line) == command


# -- the host calls itself -------------------------------------------------------------------------------------------------


class Became(Exception):
    """This program is another one now."""


@pytest.fixture
def rpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def execve(path: str, argv: list[str], environ: dict[str, str]) -> NoReturn:
        raise Became(path, argv, environ)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path))
    monkeypatch.setenv("OURS", "too")
    (tmp_path / "test.S").write_text("#!/bin/sh\n")
    (tmp_path / "test.S").chmod(0o755)
    (tmp_path / "test.Plain").write_text("")
    return tmp_path


@pytest.mark.parametrize(("call", "argv"), [
    ("test.S", []), ("test.S+", []), ("test.S+a+b", ["a+b"]), ("test.S+x", ["x"]),
])
@pytest.mark.parametrize("target", ["", " name dom0"])
def test_a_service_takes_the_programs_place(rpc: Path, call: str, argv: list[str], target: str) -> None:
    with pytest.raises(Became) as became:
        client_answer.run(Options([]), "dom0", f"DEFAULT:QUBESRPC {call} dom0{target}", "")
    path, words, environ = became.value.args
    assert path == str(rpc / "test.S") and words == [path, *argv]
    assert environ["QREXEC_REMOTE_DOMAIN"] == "dom0" and environ["QREXEC_SERVICE_FULL_NAME"] == call
    assert environ["OURS"] == "too" and "QREXEC_AGENT_PID" not in environ


@pytest.mark.parametrize("line", [
    "root:QUBESRPC test.S dom0", "QUBESRPC test.S dom0", ":QUBESRPC test.S dom0", "DEFAULT:true", "DEFAULT:QUBESRPC test.S",
    "DEFAULT:QUBESRPC test.Socket dom0", "DEFAULT:QUBESRPC a/b dom0",
])
def test_what_takes_no_place(rpc: Path, line: str) -> None:
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(rpc / "test.Socket"))
        with pytest.raises(Failure):
            client_answer.run(Options([]), "dom0", line, "")


@pytest.mark.parametrize(("service", "status"), [("test.None", 127), ("test.Plain", 125)])
def test_a_service_that_can_not_be_started_is_a_status(
    rpc: Path, capsys: pytest.CaptureFixture[str], service: str, status: int,
) -> None:
    with pytest.raises(SystemExit) as ended:
        client_answer.run(Options([]), "dom0", f"DEFAULT:QUBESRPC {service} dom0", "")
    assert ended.value.code == status and capsys.readouterr().err.startswith("qrexec-client: ")


@pytest.mark.parametrize("error", [None, CloisonError("it is gone"), OSError("no qubesd")])
def test_a_kill_that_fails_is_told_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception | None,
) -> None:
    asked: list[tuple[str, str]] = []

    async def call(_path: str, dest: str, method: str) -> str:
        asked.append((dest, method))
        if error is not None:
            raise error
        return ""

    monkeypatch.setattr(client_answer.qubesd_client, "call", call)
    client_answer.kill("work")
    assert asked == [("work", "admin.vm.Kill")]
    assert capsys.readouterr().err == ("" if error is None else f"qrexec-client: work can't be killed: {error}\n")
