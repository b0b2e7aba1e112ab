"""Calls out of a qube: from the trigger to the service on the host, in another qube or in a disposable; and every way to fail."""
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.qrexec.served_qube import USER, Qube, Result
from tests.runtime.ports import PATIENCE, News, Recorder

from cloison.qrexec.call_log import CallLog
from cloison.qrexec.host import outgoing
from cloison.qrexec.host.budget import BURST, CROWD_BURST, DISPOSABLES, FEW, Budget
from cloison.qrexec.host.outgoing import AT_ONCE, GRACE, MAX_ASKING, MAX_ENDED, MAX_PENDING, Host, Outgoing
from cloison.qrexec.host.programs import Programs
from cloison.runtime.port import Handler
from cloison.wire import admin, qrexec
from cloison.wire.mux import Address

A, B = 7, 9
ALLOW = f"user={USER}\nresult=allow\ntarget=%s\nautostart=%s\nrequested_target=%s"
SERVICES = {
    "test.Cat": "#!/bin/sh\nexec cat\n",
    "test.Env": "#!/bin/sh\nenv | grep '^QREXEC_' | grep -v _PATH | grep -v _PID | sort\necho \"$#:$1\"\necho err >&2\nexit 3\n",
}


def allow(target: str, *, autostart: bool = False, requested: str = "wanted", **more: str) -> str:
    return "\n".join([ALLOW % (target, autostart, requested), *(f"{key}={value}" for key, value in more.items())])


class FakeServer(News):
    """One answer per connection: a policy daemon, or qubesd. `answer` gets the whole request."""

    def __init__(self, path: Path, answer: Callable[[bytes], Awaitable[bytes | None]], *, end: bytes) -> None:
        super().__init__()
        self._path, self._answer, self._end = path, answer, end
        self.heard: list[bytes] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeServer:
        self._server = await asyncio.start_unix_server(self._accept, str(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.sleep(0)           # transports close in a turn of the loop

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                request = await (reader.readuntil(self._end) if self._end else reader.read())
                self.heard.append(request)
                self.tell()
                writer.write(await self._answer(request) or b"")
                await writer.drain()
            finally:
                writer.close()
                await writer.wait_closed()


class Log(CallLog):
    """It tells of what it writes."""

    def __init__(self, path: str, written: News) -> None:
        super().__init__(path)
        self._written = written

    def write(self, **entry: object) -> None:
        super().write(**entry)
        self._written.tell()


class Place:
    """A folder with everything a daemon needs; `policy` is what the policy daemon answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = "result=deny"
        self.qubesd: Callable[[bytes], Awaitable[bytes | None]] = self._refuse
        self.log = folder / "qrexec.log"
        self.server = FakeServer(folder / "policy.sock", self._judge, end=b"\n\n")
        self.logged = News()
        self.host = Host(str(folder / "policy.sock"), None, str(folder / "qubesd.sock"), Log(str(self.log), self.logged))

    async def _judge(self, _request: bytes) -> bytes:
        return self.policy.encode()

    def deny_after(self, decided: asyncio.Event) -> None:
        """Every query waits for that."""
        async def later(_request: bytes) -> bytes:
            await decided.wait()
            return b"result=deny"

        self.server = FakeServer(self.folder / "policy.sock", later, end=b"\n\n")

    async def _refuse(self, _request: bytes) -> bytes:
        return admin.exception("QubesException", "no")

    def entries(self) -> list[dict[str, object]]:
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]


class Caller:
    """A program in a scripted qube that asks for calls."""

    def __init__(self, qube: Qube, control: Recorder, calls: Outgoing) -> None:
        self.qube, self.control, self.calls = qube, control, calls
        self._decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        self._seen = 0
        self.answers: list[qrexec.Message] = []
        self.channels: dict[tuple[int, int], Data] = {}      # that were opened to us, by peer and port
        self._accept_others, qube.guest.accept = qube.guest.accept, self._accept

    def _accept(self, channel: int, address: Address) -> Handler | None:
        """As an agent does that listens since it was told: here for all, since a test takes its turns between messages."""
        if address.port == qrexec.CONTROL_PORT:
            return self._accept_others(channel, address)
        return self.expect(address.client, address.port).bind(channel)

    async def answer(self) -> qrexec.Message:
        """The daemon's next message after its hello."""
        while True:
            self._decoder.feed(bytes(self.control.got[self._seen:]))
            self._seen = len(self.control.got)
            while (message := self._decoder.next_message()) is not None:
                if not isinstance(message, qrexec.Hello):
                    self.answers.append(message)
            if self.answers:
                return self.answers.pop(0)
            await self.control.heard(self._seen + 1)

    def ask(self, service: str, target: str = "wanted", ident: str = "SOCKET9") -> None:
        self.control.send(qrexec.trigger_service4("", target, qrexec.request_id(ident), service))

    def expect(self, peer: int, port: int) -> Data:
        return self.channels.setdefault((peer, port), Data(self.qube))

    async def call(self, service: str, stdin: bytes = b"", ident: str = "SOCKET9", target: str = "wanted") -> Result | None:
        """A whole call; None when it is refused."""
        self.ask(service, target, ident)
        answer = await self.answer()
        if isinstance(answer, qrexec.ServiceRefused):
            assert answer.request_id == qrexec.request_id(ident)
            return None
        assert isinstance(answer, qrexec.ServiceConnect) and answer.request_id == qrexec.request_id(ident)
        result = await self.expect(answer.domain, answer.port).result(stdin)
        del self.channels[answer.domain, answer.port]
        self.control.send(qrexec.connection_terminated(answer.domain, answer.port))
        return result


class Data(News):
    """The caller's end of a data channel, which the qube serves as vchan server."""

    def __init__(self, qube: Qube) -> None:
        super().__init__()
        self._port = qube.guest.port
        self.recorder: Recorder | None = None

    def bind(self, channel: int) -> Recorder:
        self.recorder = Recorder(self._port, channel)
        self.tell()
        return self.recorder

    async def result(self, stdin: bytes) -> Result:
        await self.until(lambda: self.recorder is not None)
        assert self.recorder is not None
        chunks = b"".join(qrexec.data(qrexec.STDIN, stdin))
        self.recorder.send(qrexec.hello(4) + chunks + qrexec.end_of_stream(qrexec.STDIN))
        recorder = self.recorder
        await recorder.until(lambda: recorder.ended)
        decoder = qrexec.Decoder(qrexec.FROM_SERVICE)
        decoder.feed(bytes(recorder.got))
        streams = {qrexec.STDOUT: b"", qrexec.STDERR: b""}
        status = None
        while (message := decoder.next_message()) is not None:
            if isinstance(message, qrexec.Data):
                streams[message.kind] += message.payload
            elif isinstance(message, qrexec.Exit):
                status = message.status
        return Result(streams[qrexec.STDOUT], streams[qrexec.STDERR], status)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    rpc = tmp_path / "rpc"
    rpc.mkdir()
    for name, text in SERVICES.items():
        (rpc / name).write_text(text)
        (rpc / name).chmod(0o755)
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(rpc))
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path / "rpc-config"))
    yield Place(tmp_path)


