"""The deprecated form of the policy program, which does what it allows: a process between daemons and the real qubesd."""
from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.qrexec.policy_place import Place
from tests.qrexec.served_qube import USER, Qube
from tests.runtime.ports import Recorder

from cloison.client.connection import Connection
from cloison.errors import CloisonError
from cloison.policy.evaluate import Response
from cloison.qrexec import call_log
from cloison.qrexec.policyd import policy_exec
from cloison.qrexec.policyd.policy_call import Caller, command
from cloison.runtime.paths import Paths
from cloison.runtime.port import Handler
from cloison.wire import qrexec
from cloison.wire.mux import Address
from cloison.wire.policy import Query

A, B = 7, 9
IDENT = "SOCKET9"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("rpc", "vchan"):
        (tmp_path / name).mkdir()
    service = tmp_path / "rpc" / "test.Say"
    service.write_text('#!/bin/sh\necho "$QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_FULL_NAME $QREXEC_REQUESTED_TARGET"; cat\n')
    service.chmod(0o755)
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path / "rpc"))
    monkeypatch.setenv("VCHAN_SOCKET_DIR", str(tmp_path / "vchan"))
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    return Place(tmp_path)


async def program(*words: str) -> tuple[int | None, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "cloison.qrexec.policyd.policy_exec", *words, stdin=-3, stdout=-1, stderr=-1)
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    return process.returncode, out, err


async def conversation(place: Place, uuid: str, service: str, target: str) -> tuple[list[str], bytes]:
    """What the agent of a calling qube hears of its request, and what the service says to it."""
    folder, vchans = Path(place.paths.qubes), Path(os.environ["VCHAN_SOCKET_DIR"])
    folder.mkdir(exist_ok=True)
    os.symlink("qrexec.net", folder / f"qrexec.uuid:{uuid}")      # as the real daemon of that qube has it
    heard: list[str] = []
    with Qube(folder, "work", A, scripted=True, vchans=vchans) as work, Qube(folder, "net", B, vchans=vchans):
        opened: list[Recorder] = []
        others = work.guest.accept

        def accept(channel: int, address: Address) -> Handler | None:
            if address.port == qrexec.CONTROL_PORT:
                return others(channel, address)
            opened.append(Recorder(work.guest.port, channel))
            return opened[-1]

        work.guest.accept = accept
        work.daemon.answerable = lambda ident: ident == qrexec.request_id(IDENT)
        control = await work.scripted_control()
        control.send(qrexec.hello(4))
        running = asyncio.ensure_future(program(str(A), "work", target, service, IDENT))
        await work.guest.until(lambda: bool(opened))
        [data] = opened
        data.send(qrexec.hello(4) + b"".join(qrexec.data(qrexec.STDIN, b"hello")) + qrexec.end_of_stream(qrexec.STDIN))
        await data.until_ended()
        assert await running == (0, b"", b"")
        decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        decoder.feed(bytes(control.got))
        while (message := decoder.next_message()) is not None:
            heard.append(type(message).__name__)
        decoder = qrexec.Decoder(qrexec.FROM_SERVICE)
        decoder.feed(bytes(data.got))
        said = b""
        while (message := decoder.next_message()) is not None:
            said += message.payload if isinstance(message, qrexec.Data) else b""
    return heard, said


@pytest.mark.parametrize(("target", "requested"), [("net", b""), ("dom0", b"dom0"), ("@adminvm", b"")])
def test_what_is_allowed_is_done(place: Place, qubesd: Connection, target: str, requested: bytes) -> None:
    """A halted target is started first; the caller is told where its data comes from, once."""
    place.write("test.Say * work net allow\ntest.Say * work @adminvm allow\n")
    uuid = qubesd.call("net", "admin.vm.property.Get", "uuid").decode().rpartition(" ")[2]
    heard, said = asyncio.run(conversation(place, uuid, "test.Say+arg", target))
    assert (heard, said) == (["Hello", "ServiceConnect"], b"work test.Say+arg " + requested + b"\nhello")
    state = dict(word.split("=") for word in qubesd.call("net", "admin.vm.List").decode().split() if "=" in word)["state"]
    assert (state == "Running") is (target == "net")


@pytest.mark.parametrize("words", [
    ("7", "work", "net", "test.Say", IDENT), ("7", "work", "dom0", "test.Other", IDENT),
    ("7", "nobody", "net", "test.Say", IDENT),
])
def test_what_is_not_allowed_touches_nobody(place: Place, qubesd: Connection, words: tuple[str, ...]) -> None:
    """There is no daemon here: whatever was tried would end with another status."""
    place.write("test.Say * work dom0 allow\n")
    assert asyncio.run(program(*words)) == (1, b"", b"")
    assert [entry["verdict"] for entry in place.log()] == ["deny"]


@pytest.mark.parametrize("words", [
    ("0", "work", "dom0", "test.Say", IDENT), ("4294967296", "work", "dom0", "test.Say", IDENT),
    ("x", "work", "dom0", "test.Say", IDENT), ("7", "work", "dom0", "test.Say", "x" * 32),
    ("7", "work", "dom0", "test.Say", "a b/"), ("7", "work", "dom0", "test.Say", ""),
    ("7", "work", "dom0", "test.Say+a b", IDENT), ("7", "work,x", "dom0", "test.Say", IDENT),
])
def test_words_that_no_daemon_says_are_refused(
    place: Place, qubesd: Connection, words: tuple[str, ...], capsys: pytest.CaptureFixture[str],
) -> None:
    place.write("test.Say * @anyvm dom0 allow\n")
    assert policy_exec.main(["--", *words]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [[], ["work"], ["work", "net"], ["7", "work", "net", "test.Say"], ["7"] * 6])
def test_another_number_of_words_is_a_mistake(place: Place, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        policy_exec.main(words)
    assert ended.value.code == 2


def test_only_evaluating_does_nothing(place: Place, qubesd: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    place.write("test.Say * work dom0 allow\n")
    assert policy_exec.main(["--just-evaluate", "7", "work", "dom0", "test.Say", IDENT]) == 0
    assert policy_exec.main(["--just-evaluate", "7", "work", "net", "test.Say", IDENT]) == 1
    assert capsys.readouterr().out == ""


def test_the_first_program_of_an_installation_makes_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path / "new"))
    assert policy_exec.main(["--", "work", "dom0", "test.Say"]) == 0
    assert capsys.readouterr().out == "result=deny\n"
    (entry,) = call_log.recent(call_log.path(Paths.from_environment()))
    assert entry["verdict"] == "deny" and "qubesd can't be asked" in entry["why"]


def test_the_words_of_the_answer_count() -> None:
    """Those of policy, not those of the request; a disposable is qrexec-client's to have, if it may be started at all."""
    caller, query = Caller(A, IDENT), Query("work", "@dispvm", "test.Say")
    relayed = Response("root", "relay", None, True, "far", "transport+far+test.Say", "far-work")
    assert command(relayed, query, caller)[-6:] == [
        "-d", "relay", "-c", f"{IDENT},work,7", "--", "root:QUBESRPC transport+far+test.Say far-work"]
    uuid = "uuid:00000000-0000-4000-8000-000000000001"
    disposable = Response(USER, "@dispvm:tpl", f"@dispvm:{uuid}", True, "@dispvm", None, None)
    assert command(disposable, query, caller)[-6:] == [
        "-d", f"@dispvm:{uuid}", "-c", f"{IDENT},work,7", "--", f"{USER}:QUBESRPC test.Say+ work"]
    with pytest.raises(CloisonError, match="without being started"):
        command(disposable._replace(autostart=False), query, caller)
