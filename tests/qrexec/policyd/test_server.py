"""The policy daemon over its socket: protocol, facts that change, policy that changes, questions, and hostile callers."""
from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.client.real_qubesd import real_qubesd
from tests.patience import PATIENCE
from tests.qrexec.policy_place import FakeAgent, Place, call, send, serving

from cloison.client.connection import Connection
from cloison.qrexec.policyd import judge, system_info
from cloison.qrexec.policyd import server as policyd
from cloison.qrexec.policyd.ask import Agents, qrexec_client
from cloison.qrexec.policyd.server import MAX_UNFINISHED, take_lock
from cloison.runtime.hangup import watch_hangup
from cloison.wire.policy import MAX_REQUEST, Query, encode_query

DENY = "result=deny"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    return Place(tmp_path)


def test_an_allowed_call(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place):
            assert await call(place, "qubes.FeaturesRequest", "dom0") == (
                "user=DEFAULT\nresult=allow\ntarget=dom0\nautostart=True\nrequested_target=dom0")
            place.write("test.S +a work net allow user=root autostart=no\ntest.S * work net allow target=tpl")
            uuid = qubesd.call("tpl", "admin.vm.property.Get", "uuid").decode().rpartition(" ")[2]
            assert await call(place, "test.S+b", "net") == (
                f"user=DEFAULT\nresult=allow\ntarget=tpl\ntarget_uuid=uuid:{uuid}\nautostart=True\nrequested_target=net")
            assert await call(place, "test.S+a", "net") == DENY       # it does not run

    asyncio.run(conversation())
    assert [(entry["verdict"], entry["rule"]) for entry in place.log()] == [
        ("allow", "90-default.policy:10"), ("allow", "30-user.policy:2"), ("deny", "30-user.policy:1")]


def test_a_request_ends_with_an_empty_line_or_with_its_end(place: Place, qubesd: Connection) -> None:
    lines = b"source=work\nintended_target=dom0\nservice_and_arg=qubes.FeaturesRequest"

    async def conversation() -> None:
        async with serving(place):
            for request, end in ((lines, True), (lines + b"\n", True), (lines + b"\n\n", False), (lines + b"\n\nmore", False)):
                assert b"result=allow" in await send(place, request, end=end)

    asyncio.run(conversation())


@pytest.mark.parametrize("request_", [
    b"", b"\n", b"source=work\n\n", b"source=work\nintended_target=dom0\n\n",
    b"source=\nintended_target=\nservice_and_arg=s\n\n", b"source=work\nintended_target=\nservice_and_arg=\n\n",
    b"source=work\nsource=work\nintended_target=\nservice_and_arg=s\n\n",
    b"source=work\nintended_target=\nservice_and_arg=s\ndomain_id=1\n\n",
    b"source=work\nintended_target=\nservice_and_arg=s\nprocess_ident=1\n\n",
    b"source=work\nintended_target=\nservice_and_arg=s\njust_evaluate=1\n\n",
    b"source=work\nintended_target=\nservice_and_arg=s\nassume_yes_for_ask=\n\n",
    b"source=w\xc3\xb6rk\nintended_target=\nservice_and_arg=s\n\n",
    b"source work\n\n", b"\0" * 100 + b"\n\n", b"x" * (MAX_REQUEST + 1),
])
def test_a_malformed_request_gets_no_answer(place: Place, qubesd: Connection, request_: bytes) -> None:
    async def conversation() -> None:
        async with serving(place):
            with contextlib.suppress(ConnectionError):       # what was not read resets the connection
                assert await send(place, request_, end=True) == b""

    asyncio.run(conversation())


def test_qsb_089_lengths_of_each_field(place: Place, qubesd: Connection) -> None:
    """0, 1, max and beyond in each field: a refusal or no answer, and the next call is served."""
    async def conversation() -> None:
        async with serving(place):
            for length in (0, 1, 31, 32, 255, 256, 65_000, 100_000):
                for fields in (("s" * length, "dom0", "qubes.GetDate"), ("work", "d" * length, "nobody.Knows"),
                               ("work", "dom0", "s" * length), ("work", "dom0", "s+" + "a" * length)):
                    request = "source={}\nintended_target={}\nservice_and_arg={}\n\n".format(*fields)
                    answer = await send(place, request.encode())
                    wanted = fields[1:] == ("dom0", "qubes.FeaturesRequest") and length > 0
                    assert answer in (b"", DENY.encode()) or (wanted and b"result=allow" in answer)
            assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")

    asyncio.run(conversation())