def with_caller(
    place: Place, work: Callable[[Caller], Awaitable[None]], *, policy: bool = True, at_once: float = AT_ONCE,
    behind: Callable[[float], None] = lambda _seconds: None, disposables: int = DISPOSABLES, grace: float = GRACE,
    programs: Programs | None = None,
) -> None:
    async def run() -> None:
        with Qube(place.folder, "work", A, scripted=True) as qube:
            calls = Outgoing(qube.daemon, place.host, Budget(disposables, programs), behind=behind, at_once=at_once, grace=grace)
            control = await qube.scripted_control()
            control.send(qrexec.hello(4))
            async with contextlib.AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
                stack.push_async_callback(calls.close)
                if policy:
                    await stack.enter_async_context(place.server)
                await work(Caller(qube, control, calls))
        place.host.log.close()

    asyncio.run(run())


# -- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [
    "result=deny", "", "result=allow", "result=maybe", allow("dom0") + "\nuser=root", "x" * 5000, "result=deny\ntarget=dom0",
    allow("dom0").replace("False", "no"), allow("../../etc"), allow("@dispvm:x"), allow("@dispvm:../x", autostart=True), "\0",
    allow("nowhere"), allow("nowhere", autostart=True), allow("dom0", requested=""), allow("dom0", service="a/b+"),
])
def test_whatever_is_no_permission_refuses(place: Place, answer: str) -> None:
    place.policy = answer

    async def work(caller: Caller) -> None:
        async with FakeServer(place.folder / "qubesd.sock", place.qubesd, end=b""):
            assert await caller.call("test.Cat") is None

    with_caller(place, work)


def test_no_policy_daemon_refuses(place: Place) -> None:
    async def work(caller: Caller) -> None:
        assert await caller.call("test.Cat") is None

    with_caller(place, work, policy=False)
    assert "can't be asked" in str(place.entries()[0]["outcome"])


def test_policy_is_asked_with_the_names_as_they_were_sanitised(place: Place) -> None:
    """QSB-038: no `$` and no separator of a shell or of the policy's protocol is left when anybody decides."""
    async def work(caller: Caller) -> None:
        trigger = qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE4, 160 + 9) + b"re mote".ljust(64, b"\0") + b"$(id)".ljust(64, b"\0")
        caller.control.send(trigger + qrexec.request_id("SOCKET9") + b"a;b+c\n/x\0")
        assert isinstance(await caller.answer(), qrexec.ServiceRefused)
        assert place.server.heard == [
            b"source=work\nintended_target=__id_\nservice_and_arg=a_b+c__x\nrequested_source=re_mote\n\n"]

    with_caller(place, work)


def test_one_request_more_than_may_wait_is_refused(place: Place) -> None:
    decided = asyncio.Event()

    place.deny_after(decided)

    async def work(caller: Caller) -> None:
        for number in range(MAX_PENDING + 1):
            caller.ask("test.Cat", ident=f"SOCKET{number}")
        assert await caller.answer() == qrexec.ServiceRefused(qrexec.request_id(f"SOCKET{MAX_PENDING}"))
        caller.ask("test.Cat", ident="SOCKET0")
        assert await caller.answer() == qrexec.ServiceRefused(qrexec.request_id("SOCKET0"))
        decided.set()
        refused = {await caller.answer() for _ in range(MAX_PENDING)}
        assert refused == {qrexec.ServiceRefused(qrexec.request_id(f"SOCKET{number}")) for number in range(MAX_PENDING)}

    with_caller(place, work)


def test_qsb_085_a_qube_that_asks_without_end_leaves_the_policy_daemon_to_others(place: Place) -> None:
    """Lesson 19: all qubes share it, so each has only a few queries there, however many calls it makes."""
    decided = asyncio.Event()
    place.deny_after(decided)

    async def work(caller: Caller) -> None:
        for number in range(3 * MAX_ASKING):
            caller.ask("test.Cat", ident=f"SOCKET{number}")
        await place.server.until(lambda: len(place.server.heard) == MAX_ASKING)
        caller.ask("+", ident="SOCKET1000")          # refused by the daemon itself, after it has dealt with all the others
        assert await caller.answer() == qrexec.ServiceRefused(qrexec.request_id("SOCKET1000"))
        assert len(place.server.heard) == MAX_ASKING
        decided.set()
        for _ in range(3 * MAX_ASKING):
            assert isinstance(await caller.answer(), qrexec.ServiceRefused)
        assert len(place.server.heard) == 3 * MAX_ASKING

    with_caller(place, work, at_once=PATIENCE)


def test_a_hundred_that_wait_do_not_stop_the_next_call(place: Place) -> None:
    async def judge(request: bytes) -> bytes:
        if b"test.Wait" in request:
            await asyncio.get_running_loop().create_future()
        return allow("dom0").encode()

    place.server = FakeServer(place.folder / "policy.sock", judge, end=b"\n\n")

    async def work(caller: Caller) -> None:
        for number in range(100):
            caller.ask("test.Wait", ident=f"SOCKET{number}")
        assert await caller.call("test.Cat", b"x", ident="SOCKET500") == Result(b"x", b"", 0)

    with contextlib.suppress(asyncio.CancelledError):
        with_caller(place, work)


def test_what_a_guest_names_can_not_forge_a_line_of_the_log(place: Place) -> None:
    """QSB-087. Nor is a name kept at any length."""
    async def work(caller: Caller) -> None:
        name = b'a"}\n{"event": "end"\x1b[2J' + b"+" + b"x" * 60000 + b"\0"
        trigger = qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE4, 160 + len(name)) + bytes(128) + qrexec.request_id("SOCKET9") + name
        caller.control.send(trigger)
        assert isinstance(await caller.answer(), qrexec.ServiceRefused)

    with_caller(place, work)
    text = place.log.read_text()
    assert len(text.splitlines()) == len(place.entries()) == 1
    assert len(text) < 1000 and text.isascii() and text.removesuffix("\n").isprintable()


def test_a_refusal_says_nothing_but_the_requests_own_id(place: Place) -> None:
    """QSB-099: neither the reason nor anything of the policy reaches the qube."""
    place.policy = "result=deny\nsecret=rule"

    async def work(caller: Caller) -> None:
        caller.ask("test.Cat")
        await caller.answer()
        ident = qrexec.request_id("SOCKET9")
        assert bytes(caller.control.got) == qrexec.hello(4) + qrexec.service_refused(ident)

    with_caller(place, work)


@pytest.mark.parametrize("service", [b"\0", b"+\0", b"+a\0", b"a", b"a\0a\0", b"x" * 256 + b"\0", b"x" * 256 + b"+\0"])
def test_a_service_name_of_no_length_or_without_an_end_is_refused_and_nothing_else(place: Place, service: bytes) -> None:
    """QSB-089."""
    async def work(caller: Caller) -> None:
        ident = qrexec.request_id("SOCKET9")
        caller.control.send(qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE4, 160 + len(service)) + bytes(128) + ident + service)
        assert await caller.answer() == qrexec.ServiceRefused(ident)
        assert place.server.heard == [] and caller.qube.violations == []

    with_caller(place, work)


# -- the host --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["--help", "-c", "-", "a--b+c", "..", "-e.x"])
def test_qsb_071_what_looks_like_an_option_is_the_services_one_argument(place: Place, argument: str) -> None:
    """Lesson 25: no program's options are ever filtered here; a service has its argument as one word of its own."""
    place.policy = allow("dom0")

    async def work(caller: Caller) -> None:
        result = await caller.call(f"test.Env+{argument}")
        assert result is not None and result.out.endswith(f"+{argument}\n1:{argument}\n".encode())

    with_caller(place, work)


@pytest.mark.parametrize(("requested", "words"), [
    ("wanted", "QREXEC_REQUESTED_TARGET=wanted\nQREXEC_REQUESTED_TARGET_TYPE=name\n"),
    ("@adminvm", "QREXEC_REQUESTED_TARGET_KEYWORD=adminvm\nQREXEC_REQUESTED_TARGET_TYPE=keyword\n"),
])
def test_a_service_of_the_host(place: Place, requested: str, words: str) -> None:
    place.policy = allow("dom0", requested=requested)

    async def work(caller: Caller) -> None:
        expected = ("QREXEC_REMOTE_DOMAIN=work\n" + words +
                    "QREXEC_SERVICE_ARGUMENT=arg\nQREXEC_SERVICE_FULL_NAME=test.Env+arg\n1:arg\n")
        assert await caller.call("test.Env+arg") == Result(expected.encode(), b"", 3)     # stderr stays here
        assert await caller.call("test.Cat", bytes(1 << 20)) == Result(bytes(1 << 20), b"", 0)
        assert await caller.call("test.Missing") == Result(b"", b"", 127)

    with_caller(place, work)
    first = place.entries()[0]
    assert (first["source"], first["service"], first["target"], first["outcome"]) == ("work", "test.Env+arg", "dom0", "ended")


def test_programs_of_the_host_are_counted_until_they_have_ended_and_sockets_are_not(place: Place) -> None:
    """A program that goes on without its caller still takes memory here. The qube is told nothing, the log names the limit."""
    place.policy = allow("dom0")
    hold = place.folder / "hold"
    os.mkfifo(hold)
    (place.folder / "rpc" / "test.Stays").write_text(f"#!/bin/sh\nexec cat {hold}\n")
    (place.folder / "rpc" / "test.Stays").chmod(0o755)

    async def work(caller: Caller) -> None:
        caller.ask("test.Stays", ident="SOCKET1")
        answer = await caller.answer()
        assert isinstance(answer, qrexec.ServiceConnect)
        data = caller.expect(answer.domain, answer.port)
        await data.until(lambda: data.recorder is not None)
        assert data.recorder is not None
        assert await caller.call("test.Stays", ident="SOCKET2") is None
        caller.qube.guest.port.close(data.recorder.channel)
        await until_logged(place, 2)                     # the call is over, its program is not
        assert await caller.call("test.Stays", ident="SOCKET3") is None
        assert await caller.call("test.Missing", ident="SOCKET4") == Result(b"", b"", 127)

        async def echo(request: bytes) -> bytes:
            return request

        async with FakeServer(place.folder / "rpc" / "test.Socket", echo, end=b""):
            for ident in ("SOCKET5", "SOCKET6"):
                assert await caller.call("test.Socket", b"", ident=ident) is not None
        await asyncio.to_thread(hold.write_text, "")
        while (result := await caller.call("test.Cat", b"x", ident="SOCKET7")) is None:
            continue                                     # until the program's end is noticed
        assert result == Result(b"x", b"", 0)

    with_caller(place, work, programs=Programs(1, 1, patience=0.0))
    refused = [entry["outcome"] for entry in place.entries() if entry["outcome"] != "ended"]
    assert refused[0] == "1 programs of test.Stays run on the host for this qube, the most by call-programs-each-max"