def test_qsb_099_a_refusal_tells_nothing(place: Place, qubesd: Connection) -> None:
    """By a rule, by none, by an error, for what exists and what doesn't: the same bytes."""
    async def conversation() -> None:
        async with serving(place):
            answers = {await call(place, service, target) for service in ("qubes.VMShell", "nobody.Knows", "s")
                       for target in ("net", "nothing", "", "@dispvm:net", "@tag:x", "dom0")}
            place.write("broken")
            answers.add(await call(place, "qubes.FeaturesRequest", "dom0"))
            assert answers == {DENY}

    asyncio.run(conversation())


def test_what_may_only_be_evaluated(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place):
            assert await call(place, "qubes.FeaturesRequest", "dom0", just_evaluate=True) == "result=allow"
            assert await call(place, "qubes.Filecopy", "net", just_evaluate=True) == DENY
            assert await call(place, "qubes.Filecopy", "net", just_evaluate=True, assume_yes=True) == "result=allow"
            assert await call(place, "qubes.Filecopy", "dom0", just_evaluate=True, assume_yes=True) == DENY
            assert "target=net" in await call(place, "qubes.Filecopy", "net", assume_yes=True)
            assert await call(place, "qubes.Filecopy", "", assume_yes=True) == DENY

    asyncio.run(conversation())


# -- what changes --------------------------------------------------------------------------------------------------------