def test_a_call_that_gets_no_port_keeps_no_place_for_its_program(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.policy = allow("dom0")

    async def work(caller: Caller) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(caller.qube.daemon._ports, "take", lambda _peer: None)
            assert await caller.call("test.Cat", ident="SOCKET1") is None
        assert await caller.call("test.Cat", b"x", ident="SOCKET2") == Result(b"x", b"", 0)

    with_caller(place, work, programs=Programs(1, 1, patience=0.0))


def test_a_socket_service_gets_the_words_that_were_decided(place: Place) -> None:
    """So the Admin API is called: the requested target is the object (reference/qrexec.md 20.2)."""
    place.policy = allow("dom0", requested="other")

    async def work(caller: Caller) -> None:
        async def echo(request: bytes) -> bytes:
            return request

        async with FakeServer(place.folder / "rpc" / "test.Socket", echo, end=b""):
            assert await caller.call("test.Socket", b"payload") == Result(b"test.Socket+ work name other\0payload", b"", 0)

    with_caller(place, work)


@pytest.fixture
def gate(place: Place) -> Path:
    """`test.Waits` wants a session, and qubes.WaitForSession, which says who asked for whom, ends when somebody writes here."""
    gate, rpc, config = place.folder / "gate", place.folder / "rpc", place.folder / "rpc-config"
    os.mkfifo(gate)
    config.mkdir()
    (config / "test.Waits").write_text("wait-for-session=1\n")
    for name, text in (
        ("qubes.WaitForSession",
         f'read user; echo "$user $QREXEC_REMOTE_DOMAIN $DISPLAY" >> {place.folder}/waited; read go < {gate}; exit 1'),
        ("test.Waits", f"echo served >> {place.folder}/served; exec cat"),
    ):
        (rpc / name).write_text(f"#!/bin/sh\n{text}\n")
        (rpc / name).chmod(0o755)
    return gate


async def waiting(caller: Caller, ident: str) -> Data:
    """The data channel of a call of `test.Waits`, which the daemon has opened and in which nothing happens yet."""
    caller.ask("test.Waits", ident=ident)
    answer = await caller.answer()
    assert isinstance(answer, qrexec.ServiceConnect)
    data = caller.expect(answer.domain, answer.port)
    await data.until(lambda: data.recorder is not None)
    return data


def test_a_service_of_the_host_waits_for_the_session(place: Place, gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wait serves all; it sees the host's session and may fail; its caller's input waits with it."""
    monkeypatch.setenv("DISPLAY", ":77")
    place.policy = allow("dom0")

    async def work(caller: Caller) -> None:
        calls = [asyncio.ensure_future((await waiting(caller, ident)).result(b"in")) for ident in ("SOCKET1", "SOCKET2")]
        assert await caller.call("test.Cat", b"at once", ident="SOCKET3") == Result(b"at once", b"", 0)
        assert not (place.folder / "served").exists()
        await asyncio.to_thread(gate.write_text, "go\n")
        assert await asyncio.gather(*calls) == [Result(b"in", b"", 0)] * 2

    with_caller(place, work)
    assert (place.folder / "waited").read_text() == f"{USER} work :77\n"


def test_a_caller_that_does_not_wait_for_the_session_gets_no_service(place: Place, gate: Path) -> None:
    place.policy = allow("dom0")

    async def work(caller: Caller) -> None:
        first, second = await waiting(caller, "SOCKET1"), await waiting(caller, "SOCKET2")
        assert first.recorder is not None
        caller.qube.guest.port.close(first.recorder.channel)
        assert await caller.call("test.Cat", b"after that", ident="SOCKET3") == Result(b"after that", b"", 0)
        await asyncio.to_thread(gate.write_text, "go\n")
        assert await second.result(b"in") == Result(b"in", b"", 0)

    with_caller(place, work)
    assert (place.folder / "served").read_text() == "served\n"


def test_where_nothing_waits_for_sessions_services_start_at_once(place: Place, gate: Path) -> None:
    """As upstream: a WaitForSession that is missing, no program or not to be started is told in the log and holds nothing up."""
    place.policy = allow("dom0")
    waiter = place.folder / "rpc" / "qubes.WaitForSession"

    async def work(caller: Caller) -> None:
        waiter.chmod(0o644)
        assert await caller.call("test.Waits", b"1") == Result(b"1", b"", 0)
        waiter.unlink()
        waiter.symlink_to("/dev/tcp/127.0.0.1/1")
        assert await caller.call("test.Waits", b"2") == Result(b"2", b"", 0)
        waiter.unlink()
        assert await caller.call("test.Waits", b"3") == Result(b"3", b"", 0)
        (place.folder / "rpc-config" / "test.Waits").write_text("wait-for-session=maybe\n")
        assert await caller.call("test.Waits", b"4") == Result(b"", b"", 125)

    with_caller(place, work)


def test_a_relayed_call_has_the_source_that_policy_says(place: Place) -> None:
    place.policy = allow("dom0", policy_source="remote", service="test.Cat+x")

    async def work(caller: Caller) -> None:
        assert await caller.call("anything", b"x") == Result(b"x", b"", 0)

    with_caller(place, work)


@pytest.mark.parametrize("target", ["dom0", "other"])
def test_a_service_sees_the_source_that_policy_says_and_else_the_caller(place: Place, target: str) -> None:
    async def work(caller: Caller) -> None:
        with Qube(place.folder, "other", B):
            for number, source in enumerate(("", "remote")):
                place.policy = allow(target, policy_source=source) if source else allow(target)
                result = await caller.call("test.Env", ident=f"SOCKET{number}")
                assert result is not None and f"QREXEC_REMOTE_DOMAIN={source or 'work'}\n".encode() in result.out

    with_caller(place, work)


@pytest.mark.parametrize("answer", [
    allow("dom0"), allow("@adminvm"), allow("uuid:00000000-0000-0000-0000-000000000000"),
    allow("other", target_uuid="uuid:00000000-0000-0000-0000-000000000000"), allow("dom0", target_uuid="uuid:x"),
])
def test_the_host_by_all_its_names(place: Place, answer: str) -> None:
    place.policy = answer

    async def work(caller: Caller) -> None:
        assert await caller.call("test.Cat", b"x") == Result(b"x", b"", 0)

    with_caller(place, work)


def test_a_uuid_counts_before_a_name_and_another_service_before_the_one_that_was_asked_for(place: Place) -> None:
    uuid = f"uuid:00000000-0000-4000-8000-{B:012d}"
    place.policy = allow("nobody-is-called-so", target_uuid=uuid, service="test.Env+said")

    async def work(caller: Caller) -> None:
        with Qube(place.folder, "other", B):
            result = await caller.call("test.Cat+asked")
            assert result is not None and b"QREXEC_SERVICE_FULL_NAME=test.Env+said\n" in result.out

    with_caller(place, work)


def test_a_service_without_an_argument_has_an_empty_one(place: Place) -> None:
    place.policy = allow("dom0")

    async def work(caller: Caller) -> None:
        result = await caller.call("test.Env")
        assert result is not None and b"QREXEC_SERVICE_ARGUMENT=\n" in result.out

    with_caller(place, work)


# -- how many ---------------------------------------------------------------------------------------------------------------


def holding(place: Place) -> FakeServer:
    """Service test.Hold, which waits for the end of what it is sent."""
    async def answer(request: bytes) -> bytes:
        return request

    return FakeServer(place.folder / "rpc" / "test.Hold", answer, end=b"")


async def open_call(caller: Caller, ident: str) -> Recorder:
    """One that runs until its channel is closed here."""
    caller.ask("test.Hold", ident=ident)
    answer = await caller.answer()
    assert isinstance(answer, qrexec.ServiceConnect)
    data = caller.expect(answer.domain, answer.port)
    await data.until(lambda: data.recorder is not None)
    assert data.recorder is not None
    return data.recorder


def test_no_more_calls_than_may_be_open_and_each_that_ends_makes_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MAX_CALLS", 3)
    place.policy = allow("dom0")

    async def work(caller: Caller) -> None:
        async with holding(place):
            channels = [await open_call(caller, f"SOCKET{number}") for number in range(3)]
            assert await caller.call("test.Missing", ident="SOCKET3") is None
            assert len(place.server.heard) == 3          # policy was not even asked
            caller.qube.guest.port.close(channels[0].channel)
            await until_logged(place, 1)
            assert await caller.call("test.Missing", ident="SOCKET4") == Result(b"", b"", 127)

    with_caller(place, work)


def test_calls_that_run_are_open_calls_and_make_a_flood_of_those_in_turn(place: Place) -> None:
    place.policy = allow("dom0")
    behind: list[float] = []

    async def work(caller: Caller) -> None:
        async with holding(place):
            for number in range(FEW):
                await open_call(caller, f"SOCKET{number}")
            for number in range(2 * CROWD_BURST):
                assert await caller.call("test.Missing", ident=f"SOCKET{10 + number}") == Result(b"", b"", 127)
            assert behind

    with_caller(place, work, behind=behind.append)


# -- another qube ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3 << 20])
def test_a_service_of_another_qube(place: Place, size: int) -> None:
    place.policy = allow("other")

    async def work(caller: Caller) -> None:
        with Qube(place.folder, "other", B) as other:
            data = os.urandom(size)
            assert await caller.call("test.Cat", data) == Result(data, b"", 0)
            result = await caller.call("test.Env", ident="SOCKET10")
            assert result is not None and b"QREXEC_REMOTE_DOMAIN=work\n" in result.out and result.err == b"err\n"
            assert (caller.qube.violations, other.violations) == ([], [])

    with_caller(place, work)


def test_a_halted_target_is_started_if_policy_says_so(place: Place) -> None:
    place.policy = allow("other", autostart=True)

    async def work(caller: Caller) -> None:
        with contextlib.ExitStack() as stack:
            async def start(request: bytes) -> bytes:
                assert request.startswith(b"admin.vm.Start+ dom0 name other\0")
                stack.enter_context(Qube(place.folder, "other", B))
                return admin.ok()

            async with FakeServer(place.folder / "qubesd.sock", start, end=b""):
                assert await caller.call("test.Cat", b"x") == Result(b"x", b"", 0)

    with_caller(place, work)


def test_a_halted_target_that_may_not_be_started_refuses(place: Place) -> None:
    place.policy = allow("other", autostart=False)
    with_caller(place, _refused_without_qubesd)


async def _refused_without_qubesd(caller: Caller) -> None:
    assert await caller.call("test.Cat") is None


def test_a_caller_that_goes_away_ends_the_call_in_the_other_qube(place: Place) -> None:
    place.policy = allow("other")

    async def work(caller: Caller) -> None:
        with Qube(place.folder, "other", B) as other:
            caller.ask("test.Cat")
            answer = await caller.answer()
            assert isinstance(answer, qrexec.ServiceConnect)
            data = caller.expect(answer.domain, answer.port)
            await data.until(lambda: data.recorder is not None)
            assert data.recorder is not None
            caller.qube.guest.port.close(data.recorder.channel)
            second = other.caller("test.Cat")
            assert await second.run(b"still here") == Result(b"still here", b"", 0)

    with_caller(place, work)


@contextlib.asynccontextmanager
async def silent_target(place: Place) -> AsyncIterator[Qube]:
    """A qube whose agent takes every call's channel up, ends it when its caller does, and never says that a call is over."""
    with Qube(place.folder, "other", B, scripted=True) as other:
        control = await other.scripted_control()
        decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
        control.send(qrexec.hello(4))
        seen = 0

        def heard(untrusted: bytes) -> None:
            nonlocal seen
            Recorder.data(control, untrusted)
            decoder.feed(bytes(control.got[seen:]))
            seen = len(control.got)
            while (message := decoder.next_message()) is not None:
                if isinstance(message, qrexec.Exec):
                    other.guest.recorder(Address(message.domain, B, message.port)).send(qrexec.hello(4))

        setattr(control, "data", heard)  # noqa: B010 - a method of this one recorder
        yield other


def test_a_target_is_asked_as_the_user_that_policy_says(place: Place) -> None:
    place.policy = allow("other", service="test.Other+x", policy_source="remote").replace(f"user={USER}", "user=somebody")

    async def work(caller: Caller) -> None:
        with Qube(place.folder, "other", B, scripted=True) as other:
            control = await other.scripted_control()
            control.send(qrexec.hello(4))
            caller.ask("test.Cat")
            command = b"somebody:QUBESRPC test.Other+x remote\0"
            await control.until(lambda: command in control.got)
            assert isinstance(await caller.answer(), qrexec.ServiceConnect)

    with contextlib.suppress(asyncio.CancelledError):
        with_caller(place, work)


async def ended_calls(caller: Caller, count: int, service: str = "test.Cat") -> None:
    """So many calls that the caller's qube has begun and ended, as far as it is concerned."""
    for number in range(count):
        caller.ask(service, ident=f"SOCKET{number}")
        answer = await caller.answer()
        assert isinstance(answer, qrexec.ServiceConnect)
        data = caller.expect(answer.domain, answer.port)
        await data.until(lambda data=data: data.recorder is not None)
        assert data.recorder is not None
        await data.recorder.heard(1)
        caller.qube.guest.port.close(data.recorder.channel)
        del caller.channels[answer.domain, answer.port]
        caller.control.send(qrexec.connection_terminated(answer.domain, answer.port))


def test_a_target_that_never_says_that_a_call_is_over_does_not_tie_up_its_caller(place: Place) -> None:
    place.policy = allow("other")

    async def work(caller: Caller) -> None:
        async with silent_target(place) as other:
            other.daemon._grace = PATIENCE               # so it is the caller's own warden that lets go
            await ended_calls(caller, 5)
            await until_logged(place, 5)

    with_caller(place, work, grace=0.0)
    assert [entry["outcome"] for entry in place.entries()] == ["ended"] * 5


def test_calls_of_which_only_the_targets_word_is_missing_are_no_open_calls(place: Place) -> None:
    """So they make no flood, and not many are waited for."""
    place.policy = allow("other")
    behind: list[float] = []

    async def work(caller: Caller) -> None:
        async with silent_target(place) as other:
            other.daemon._grace = PATIENCE
            await ended_calls(caller, MAX_ENDED + 5)
            await until_logged(place, 5)
            assert len(place.entries()) == 5             # the others are still waited for

    with_caller(place, work, grace=PATIENCE, behind=behind.append)
    assert behind == []


def test_a_call_whose_target_was_given_up_leaves_its_place_to_the_next_one_that_waits(
    place: Place, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outgoing, "MAX_ENDED", 2)
    place.policy = allow("other")

    async def work(caller: Caller) -> None:
        async with silent_target(place) as other:
            other.daemon._grace = PATIENCE
            await ended_calls(caller, 3)
            await until_logged(place, 3)                 # given up, one after the other
            caller.calls._grace = PATIENCE
            await ended_calls(caller, 2, "test.Cat+waits")
            await ended_calls(caller, 1, "test.Cat+third")
            await until_logged(place, 4)
            assert [entry["service"] for entry in place.entries()[3:]] == ["test.Cat+third"]

    with_caller(place, work, grace=0.0)


async def until_logged(place: Place, count: int) -> None:
    await place.logged.until(lambda: len(place.entries()) >= count)


# -- a disposable ----------------------------------------------------------------------------------------------------------


def test_a_disposable_lives_as_long_as_its_call(place: Place) -> None:
    place.policy = allow("@dispvm:template", autostart=True)

    async def work(caller: Caller) -> None:
        killed = asyncio.Event()
        with contextlib.ExitStack() as stack:
            async def lease(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                assert (await reader.read()).startswith(b"cloison.Disposable+ dom0 name template\0")
                stack.enter_context(Qube(place.folder, "disp1", B))
                writer.write(admin.event("disp1", "disposable-ready", [("name", "disp1")]))
                transport = writer.transport
                while not transport.is_closing():        # the caller's hang-up shows when it is written to
                    writer.write(b"")
                    await asyncio.sleep(0)
                    if _hung_up(writer):
                        break
                killed.set()
                writer.close()

            server = await asyncio.start_unix_server(lease, str(place.folder / "qubesd.sock"))
            assert await caller.call("test.Cat", b"x") == Result(b"x", b"", 0)
            await killed.wait()
            server.close()

    with_caller(place, work)


def test_a_disposable_that_has_gone_before_its_call_is_not_started_again(place: Place) -> None:
    """It was had for this call and runs when it is handed out: one that doesn't is nobody to call."""
    place.policy = allow("@dispvm:template", autostart=True)
    heard: list[bytes] = []

    async def work(caller: Caller) -> None:
        async def qubesd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.read()
            heard.append(request.partition(b"+")[0])
            if request.startswith(b"cloison.Disposable"):
                writer.write(admin.event("disp1", "disposable-ready", [("name", "disp1")]))
                await writer.drain()
                await caller.answer()
            writer.close()

        async with await asyncio.start_unix_server(qubesd, str(place.folder / "qubesd.sock")):
            caller.ask("test.Cat")
            await place.logged.until(lambda: len(place.entries()) == 1)

    with_caller(place, work)
    assert heard[0] == b"cloison.Disposable" and b"admin.vm.Start" not in heard


def test_a_disposable_is_reached_by_its_uuid_and_not_by_whoever_has_its_name(place: Place) -> None:
    place.policy = allow("@dispvm:template", autostart=True)

    async def work(caller: Caller) -> None:
        with Qube(place.folder, "disp1", B):
            os.unlink(place.folder / "qrexec.disp1")
            os.symlink("qrexec.nobody", place.folder / "qrexec.disp1")

            async def lease(_request: bytes) -> bytes:
                uuid = f"00000000-0000-4000-8000-{B:012d}"
                return admin.event("disp1", "disposable-ready", [("name", "disp1"), ("uuid", uuid), ("start", "warm")])

            async with FakeServer(place.folder / "qubesd.sock", lease, end=b""):
                assert await caller.call("test.Cat", b"x") == Result(b"x", b"", 0)

    with_caller(place, work)


@pytest.mark.parametrize("uuid", ["../qrexec.other", "0", "work"])
def test_a_disposable_with_no_uuid_that_is_one_is_refused(place: Place, uuid: str) -> None:
    place.policy = allow("@dispvm:template", autostart=True)

    async def work(caller: Caller) -> None:
        async def lease(_request: bytes) -> bytes:
            return admin.event("disp1", "disposable-ready", [("name", "disp1"), ("uuid", uuid)])

        async with FakeServer(place.folder / "qubesd.sock", lease, end=b""):
            assert await caller.call("test.Cat", b"x") is None

    with_caller(place, work)


def test_policy_that_lets_nothing_be_started_gives_no_disposable(place: Place) -> None:
    place.policy = allow("@dispvm:template", autostart=False)

    async def work(caller: Caller) -> None:
        with Qube(place.folder, "disp1", B):
            async def lease(_request: bytes) -> bytes:
                return admin.event("disp1", "disposable-ready", [("name", "disp1")])

            async with FakeServer(place.folder / "qubesd.sock", lease, end=b"") as qubesd:
                assert await caller.call("test.Cat", b"x") is None
                assert qubesd.heard == []

    with_caller(place, work)


@pytest.mark.parametrize(("state", "waits"), [("Running", True), ("Halted", False), ("Paused", False)])
def test_a_target_that_runs_while_its_agent_is_replaced_is_waited_for_and_none_else(place: Place, state: str, waits: bool) -> None:
    place.policy = allow("other", autostart=False)

    async def work(caller: Caller) -> None:
        with contextlib.ExitStack() as stack:
            async def current(request: bytes) -> bytes:
                assert request.startswith(b"admin.vm.CurrentState+ dom0 name other\0")
                asyncio.get_running_loop().call_soon(lambda: stack.enter_context(Qube(place.folder, "other", B)))
                return admin.ok(f"mem=1 mem_static_max=1 cputime=1 power_state={state}".encode())

            async with FakeServer(place.folder / "qubesd.sock", current, end=b""):
                assert await caller.call("test.Cat", b"x") == (Result(b"x", b"", 0) if waits else None)

    with_caller(place, work)


def test_a_target_whose_agent_does_not_come_back_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "AGENT_TIME", 0.0)
    place.policy = allow("other", autostart=False)

    async def work(caller: Caller) -> None:
        async def current(_request: bytes) -> bytes:
            return admin.ok(b"power_state=Running")

        async with FakeServer(place.folder / "qubesd.sock", current, end=b""):
            assert await caller.call("test.Cat", b"x") is None

    with_caller(place, work)
    assert place.entries()[0]["outcome"] == "failed: the target runs, but its agent does not answer"


def test_a_second_disposable_waits_for_the_firsts_end_and_the_log_says_so(place: Place) -> None:
    place.policy = allow("@dispvm:template", autostart=True)

    async def work(caller: Caller) -> None:
        with Qube(place.folder, "disp1", B):
            async def lease(_request: bytes) -> bytes:
                return admin.event("disp1", "disposable-ready", [("name", "disp1")])

            async with FakeServer(place.folder / "qubesd.sock", lease, end=b"") as qubesd:
                for ident in ("SOCKET1", "SOCKET2"):
                    caller.ask("test.Cat", ident=ident)
                for ident in ("SOCKET1", "SOCKET2"):
                    answer = await caller.answer()
                    assert isinstance(answer, qrexec.ServiceConnect) and answer.request_id == qrexec.request_id(ident)
                    assert len(qubesd.heard) == int(ident[-1])
                    assert await caller.expect(answer.domain, answer.port).result(b"x") == Result(b"x", b"", 0)
                    del caller.channels[answer.domain, answer.port]
                    caller.control.send(qrexec.connection_terminated(answer.domain, answer.port))

    with_caller(place, work, disposables=1)
    waits = place.entries()[0]
    assert (waits["event"], waits["source"], waits["outcome"]) == ("waits", "work", "1 disposables of its calls run")


def _hung_up(writer: asyncio.StreamWriter) -> bool:
    import select

    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), 0)
    return bool(poll.poll(0))


def test_without_leases_it_is_created_started_and_killed(place: Place) -> None:
    uuid = f"00000000-0000-4000-8000-{B:012d}"
    place.policy = allow("@dispvm:template", autostart=True, target_uuid=f"@dispvm:uuid:{uuid}")

    async def work(caller: Caller) -> None:
        calls: list[str] = []
        done = News()
        with contextlib.ExitStack() as stack:
            async def qubesd(request: bytes) -> bytes:
                calls.append(request.split(b"\0")[0].decode())
                done.tell()
                if b"cloison." in request:
                    return admin.exception("ProtocolError", "no such call")
                if b"Create" in request:
                    assert request.endswith(b"\0uuid")
                    stack.enter_context(Qube(place.folder, "disp1", B))
                    return admin.ok(f"uuid:{uuid}".encode())
                return admin.exception("QubesVMNotHaltedError", "it runs") if b"Start" in request else admin.ok()

            async with FakeServer(place.folder / "qubesd.sock", qubesd, end=b""):
                assert await caller.call("test.Cat", b"x") == Result(b"x", b"", 0)
                await done.until(lambda: len(calls) == 4)
        of = f"dom0 name uuid:{uuid}"
        assert calls == [f"cloison.Disposable+ {of}", f"admin.vm.CreateDisposable+ {of}", f"admin.vm.Start+ {of}",
                         f"admin.vm.Kill+ {of}"]

    with_caller(place, work)