def test_a_change_of_the_system_counts_at_once(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        place.write("test.S * @tag:good net allow")
        async with serving(place):
            for _ in range(20):
                assert await call(place, "test.S", "net") == DENY
                await asyncio.to_thread(qubesd.call, "work", "admin.vm.tag.Set", "good")
                assert "result=allow" in await call(place, "test.S", "net")
                await asyncio.to_thread(qubesd.call, "work", "admin.vm.tag.Remove", "good")

    asyncio.run(conversation())


def test_a_name_given_to_another_qube_is_judged_anew(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place):
            await asyncio.to_thread(qubesd.call, "work", "admin.vm.tag.Set", "good")
            place.write("test.S * @tag:good net allow")
            assert "result=allow" in await call(place, "test.S", "net")
            await asyncio.to_thread(qubesd.call, "work", "admin.vm.Remove")
            await asyncio.to_thread(qubesd.call, "dom0", "admin.vm.Create.AppVM", "tpl", b"name=work label=red")
            assert await call(place, "test.S", "net") == DENY

    asyncio.run(conversation())


def test_a_change_of_the_policy_counts_at_once(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place):
            for number in range(20):
                assert await call(place, "test.S", "net") == DENY
                place.write(f"# {number}\ntest.S * work net allow")
                assert "result=allow" in await call(place, "test.S", "net")
                os.unlink(place.user / "30-user.policy")
            (place.runtime / "40-x.policy").write_text("test.S * work net allow")
            assert "result=allow" in await call(place, "test.S", "net")

    asyncio.run(conversation())


def test_a_broken_policy_denies_everything_until_it_is_mended(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place):
            assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")
            place.write("test.S * work net alow", "99-last.policy")
            assert await call(place, "qubes.FeaturesRequest", "dom0") == DENY
            place.write("", "99-last.policy")
            assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")
            (place.user / "UPPER.policy").touch()
            assert await call(place, "qubes.FeaturesRequest", "dom0") == DENY
            (place.user / "UPPER.policy").unlink()
            assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")

    asyncio.run(conversation())
    assert "99-last.policy:1" in place.log()[1]["why"]


def test_without_qubesd_everything_is_denied(place: Place, tmp_path: Path) -> None:
    async def conversation() -> None:
        async with serving(place):
            assert await call(place, "qubes.FeaturesRequest", "dom0") == DENY
            with real_qubesd(tmp_path):
                assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")
            assert await call(place, "qubes.FeaturesRequest", "dom0") == DENY

    asyncio.run(conversation())


@pytest.mark.parametrize("reply", [
    b"", b"0\0", b"0\0[]", b"0\0" + b"[" * 100_000, b'0\0{"domains": 1}', b"2\0QubesException\0\0no\0", b"9", b"0\0\xff"])
def test_facts_of_another_shape_deny(place: Place, reply: bytes) -> None:
    served, done, servers = asyncio.Event(), asyncio.Semaphore(0), list[asyncio.Server]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        facts = b"GetSystemInfo" in await reader.read()
        writer.write(reply if facts else b"1\0\0connection-established\0\0")
        await writer.drain()
        if not facts:
            await served.wait()
        writer.close()
        await writer.wait_closed()
        done.release()

    async def conversation() -> None:
        for name in ("qubesd.sock", "qubesd.internal.sock"):
            servers.append(await asyncio.start_unix_server(serve, place.paths.socket(name)))
        async with serving(place):
            assert await call(place, "qubes.FeaturesRequest", "dom0") == DENY
        served.set()
        for server in servers:
            server.close()
            await done.acquire()

    asyncio.run(conversation())


# -- asking --------------------------------------------------------------------------------------------------------------


def test_a_person_is_asked(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place), FakeAgent(place, b"allow:net") as agent:
            assert "target=net\n" in await call(place, "qubes.Filecopy+x", "tpl")
            (question,) = agent.questions
            assert question == {
                "source": "work", "service": "qubes.Filecopy", "argument": "+x", "targets": ["net", "tpl"],
                "default_target": "", "icons": question["icons"]}
            assert question["icons"]["work"] == "appvm-red"
            assert agent.notices == []

    asyncio.run(conversation())
    assert place.log()[0]["asked"] is True


@pytest.mark.parametrize("answer", [b"deny", b"allow:dom0", b"allow:nothing", b"allow:", b"", b"yes", b"allow:net\0" * 50])
def test_anything_but_an_offered_target_is_a_refusal(place: Place, qubesd: Connection, answer: bytes) -> None:
    async def conversation() -> None:
        async with serving(place), FakeAgent(place, answer):
            assert await call(place, "qubes.Filecopy", "net") == DENY

    asyncio.run(conversation())


def test_no_agent_is_a_refusal(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place):
            assert await call(place, "qubes.Filecopy", "net") == DENY

    asyncio.run(conversation())


def test_nobody_shows_the_qubes_windows(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        await asyncio.to_thread(qubesd.call, "work", "admin.vm.property.Set", "guivm", b"")
        async with serving(place), FakeAgent(place, b"allow:net") as agent:
            assert await call(place, "qubes.Filecopy", "net") == DENY
            assert agent.questions == []

    asyncio.run(conversation())


@pytest.mark.parametrize("change", ["policy", "recreated", "source"])
def test_what_was_chosen_must_still_be_on_offer(place: Place, qubesd: Connection, change: str) -> None:
    def recreate(name: str) -> None:
        qubesd.call(name, "admin.vm.Remove")
        qubesd.call("dom0", "admin.vm.Create.AppVM", "tpl", f"name={name} label=red".encode())

    async def answer(_: dict[str, Any]) -> bytes:
        if change == "policy":
            place.write("qubes.Filecopy * work @anyvm deny")
        else:
            await asyncio.to_thread(recreate, "net" if change == "recreated" else "work")
        return b"allow:net"

    async def conversation() -> None:
        async with serving(place), FakeAgent(place, answer):
            assert await call(place, "qubes.Filecopy", "net") == DENY

    asyncio.run(conversation())
    assert "changed" in place.log()[0]["why"]


def test_a_caller_that_hangs_up_withdraws_its_question(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            asked.set()
            stop = watch_hangup(writer.get_extra_info("socket"), gone.set)
            await gone.wait()
            stop()
            writer.close()

        server = await asyncio.start_unix_server(serve, place.paths.socket("policy-agent.sock"))
        async with serving(place):
            _, writer = await asyncio.open_unix_connection(place.paths.socket("policy.sock"))
            writer.write(b"source=work\nintended_target=net\nservice_and_arg=qubes.Filecopy\n\n")
            await asked.wait()
            writer.close()
            await gone.wait()
        server.close()

    asyncio.run(conversation())


def test_one_qube_has_only_so_many_questions_open(place: Place, qubesd: Connection) -> None:
    """QSB-085: what a qube can make a shared daemon hold is bounded, and another qube is still served."""
    async def conversation() -> None:
        answers = asyncio.Event()

        async def answer(_: dict[str, Any]) -> bytes:
            await answers.wait()
            return b"allow:tpl"

        async with serving(place), FakeAgent(place, answer) as agent:
            calls = [asyncio.create_task(call(place, "qubes.Filecopy", "net")) for _ in range(judge.MAX_QUESTIONS + 3)]
            done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 3:
                done |= (await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED))[0]
                pending -= done
            assert {task.result() for task in done} == {DENY}
            other = asyncio.create_task(call(place, "qubes.Filecopy", "net", source="net"))
            answers.set()
            assert "target=tpl" in await other
            assert all("target=tpl" in text for text in await asyncio.gather(*(set(calls) - done)))
            assert len(agent.questions) == judge.MAX_QUESTIONS + 1

    asyncio.run(conversation())


def test_no_more_calls_wait_than_a_bound_and_the_next_is_refused_at_once(
    place: Place, qubesd: Connection, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policyd, "MAX_WAITING", 2)

    async def conversation() -> None:
        answers = asyncio.Event()

        async def answer(_: dict[str, Any]) -> bytes:
            await answers.wait()
            return b"allow:tpl"

        async with serving(place) as daemon, FakeAgent(place, answer), asyncio.timeout(PATIENCE):
            calls = [asyncio.create_task(call(place, "qubes.Filecopy", "net")) for _ in range(3)]
            done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [DENY] and len(daemon._tasks) == 2
            answers.set()
            assert all("target=tpl" in text for text in await asyncio.gather(*waiting))
            assert "target=tpl" in await call(place, "qubes.Filecopy", "net")

    asyncio.run(conversation())


def test_another_users_programs_are_told_nothing(place: Place, qubesd: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation() -> None:
        async with serving(place) as daemon:
            assert await call(place, "qubes.FeaturesRequest", "dom0") != DENY
            monkeypatch.setattr(policyd.unix, "is_same_user", lambda _stream: False)
            assert await call(place, "qubes.FeaturesRequest", "dom0") == ""
            assert await call(place, "qubes.Filecopy", "net") == ""
            assert not daemon.unfinished and not len(daemon._tasks)
        assert len(place.log()) == 1

    asyncio.run(conversation())


def test_a_fault_of_our_own_is_no_permission(place: Place, qubesd: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def conversation() -> None:
        async with serving(place) as daemon:
            await call(place, "qubes.FeaturesRequest", "dom0")            # facts are there from now on
            with monkeypatch.context() as patch:
                patch.setattr(daemon, "verdict", broken)
                assert await call(place, "qubes.FeaturesRequest", "dom0") == ""
            with monkeypatch.context() as patch:
                patch.setattr(daemon, "judge", broken)
                assert await call(place, "qubes.Filecopy", "net") == ""
            assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")
            assert not daemon.unfinished and not len(daemon._tasks)

    asyncio.run(conversation())


def test_who_is_told(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        place.write("test.Told * work net allow notify=yes\ntest.Quiet * work net deny notify=no\ntest.Loud * work net deny")
        async with serving(place), FakeAgent(place, b"deny") as agent:
            for service in ("test.Told", "test.Quiet", "test.Loud+a", "test.Unknown"):
                await call(place, service, "net")
                await call(place, service, "net", just_evaluate=True)
            assert agent.notices == [
                {"resolution": "allow", "service": "test.Told", "argument": "+", "source": "work", "target": "net"},
                {"resolution": "deny", "service": "test.Loud", "argument": "+a", "source": "work", "target": "net"},
                {"resolution": "deny", "service": "test.Unknown", "argument": "+", "source": "work", "target": "net"}]

    asyncio.run(conversation())


# -- evaluation services -------------------------------------------------------------------------------------------------


async def evaluate(place: Place, service: str, body: bytes, *, caller: str = "net", asked: str = "qubes.FeaturesRequest") -> bytes:
    return await send(place, f"{service}+{asked} {caller} name dom0\0".encode() + body, end=True, at=f"qubes-rpc/{service}")


def test_the_evaluation_services(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place):
            simple = "policy.EvalSimple"
            assert await evaluate(place, simple, b"work\0dom0") == b"result=allow\n"
            assert await evaluate(place, simple, b"work\0net", asked="qubes.Filecopy") == b"result=allow\n"
            assert await evaluate(place, simple, b"work\0net", asked="qubes.VMShell") == b"result=deny\n"
            for body in (b"", b"work", b"work\0", b"\0net", b"work\0net\0", b"w" * 32 + b"\0net", b"work\0" + b"n" * 64,
                         b"work\0a b", b"work\0" + b"n" * 100):
                assert await evaluate(place, simple, body) == b""
            assert await evaluate(place, "policy.EvalGUI", b"work\0net", asked="qubes.Filecopy", caller="tpl") == b""
            for name in ("work", "net"):
                await asyncio.to_thread(qubesd.call, name, "admin.vm.tag.Set", "guivm-tpl")
            assert await evaluate(place, "policy.EvalGUI", b"work\0net", asked="qubes.Filecopy", caller="tpl") == b"result=allow\n"

    asyncio.run(conversation())


# -- hostile and unlucky callers -----------------------------------------------------------------------------------------


def test_idle_callers_do_not_keep_others_out(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place) as daemon:
            with contextlib.ExitStack() as idle:
                for _ in range(MAX_UNFINISHED + 20):
                    sock = idle.enter_context(socket.socket(socket.AF_UNIX))
                    sock.connect(place.paths.socket("policy.sock"))
                    sock.send(b"source=")
                assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")
                assert len(daemon.unfinished) <= MAX_UNFINISHED

    asyncio.run(conversation())


def test_when_descriptors_run_out_callers_wait(
    place: Place, qubesd: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The daemon neither spins nor forgets them: it pauses, and serves them afterwards."""
    async def conversation() -> None:
        async with serving(place):
            assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")
            with socket.socket(socket.AF_UNIX) as caller:
                caller.setblocking(False)
                free = os.open(os.devnull, os.O_RDONLY)      # the lowest number that is free
                os.close(free)
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
                try:
                    caller.connect(place.paths.socket("policy.sock"))
                    caller.send(encode_query(Query("work", "dom0", "qubes.FeaturesRequest")))
                    while "no caller can be accepted" not in caplog.text:       # noqa: ASYNC110 turns of the loop, no time
                        await asyncio.sleep(0)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert b"result=allow" in await asyncio.get_running_loop().sock_recv(caller, 4096)

    monkeypatch.setattr(policyd, "_PAUSE", 0.01)
    asyncio.run(conversation())
    assert caplog.text.count("no caller can be accepted") < 10


def test_one_that_has_ended_accepts_nobody_again_when_its_pause_is_over(place: Place) -> None:
    async def conversation() -> None:
        async with serving(place) as daemon:
            _, listener = daemon._listeners[0]
        daemon._resume(listener, policyd._parse_query, b"")
        assert listener.fileno() < 0

    asyncio.run(conversation())


def test_what_qubes_do_does_not_fill_the_daemons_own_log(
    place: Place, qubesd: Connection, caplog: pytest.LogCaptureFixture,
) -> None:
    """QSB-085: decisions go to the log of calls, which is bounded; nothing else is written at a qube's will."""
    async def conversation() -> None:
        async with serving(place):
            await call(place, "qubes.Filecopy", "net")       # no agent
            await call(place, "nobody.Knows", "net")         # nobody to tell
            place.write("broken")
            await call(place, "qubes.Filecopy", "net")
            await asyncio.to_thread(os.unlink, place.paths.socket("qubesd.internal.sock"))
            await asyncio.to_thread(qubesd.call, "work", "admin.vm.tag.Set", "x")
            await call(place, "qubes.Filecopy", "net")

    with caplog.at_level("INFO"):
        asyncio.run(conversation())
    assert [record for record in caplog.records if record.name.startswith("cloison.qrexec")] == []
    assert len(place.log()) == 4


def test_a_caller_that_goes_away_is_no_trouble(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place) as daemon:
            for text in (b"", b"sour", b"source=work\nintended_target=dom0\nservice_and_arg=qubes.FeaturesRequest\n\n"):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(place.paths.socket("policy.sock"))
                    sock.send(text)
            assert "result=allow" in await call(place, "qubes.FeaturesRequest", "dom0")
            assert not daemon.unfinished

    asyncio.run(conversation())


def test_qsb_087_the_log_is_one_harmless_line_a_call(place: Place, qubesd: Connection) -> None:
    async def conversation() -> None:
        async with serving(place):
            for service in ("a\x1b]52;c;x\x07", "a\r", "a\x00b", "a" * 60_000, "a\x7f", 'a"}'):
                await call(place, service, "\x1b[2J")

    asyncio.run(conversation())
    lines = Path(place.paths.log, "qrexec.log").read_bytes().split(b"\n")
    assert len(lines) == 7
    assert all(byte >= 0x20 and byte < 0x7f for line in lines for byte in line)
    assert max(map(len, lines)) < 1500


# -- the process ---------------------------------------------------------------------------------------------------------


def test_the_process_ends_when_told_and_there_is_one(place: Place) -> None:
    words = [sys.executable, "-P", "-m", "cloison.qrexec.policyd.server"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    held = os.open(place.paths.socket("policyd.lock"), os.O_RDWR | os.O_CREAT)
    try:
        while not os.path.exists(place.paths.socket("policy.sock")):
            assert process.poll() is None
        second = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert second.returncode == 1 and "another" in second.stderr
        process.send_signal(signal.SIGKILL)          # it leaves its sockets; the next one takes them over
        process.wait()
        os.close(take_lock(place.paths))
    finally:
        process.kill()
        process.communicate()
        os.close(held)
    fd = take_lock(place.paths)
    with open(place.paths.socket("policyd.lock")) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)

    async def again() -> None:
        async with serving(place):
            assert await call(place, "s", "net") == DENY

    asyncio.run(again())
    assert not os.path.exists(place.paths.socket("policy.sock"))


# -- a GUI qube ----------------------------------------------------------------------------------------------------------


def calling(code: str) -> Any:
    """Stands for the program that calls a service in a qube."""
    def command(gui_qube: str, service: str) -> list[str]:
        return [sys.executable, "-I", "-c", f"import json, sys\ngui_qube, service = {gui_qube!r}, {service!r}\n{code}"]

    return command


ANSWERS = "question = json.load(sys.stdin)\nprint('allow:tpl' if (gui_qube, service) == ('net', 'policy.Ask') else 'deny', end='')"


@pytest.mark.parametrize(("code", "allowed"), [
    (ANSWERS, True), (f"{ANSWERS}\nsys.exit(1)", False), ("print('deny')", False), ("sys.exit(0)", False),
    ("print('allow:' + 'x' * 99999)", False), ("import os\nos.abort()", False)])
def test_a_question_in_a_gui_qube(place: Place, qubesd: Connection, code: str, allowed: bool) -> None:
    async def conversation() -> None:
        await asyncio.to_thread(qubesd.call, "work", "admin.vm.property.Set", "guivm", b"net")
        async with serving(place, Agents(place.paths, calling(code))):
            assert ("target=tpl\n" in await call(place, "qubes.Filecopy", "net")) is allowed

    asyncio.run(conversation())


def test_the_gui_qube_is_called_as_the_host(place: Place) -> None:
    command = qrexec_client("sys-gui", "policy.Ask")
    assert command[-3:] == ["-d", "sys-gui", "DEFAULT:QUBESRPC policy.Ask dom0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "nothing answers" in done.stderr) == (125, True)


def test_a_person_who_does_not_answer_refuses(place: Place, qubesd: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: dict[str, Any]) -> bytes:
        await withdrawn.wait()
        return b"allow:net"

    async def conversation() -> None:
        async with serving(place), FakeAgent(place, never):
            assert await call(place, "qubes.Filecopy", "net") == DENY
            withdrawn.set()

    withdrawn = asyncio.Event()
    monkeypatch.setattr(Agents.ask, "__defaults__", (0.01,))
    asyncio.run(conversation())
    assert "in time" in place.log()[0]["why"]


def test_a_qubesd_that_does_not_answer_denies(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation() -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(place.paths.socket("qubesd.sock"))
            silent.listen()
            async with serving(place):
                assert await call(place, "qubes.FeaturesRequest", "dom0") == DENY

    monkeypatch.setattr(system_info, "TIMEOUT", 0.01)
    asyncio.run(conversation())


def test_qsb_084_absent_and_denied_are_the_same_work(place: Place, qubesd: Connection) -> None:
    """Neither the answer nor who is told depends on whether the target exists."""
    async def conversation() -> None:
        place.write("test.S * work @anyvm deny")
        async with serving(place), FakeAgent(place, b"deny") as agent:
            assert {await call(place, "test.S", target) for target in ("net", "nothing")} == {DENY}
            assert [notice["target"] for notice in agent.notices] == ["net", "nothing"]

    asyncio.run(conversation())