# -- callers on the local socket, the agent's restart ----------------------------------------------------------------------


def test_somebody_else_may_answer_a_request_once(place: Place) -> None:
    async def never(_request: bytes) -> bytes:
        await asyncio.get_running_loop().create_future()
        return b""

    place.server = FakeServer(place.folder / "policy.sock", never, end=b"\n\n")

    async def work(caller: Caller) -> None:
        caller.ask("test.Cat")
        await place.server.until(lambda: bool(place.server.heard))
        ident = qrexec.request_id("SOCKET9")
        for expected in (qrexec.Allocated(qrexec.SERVICE_CONNECT, A, 513), None):
            with caller.qube.answering(ident) as answering:
                assert await answering.request() == expected
                if expected is not None:
                    assert await caller.answer() == qrexec.ServiceConnect(0, 513, ident)
                    result = asyncio.ensure_future(caller.expect(0, 513).result(b"hello"))
                    while not answering.streams[qrexec.STDOUT]:
                        assert await answering.read()
                    assert answering.streams[qrexec.STDOUT] == b"hello"
                    answering.data.close()
                    await result

    with contextlib.suppress(asyncio.CancelledError):
        with_caller(place, work)


def test_a_verdict_after_somebody_elses_answer_begins_nothing_and_the_call_is_over(place: Place) -> None:
    decided = asyncio.Event()

    async def later(_request: bytes) -> bytes:
        await decided.wait()
        return allow("dom0").encode()

    place.server = FakeServer(place.folder / "policy.sock", later, end=b"\n\n")

    async def work(caller: Caller) -> None:
        caller.ask("test.Cat")
        await place.server.until(lambda: bool(place.server.heard))
        with caller.qube.answering(qrexec.request_id("SOCKET9")) as answering:
            assert await answering.request() == qrexec.Allocated(qrexec.SERVICE_CONNECT, A, 513)
            decided.set()
            await place.logged.until(lambda: bool(place.entries()))
        assert place.entries()[0]["outcome"] == "ended"

    with_caller(place, work)


def test_an_agent_that_comes_back_is_not_answered_for_what_the_former_asked(place: Place) -> None:
    decided = asyncio.Event()

    place.deny_after(decided)

    async def work(caller: Caller) -> None:
        caller.ask("test.Cat")
        former = caller.control
        socket_path = place.folder / "qrexec.work"
        assert stat.S_ISLNK(os.lstat(socket_path).st_mode)
        caller.qube.guest.port.close(former.channel)
        await caller.qube.guest.until(lambda: caller.qube.control is not former)
        assert not os.path.lexists(socket_path)
        decided.set()
        control = await caller.qube.scripted_control()
        control.send(qrexec.hello(4))
        await control.heard(12)
        assert os.path.lexists(socket_path)
        again = Caller(caller.qube, control, caller.calls)
        place.server._answer = place._judge
        assert await again.call("test.Cat", ident="SOCKET10") is None

    with_caller(place, work)


# -- hostile agents --------------------------------------------------------------------------------------------------------

_MESSAGES = st.one_of(
    st.builds(lambda target, ident, service: qrexec.trigger_service4("", target, qrexec.request_id(ident), service),
              st.sampled_from(["", "work", "@default", "@dispvm", "dom0"]), st.sampled_from(["", "a", "SOCKET1"]),
              st.sampled_from(["a", "test.Cat+x", "+", "a+" + "b" * 60000])),
    st.builds(qrexec.connection_terminated, st.integers(0, 20), st.integers(513, 768)),
    st.builds(lambda kind, body: qrexec.HEADER.pack(kind, len(body)) + body, st.integers(0x1FF, 0x215), st.binary(max_size=300)),
    st.binary(min_size=1, max_size=64),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(_MESSAGES, max_size=8))
def test_whatever_an_agent_says_costs_it_its_channels_at_most(place: Place, messages: list[bytes]) -> None:
    async def work(caller: Caller) -> None:
        qube = caller.qube
        for message in messages:
            qube.guest.port.send(caller.control.channel, message)
        qube.guest.port.control(b"the daemon has read all before this")
        await qube.host.until(lambda: bool(qube.host.controls or qube.host.reasons))
        assert len(qube.violations) <= 1
        if not qube.violations:
            with qube.caller("test.Cat") as other:
                assert await other.request() is not None

    with_caller(place, work, policy=False)


# -- a flood ---------------------------------------------------------------------------------------------------------------


def test_a_qube_that_floods_goes_after_others_and_one_that_calls_in_turn_does_not(place: Place) -> None:
    """Calls that stay open, as fast as they can be asked for; then the same number, one after the other."""
    place.policy = allow("dom0")
    behind: list[float] = []

    async def flood(caller: Caller) -> None:
        decided = asyncio.Event()
        place.deny_after(decided)
        async with place.server:
            for number in range(2 * CROWD_BURST):
                caller.ask("test.Cat", ident=f"SOCKET{number}")
            caller.ask("+", ident="SOCKET1000")      # refused by the daemon itself, after it has dealt with all the others
            assert await caller.answer() == qrexec.ServiceRefused(qrexec.request_id("SOCKET1000"))
            assert behind and all(seconds > 0 for seconds in behind)
            decided.set()
            for _ in range(2 * CROWD_BURST):
                assert isinstance(await caller.answer(), qrexec.ServiceRefused)

    async def in_turn(caller: Caller) -> None:
        for number in range(2 * CROWD_BURST):
            assert await caller.call("test.Missing", ident=f"SOCKET{number}") == Result(b"", b"", 127)
        assert behind == []

    with_caller(place, in_turn, behind=behind.append)
    with_caller(place, flood, policy=False, behind=behind.append)


def test_a_qube_that_asks_at_full_speed_waits_itself_and_is_refused_nothing(place: Place) -> None:
    """Beyond what it may ask for at once, its requests wait in it, and all are answered in the end."""
    place.policy = allow("dom0")

    async def work(caller: Caller) -> None:
        for number in range(BURST + 20):
            caller.ask("test.Missing", ident=f"SOCKET{number}")
            if number % 100 == 99:               # no more than may wait
                for _ in range(100):
                    await end(caller)
        for _ in range(20):
            await end(caller)

    async def end(caller: Caller) -> None:
        answer = await caller.answer()
        assert isinstance(answer, qrexec.ServiceConnect)
        assert await caller.expect(answer.domain, answer.port).result(b"") == Result(b"", b"", 127)
        del caller.channels[answer.domain, answer.port]
        caller.control.send(qrexec.connection_terminated(answer.domain, answer.port))

    with_caller(place, work)
