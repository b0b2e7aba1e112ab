"""Calls from the host into a guest: the real daemon and the real agent back to back; then a hostile agent in its place."""
from __future__ import annotations

import asyncio
import contextlib
import io
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.qrexec.served_qube import USER, XID, Qube, Result
from tests.runtime.ports import PATIENCE, News, Recorder, Wire

from cloison.client import qrexec as client
from cloison.errors import PeerError, QubeNotRunning
from cloison.qrexec.host import daemon
from cloison.qrexec.host.uses import GRACE, UNOPENED
from cloison.runtime.paths import Paths
from cloison.wire import qrexec
from cloison.wire.mux import WINDOW, Address

MEGABYTE = 1 << 20
SERVICES = {
    "test.Cat": "#!/bin/sh\nexec cat\n",
    "test.Env": "#!/bin/sh\nenv | grep '^QREXEC_' | grep -v _PATH | grep -v _PID | sort\necho \"$#:$1\"\n",
    "test.Special+arg": "#!/bin/sh\necho special\n",
    "test.Special": "#!/bin/sh\necho plain\n",
    "test.Both": "#!/bin/sh\necho out; echo err >&2; exit 3\n",
    "test.Killed": "#!/bin/sh\nkill -9 $$\n",
    "test.Deaf": "#!/bin/sh\nexec <&-\necho deaf\nread -r line < \"$0.hold\"\n",
    "test.Never": "#!/bin/sh\nread -r line < \"$0.hold\"\n",
    "test.Children": "#!/bin/sh\n(read -r line < \"$0.hold\"; echo late) &\necho early; exit 5\n",
    "test.Flood": "#!/bin/sh\nexec yes\n",
    "test.Touch": "#!/bin/sh\ntouch \"$0.done\"\nread -r line < \"$0.hold\"\n",
}
HELD = ("test.Deaf", "test.Never", "test.Children", "test.Touch")


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    """All ends of all calls are in this one process here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(16384, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A service path; programs of HELD wait for a line in their fifo NAME.hold, which is open for as long as the test runs."""
    folder = tmp_path / "services"
    folder.mkdir()
    for name, text in SERVICES.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    fifos = []
    for name in HELD:
        os.mkfifo(folder / f"{name}.hold")
        fifos.append(os.open(folder / f"{name}.hold", os.O_RDWR))
    (folder / "test.Plain").write_text("not executable\n")
    (folder / "test.Folder").mkdir()
    (folder / "test.Broken").write_text("#!/nowhere\n")
    (folder / "test.Broken").chmod(0o755)
    monkeypatch.setenv("QREXEC_SERVICE_PATH", f"{tmp_path}/none:{folder}")
    yield folder
    for fifo in fifos:
        os.close(fifo)


def with_qube(
    folder: Path, work: Callable[[Qube], Awaitable[None]], *, scripted: bool = False, grace: float = GRACE,
    unopened: float = UNOPENED,
) -> None:
    async def run() -> None:
        before = children()
        with Qube(folder, scripted=scripted, grace=grace, unopened=unopened) as qube:
            await work(qube)
        for hold in (folder / "services").glob("*.hold"):
            hold.write_text("go\n" * 10)
        for pid in children() - before:
            with contextlib.suppress(ChildProcessError):        # reaped meanwhile
                await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        await asyncio.to_thread(len, "")        # a turn of the loop: the agent reaps what has ended
        assert children() == before

    asyncio.run(run())


def children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


# -- one call ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("service", "result"), [
    ("test.Both", Result(b"out\n", b"err\n", 3)),
    ("test.Killed", Result(b"", b"", 128 + signal.SIGKILL)),
    ("test.Missing", Result(b"", b"", 127)),
    ("test.Plain", Result(b"", b"", 125)),
    ("test.Folder", Result(b"", b"", 125)),
    ("test.Broken", Result(b"", b"", 127)),
    ("test.Special", Result(b"plain\n", b"", 0)),
    ("test.Special+arg", Result(b"special\n", b"", 0)),
    ("test.Special+other", Result(b"plain\n", b"", 0)),
    ("test.Env+", Result(
        b"QREXEC_REMOTE_DOMAIN=dom0\nQREXEC_REQUESTED_TARGET_TYPE=\nQREXEC_SERVICE_ARGUMENT=\nQREXEC_SERVICE_FULL_NAME=test.Env+\n0:\n",
        b"", 0)),
    ("test.Env+a+b", Result(
        b"QREXEC_REMOTE_DOMAIN=dom0\nQREXEC_REQUESTED_TARGET_TYPE=\nQREXEC_SERVICE_ARGUMENT=a+b\n"
        b"QREXEC_SERVICE_FULL_NAME=test.Env+a+b\n1:a+b\n", b"", 0)),
])
def test_service(tmp_path: Path, services: Path, service: str, result: Result) -> None:
    async def work(qube: Qube) -> None:
        assert await qube.caller(service).run() == result

    with_qube(tmp_path, work)


@pytest.mark.parametrize(("command", "result"), [
    ("echo a; echo b >&2; exit 7", Result(b"a\n", b"b\n", 7)),
    ("kill -15 $$", Result(b"", b"", 128 + 15)),
    ("exit 255", Result(b"", b"", 255)),
    ("printf '%s' 'é ü'", Result("é ü".encode(), b"", 0)),
])
def test_command(tmp_path: Path, services: Path, command: str, result: Result) -> None:
    async def work(qube: Qube) -> None:
        assert await qube.command(command).run() == result

    with_qube(tmp_path, work)


@pytest.mark.parametrize("command", [
    "nobody-of-that-name:true", "x", ":true", f"{USER}:QUBESRPC test.Cat", f"{USER}:QUBESRPC /bin/sh dom0",
])
def test_command_line_that_no_program_comes_of_ends_with_125(tmp_path: Path, services: Path, command: str) -> None:
    async def work(qube: Qube) -> None:
        caller = qube.command("")
        caller._command = command
        assert await caller.run() == Result(b"", b"", 125)

    with_qube(tmp_path, work)


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3 * MEGABYTE + 1])
def test_input_comes_back(tmp_path: Path, services: Path, size: int) -> None:
    async def work(qube: Qube) -> None:
        data = os.urandom(size)
        assert await qube.caller("test.Cat").run(data) == Result(data, b"", 0)

    with_qube(tmp_path, work)


def test_program_that_closes_its_input_does_not_stop_the_caller(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        with qube.caller("test.Deaf") as caller:
            await caller.request()
            await caller.send(bytes(4 * MEGABYTE))
            await caller.send_eof()
            while caller.streams[qrexec.STDOUT] != b"deaf\n":
                assert await caller.read()

    with_qube(tmp_path, work)


def test_children_that_hold_the_output_open_hold_the_call(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        with qube.caller("test.Children") as caller:
            await caller.request()
            while caller.streams[qrexec.STDOUT] != b"early\n":
                assert await caller.read()
            assert caller.status is None
            (services / "test.Children.hold").write_text("go\n")
            assert await caller.result() == Result(b"early\nlate\n", b"", 5)

    with_qube(tmp_path, work)


def test_just_exec_returns_while_the_program_runs(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        assert await qube.caller("test.Touch", kind=qrexec.JUST_EXEC).run(None) == Result(b"", b"", 0)
        assert await qube.caller("test.Missing", kind=qrexec.JUST_EXEC).run(None) == Result(b"", b"", 127)

    with_qube(tmp_path, work)


def test_output_ends_before_the_exit_code(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        with qube.caller("test.Both") as caller:
            await caller.request()
            await caller.result()
            assert sorted(caller.ended) == [qrexec.STDOUT, qrexec.STDERR]

    with_qube(tmp_path, work)


# -- callers that go or stand still ----------------------------------------------------------------------------------------


def test_caller_that_goes_ends_the_input_and_frees_the_port(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        caller = qube.caller("test.Cat")
        with caller:
            first = await caller.request()
            await caller.send(b"x")
            while not caller.streams[qrexec.STDOUT]:
                assert await caller.read()
            caller.data.close()
            assert await caller.hung_up()
        with qube.caller("test.Cat") as after:
            assert await after.request() == first

    with_qube(tmp_path, work)


def test_a_second_request_on_a_connection_is_hung_up_on(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        with qube.caller("test.Cat") as caller:
            await caller.request()
            ours, theirs = socket.socketpair()
            with ours, theirs:
                again = qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, 0, f"{USER}:true")
                socket.send_fds(caller.control, [again], [theirs.fileno()])
                assert await caller.hung_up()

    with_qube(tmp_path, work)


def test_caller_that_goes_before_the_answer(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        for _ in range(20):
            with qube.caller("test.Cat") as caller:
                await caller.request()
        assert await qube.caller("test.Cat").run(b"next") == Result(b"next", b"", 0)

    with_qube(tmp_path, work)


def test_killed_caller_of_a_program_that_reads_nothing_frees_the_port(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        with qube.caller("test.Never") as caller:
            await caller.request()
            sending = asyncio.ensure_future(caller.send(bytes(16 * MEGABYTE)))
            assert await qube.caller("test.Cat").run(bytes(8 * MEGABYTE)) == Result(bytes(8 * MEGABYTE), b"", 0)
            assert not sending.done()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            caller.data.close()
            assert await caller.hung_up()

    with_qube(tmp_path, work)


def test_caller_that_never_reads_stops_its_program_and_nobody_else(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        with qube.caller("test.Flood") as stuck:
            await stuck.request()
            others = await asyncio.gather(*(qube.caller("test.Cat").run(bytes(MEGABYTE)) for _ in range(10)))
            assert others == [Result(bytes(MEGABYTE), b"", 0)] * 10
            assert await stuck.read()

    with_qube(tmp_path, work)


# -- many ------------------------------------------------------------------------------------------------------------------


def test_two_hundred_at_once(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        results = await asyncio.gather(*(qube.caller("test.Cat").run(b"%d" % number) for number in range(200)))
        assert results == [Result(b"%d" % number, b"", 0) for number in range(200)]

    with_qube(tmp_path, work)


def test_ports_are_used_again(tmp_path: Path, services: Path) -> None:
    async def work(qube: Qube) -> None:
        for _ in range(300):
            with qube.caller("test.Missing") as caller:
                assert await caller.request() == qrexec.Allocated(qrexec.EXEC_CMDLINE, XID, qrexec.FIRST_DATA_PORT)
                assert (await caller.result()).status == 127
                assert await caller.hung_up()

    with_qube(tmp_path, work)


def test_one_more_than_there_are_ports_is_refused_at_once(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        callers = [qube.caller("test.Cat") for _ in range(qrexec.DATA_PORTS + 1)]
        ports = [await caller.request() for caller in callers]
        assert ports[-1] is None
        assert {answer.port for answer in ports[:-1] if answer} == set(range(513, 769))
        for caller in callers:
            caller.__exit__()

    with_qube(tmp_path, work, scripted=True)


# -- the local socket ------------------------------------------------------------------------------------------------------------


def test_names_of_the_socket_and_its_removal(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        assert sorted(os.listdir(tmp_path)) == [f"qrexec.{XID}", "qrexec.uuid:00000000-0000-4000-8000-000000000007", "qrexec.work"]
        assert os.readlink(tmp_path / "qrexec.work") == f"qrexec.{XID}"

    with_qube(tmp_path, work)
    assert os.listdir(tmp_path) == []


def test_a_socket_left_by_a_killed_warden_is_replaced(tmp_path: Path, services: Path) -> None:
    (tmp_path / f"qrexec.{XID}").write_text("")
    (tmp_path / "qrexec.work").symlink_to("nowhere")

    async def work(qube: Qube) -> None:
        assert (await qube.caller("test.Both").run()).status == 3

    with_qube(tmp_path, work)


HELLO = qrexec.hello(qrexec.SOCKET_VERSION)
EXEC = qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, 0, "DEFAULT:true")


@pytest.mark.parametrize("sent", [
    EXEC, qrexec.hello(2), HELLO + HELLO, HELLO + EXEC, HELLO + qrexec.service_connect(0, 513, bytes(32)),
    HELLO + qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, 513, "DEFAULT:true"), HELLO + qrexec.HEADER.pack(0x999, 0),
    HELLO + qrexec.HEADER.pack(qrexec.EXEC_CMDLINE, qrexec.MAX_REQUEST + 1), HELLO + EXEC[:-1] + b"x", b"\xff" * 100,
], ids=["no hello", "old", "two hellos", "no descriptor", "service connect", "own port", "unknown", "too long", "no NUL",
        "garbage"])
def test_a_caller_that_breaks_the_protocol_is_hung_up_on(tmp_path: Path, services: Path, sent: bytes) -> None:
    async def work(qube: Qube) -> None:
        with qube.caller("test.Cat") as caller, qube.caller("test.Cat") as other:
            assert await other.request() is not None
            loop = asyncio.get_running_loop()
            await loop.sock_connect(caller.control, str(tmp_path / "qrexec.work"))
            await loop.sock_sendall(caller.control, sent)
            while not await caller.hung_up():
                pass
            await other.send(b"still here")
            await other.send_eof()
            assert await other.result() == Result(b"still here", b"", 0)
            assert qube.violations == []

    with_qube(tmp_path, work)


@pytest.mark.parametrize("what", ["file", "many"])
def test_wrong_descriptors(tmp_path: Path, what: str) -> None:
    async def work(qube: Qube) -> None:
        with qube.caller("test.Cat") as caller, os.fdopen(os.open("/dev/null", os.O_RDONLY)) as null:
            await asyncio.get_running_loop().sock_connect(caller.control, str(tmp_path / "qrexec.work"))
            fds = [null.fileno()] if what == "file" else [caller.data.fileno()] * 6
            before = len(os.listdir("/proc/self/fd"))
            socket.send_fds(caller.control, [HELLO + (EXEC if what == "file" else bytes(8))], fds)
            while not await caller.hung_up():
                pass
            assert len(os.listdir("/proc/self/fd")) <= before

    with_qube(tmp_path, work, scripted=True)


# -- a hostile agent -------------------------------------------------------------------------------------------------------------


AGENT_HELLO = qrexec.hello(qrexec.VERSION)
TRIGGER = qrexec.trigger_service4("", "dom0", qrexec.request_id("SOCKET9"), "qubes.VMShell")


def test_calls_that_a_guest_asks_for_are_refused(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        bad_service = qrexec.trigger_service3("dom0", qrexec.request_id("bad"), "+no-name")
        control.send(AGENT_HELLO + TRIGGER + bad_service)
        expected = qrexec.hello(qrexec.VERSION) + b"".join(
            qrexec.service_refused(qrexec.request_id(name)) for name in ("SOCKET9", "bad"))
        await control.until(lambda: len(control.got) >= len(expected))
        assert control.got == expected and qube.violations == []

    with_qube(tmp_path, work, scripted=True)


@pytest.mark.parametrize("sent", [
    TRIGGER, qrexec.hello(1), AGENT_HELLO + AGENT_HELLO, AGENT_HELLO + EXEC, AGENT_HELLO + qrexec.connection_terminated(0, 512),
    AGENT_HELLO + qrexec.connection_terminated(0, 769), AGENT_HELLO + qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE4, 1 << 31),
    AGENT_HELLO + qrexec.HEADER.pack(qrexec.CONNECTION_TERMINATED, 7), AGENT_HELLO + qrexec.end_of_stream(qrexec.STDIN), b"\0" * 64,
], ids=["before hello", "too old", "hello twice", "exec", "control port", "port after the last", "huge", "short", "data", "zeros"])
def test_an_agent_that_breaks_the_protocol_loses_its_channels_and_no_other_qube_notices(
    tmp_path: Path, services: Path, sent: bytes,
) -> None:
    async def work(qube: Qube) -> None:
        with (Qube(tmp_path, "hostile", XID + 1, scripted=True) as hostile,
              hostile.caller("x") as caller, qube.caller("test.Cat") as other):
            assert await caller.request() is not None and await other.request() is not None
            (await hostile.scripted_control()).send(sent)
            await hostile.host.until(lambda: bool(hostile.host.reasons))
            assert len(hostile.violations) == 1
            hostile.daemon.close()              # as the warden does when its port has ended
            assert await caller.result() == Result(b"", b"", None)
            await other.send(b"ours")
            await other.send_eof()
            assert await other.result() == Result(b"ours", b"", 0)
            assert qube.violations == []

    with_qube(tmp_path, work)


@pytest.mark.parametrize("address", [
    Address(0, XID, 514), Address(1, XID, 513), Address(0, XID + 1, 513), Address(XID, 0, 513), Address(0, XID, 512),
    Address(0, XID, 0), Address(0, XID, 0xFFFFFFFF),
])
def test_only_the_announced_channel_is_taken(tmp_path: Path, address: Address) -> None:
    async def work(qube: Qube) -> None:
        await qube.scripted_control()
        with qube.caller("test.Cat") as caller:
            answer = await caller.request()
            assert answer is not None and answer.port == 513
            wrong = qube.guest.recorder(address)
            await wrong.until(lambda: wrong.ended)
            assert wrong.got == b""

    with_qube(tmp_path, work, scripted=True)


def test_a_data_channel_is_taken_once(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        await qube.scripted_control()
        with qube.caller("test.Cat") as caller:
            assert await caller.request() is not None
            right, second = (qube.guest.recorder(Address(0, XID, 513)) for _ in range(2))
            await second.until(lambda: second.ended)
            await right.until(lambda: right.got == qrexec.hello(qrexec.VERSION))
            assert not right.ended and second.got == b""

    with_qube(tmp_path, work, scripted=True)


def test_port_is_free_when_both_have_ended_whatever_the_order(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        for order in ("guest", "data", "never taken up"):
            with qube.caller("test.Cat") as caller:
                answer = await caller.request()
                assert answer is not None and answer.port == 513
                terminated = qrexec.connection_terminated(0, 513)
                if order != "never taken up":
                    channel = qube.guest.recorder(Address(0, XID, 513))
                    await channel.heard(1)
                    if order == "guest":
                        control.send(terminated)
                    qube.guest.port.close(channel.channel)
                if order != "guest":
                    control.send(terminated)
                assert await caller.hung_up()

    with_qube(tmp_path, work, scripted=True)


@pytest.mark.parametrize("order", ["ends its data and says nothing", "never takes the channel up"])
def test_a_guest_that_never_says_that_a_call_is_over_ties_up_no_caller_and_keeps_its_port(tmp_path: Path, order: str) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        with qube.caller("test.Cat") as caller:
            answer = await caller.request()
            assert answer is not None and answer.port == 513
            if order.startswith("ends"):
                channel = qube.guest.recorder(Address(0, XID, 513))
                await channel.heard(1)
                qube.guest.port.close(channel.channel)
            else:
                caller.data.close()
            assert await caller.hung_up()
            with qube.caller("test.Cat") as second:
                answer = await second.request()
                assert answer is not None and answer.port == 514         # the guest may still use the other
                control.send(qrexec.connection_terminated(0, 513) + TRIGGER)
                await control.until(lambda: control.got.endswith(qrexec.service_refused(qrexec.request_id("SOCKET9"))))
                with qube.caller("test.Cat") as third:
                    answer = await third.request()
                    assert answer is not None and answer.port == 513
        assert qube.violations == []

    with_qube(tmp_path, work, scripted=True, grace=0.0, unopened=0.0)


def test_a_call_that_runs_is_under_no_grace(tmp_path: Path) -> None:
    """Neither one that the guest has taken up, nor one whose caller waits that it does."""
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        with qube.caller("test.Cat") as taken, qube.caller("test.Cat") as waits:
            assert await taken.request() is not None and await waits.request() is not None
            channel = qube.guest.recorder(Address(0, XID, 513))
            await channel.heard(1)
            control.send(TRIGGER)                        # turns of the loop, in which no timer may run
            await control.until(lambda: control.got.endswith(qrexec.service_refused(qrexec.request_id("SOCKET9"))))
            channel.send(qrexec.hello(4))
            assert await taken.read()
            late = qube.guest.recorder(Address(0, XID, 514))
            late.send(qrexec.hello(4))
            assert await waits.read()

    with_qube(tmp_path, work, scripted=True, grace=0.0, unopened=0.0)


def test_what_a_caller_sent_before_it_went_is_there_for_a_guest_that_comes_in_time(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        with qube.caller("test.Cat") as caller:
            assert await caller.request() is not None
            await caller.send(b"last words")
            caller.data.close()
            control.send(TRIGGER)
            await control.until(lambda: control.got.endswith(qrexec.service_refused(qrexec.request_id("SOCKET9"))))
            channel = qube.guest.recorder(Address(0, XID, 513))
            await channel.until(lambda: channel.ended)
            assert channel.got.endswith(b"last words")
            assert qube.daemon._uses[513].overdue is not None        # for the guest's word now

    with_qube(tmp_path, work, scripted=True)


def test_terminated_for_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        with qube.caller("test.Cat") as caller:
            await caller.request()
            control.send(AGENT_HELLO + qrexec.connection_terminated(5, 513) + qrexec.connection_terminated(0, 600) + TRIGGER)
            await control.until(lambda: control.got.endswith(qrexec.service_refused(qrexec.request_id("SOCKET9"))))
            with qube.caller("test.Cat") as second:
                answer = await second.request()
                assert answer is not None and answer.port == 514

    with_qube(tmp_path, work, scripted=True)


def test_triggers_without_end_from_an_agent_that_reads_nothing(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.stuck = True
        control.send(AGENT_HELLO + TRIGGER * (3 * MEGABYTE // 32))
        await qube.host.until(lambda: bool(qube.host.reasons))
        assert qube.violations == ["calls without end, and no answer is read"]

    with_qube(tmp_path, work, scripted=True)


def test_a_guest_that_is_not_heard_for_a_while_waits_with_all_it_has_to_say(tmp_path: Path, services: Path) -> None:
    """It gets no credit, so what this process holds of it is bounded; calls into it go on."""
    async def work(qube: Qube) -> None:
        heard: list[qrexec.Trigger] = []
        qube.daemon.asked = heard.append
        qube.daemon.pace = lambda: PATIENCE
        control = await qube.scripted_control()
        count = 2 * WINDOW // len(TRIGGER)
        control.send(AGENT_HELLO + TRIGGER * count)
        with qube.caller("test.Cat") as caller:
            assert await caller.request() is not None
            qube.guest.recorder(Address(0, XID, 513)).send(b"all the same")
            assert await asyncio.get_running_loop().sock_recv(caller.data, 64) == b"all the same"
        assert len(heard) == 1 and len(control.to_send) >= count * len(TRIGGER) - WINDOW
        assert qube.violations == []

    with_qube(tmp_path, work, scripted=True)


def test_nothing_is_lost_or_out_of_turn_when_a_guest_is_heard_bit_by_bit(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        heard: list[bytes] = []
        qube.daemon.asked = lambda trigger: heard.append(trigger.request_id)
        qube.daemon.pace = lambda: 0.0 if len(heard) % 100 else 0.001
        control = await qube.scripted_control()
        idents = [qrexec.request_id(f"SOCKET{number}") for number in range(3 * WINDOW // len(TRIGGER))]
        control.send(AGENT_HELLO + b"".join(qrexec.trigger_service4("", "dom0", ident, "test.Cat") for ident in idents))
        await control.until(lambda: not control.to_send)
        control.send(qrexec.trigger_service4("", "dom0", qrexec.request_id("last"), "+"))      # refused by the daemon itself
        await control.until(lambda: control.got.endswith(qrexec.service_refused(qrexec.request_id("last"))))
        assert heard == idents and qube.violations == []

    with_qube(tmp_path, work, scripted=True)


@pytest.mark.parametrize("end", ["agent", "daemon"])
def test_what_a_guest_said_is_nothing_when_its_channel_has_ended_while_it_waited(tmp_path: Path, end: str) -> None:
    async def work(qube: Qube) -> None:
        heard: list[qrexec.Trigger] = []

        def asked(trigger: qrexec.Trigger) -> None:
            heard.append(trigger)
            qube.host.tell()

        qube.daemon.asked = asked
        qube.daemon.pace = lambda: 0.001
        control = await qube.scripted_control()
        control.send(AGENT_HELLO + TRIGGER * 2)
        await qube.host.until(lambda: bool(heard))
        if end == "agent":
            control.port.close(control.channel)
            await qube.guest.until(lambda: qube.control is not control)      # the daemon waits for a new one
        else:
            qube.daemon.close()
        passed = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.002, passed.set_result, None)
        await passed
        assert len(heard) == 1 and qube.violations == []

    with_qube(tmp_path, work, scripted=True)


def test_garbage_on_a_data_channel_is_the_callers_to_refuse(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        await qube.scripted_control()
        with qube.caller("test.Cat") as caller:
            await caller.request()
            channel = qube.guest.recorder(Address(0, XID, 513))
            channel.send(b"\xff" * WINDOW)
            assert await asyncio.get_running_loop().sock_recv(caller.data, 64) == b"\xff" * 64
            assert qube.violations == []

    with_qube(tmp_path, work, scripted=True)


# -- before anybody decides, and between two agents -------------------------------------------------------------------------


def test_a_request_that_nobody_holds_is_answered_by_no_program_of_the_host(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        await control.heard(len(AGENT_HELLO))
        for ident in (qrexec.request_id("SOCKET9"), bytes(32)):
            with qube.answering(ident) as caller:
                assert await caller.request() is None
        assert control.got == qrexec.hello(qrexec.VERSION) and not qube.daemon._uses

    with_qube(tmp_path, work, scripted=True)


def test_a_request_that_gets_no_port_is_refused_to_both_sides(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        qube.daemon.answerable = lambda _ident: True
        while qube.daemon._ports.take(0) is not None:
            pass
        with qube.answering(qrexec.request_id("SOCKET9")) as caller:
            assert await caller.request() is None
        expected = qrexec.hello(qrexec.VERSION) + qrexec.service_refused(qrexec.request_id("SOCKET9"))
        await control.heard(len(expected))
        assert control.got == expected and not qube.daemon._uses

    with_qube(tmp_path, work, scripted=True)


@pytest.mark.parametrize("greets", [True, False], ids=["read by nobody", "no hello yet"])
def test_so_much_waits_for_an_agent_and_then_no_caller_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greets: bool,
) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        if greets:
            control.stuck = True
            control.send(AGENT_HELLO)
            await control.heard(len(AGENT_HELLO))
            await qube.host.until(lambda: qube.daemon._greeted)
            assert qube.daemon._outbox is not None
            qube.daemon._outbox.put(bytes(WINDOW))           # all its credit, and the first that waits
        with contextlib.ExitStack() as stack:
            monkeypatch.setattr(daemon, "MAX_ANSWERS", 100 + (len(qube.daemon._outbox or b"") if greets else 0))
            served = 0
            while await stack.enter_context(qube.command("x" * 30)).request() is not None:
                served += 1
                assert served < 10
            assert served >= 2
            control.stuck = False
            qube.guest.port.consumed(control.channel, len(control.got))
            if not greets:
                control.send(AGENT_HELLO)
            await control.until(lambda: control.got.count(b"x" * 30) == served)
            assert await stack.enter_context(qube.command("again")).request() is not None
            await control.until(lambda: b"again" in control.got)
        assert qube.violations == []

    with_qube(tmp_path, work, scripted=True)


def test_what_waited_for_an_agent_that_has_gone_is_not_told_to_the_next(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        restarts: list[int] = []
        qube.daemon.on_restart = lambda: restarts.append(1)
        former = await qube.scripted_control()
        with qube.command("echo former") as caller:
            assert await caller.request() is not None
            qube.guest.port.close(former.channel)
            assert await caller.hung_up()
        await qube.guest.until(lambda: qube.control is not former)
        assert len(restarts) == 1 and os.listdir(tmp_path) == []
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        await control.heard(len(AGENT_HELLO))
        with qube.command("echo next") as caller:
            assert await caller.request() is not None
        await control.until(lambda: b"next" in control.got)
        assert b"former" not in control.got

    with_qube(tmp_path, work, scripted=True)


def test_a_daemon_that_was_closed_looks_for_no_other_agent(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        await control.heard(len(AGENT_HELLO))
        qube.daemon.close()
        qube.guest.port.close(control.channel)
        qube.guest.port.control(b"closed")
        await qube.host.until(lambda: bool(qube.host.controls))
        qube.host.port.control(b"seen")
        await qube.guest.until(lambda: bool(qube.guest.controls))
        assert len(qube.guest.opened) == 1 and os.listdir(tmp_path) == []

    with_qube(tmp_path, work, scripted=True)


def test_callers_are_accepted_after_the_start_and_not_because_of_a_hello(tmp_path: Path) -> None:
    async def work() -> None:
        ready: list[int] = []
        with Wire() as (host, guest):
            controls: dict[int, Recorder] = {}
            guest.record_all(controls)
            one = daemon.Daemon(host.port, daemon.Served(XID, "work", "x", USER), str(tmp_path), host.reasons.append,
                                on_ready=lambda: ready.append(1))
            one.connect()
            await guest.until(lambda: bool(controls))
            control = controls[qrexec.CONTROL_PORT]
            control.send(AGENT_HELLO)
            await control.heard(len(AGENT_HELLO))
            assert ready == [1] and os.listdir(tmp_path) == []
            one.start()
            assert len(os.listdir(tmp_path)) == 3
            one.close()
            one.close()
            assert os.listdir(tmp_path) == [] and host.reasons == []

    asyncio.run(work())


@pytest.mark.parametrize("end", ["daemon", "qube", "peer"])
def test_a_channel_to_a_peer_ends_with_either_side_and_with_the_daemon(tmp_path: Path, end: str) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        made: dict[int, Recorder] = {}
        qube.guest.record_all(made)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        told: list[int] = []
        with ours:
            qube.daemon.connect_peer(qrexec.request_id("SOCKET9"), 5, 600, theirs, lambda: told.append(1))
            await qube.guest.until(lambda: 600 in made)
            channel = made[600]
            assert qube.guest.opened[-1][1] == Address(XID, 5, 600)
            channel.send(b"there")
            assert await asyncio.get_running_loop().sock_recv(ours, 64) == b"there"
            assert told == []
            if end == "daemon":
                qube.daemon.close()
            elif end == "qube":
                qube.guest.port.close(channel.channel)
            else:
                ours.close()
            if end != "peer":
                async with asyncio.timeout(PATIENCE):
                    assert await asyncio.get_running_loop().sock_recv(ours, 64) == b""
            if end == "peer":
                await channel.until_ended()
            assert told == [1] and not qube.daemon._relays
        assert control.got.endswith(qrexec.service_connect(5, 600, qrexec.request_id("SOCKET9")))

    with_qube(tmp_path, work, scripted=True)


def test_a_peer_that_can_not_be_met_is_refused_and_nothing_told(tmp_path: Path) -> None:
    async def work(qube: Qube) -> None:
        control = await qube.scripted_control()
        control.send(AGENT_HELLO)
        with pytest.raises(PeerError, match="no descriptors"):
            qube.daemon.connect_peer(qrexec.request_id("SOCKET9"), 5, 600, None)
        control.send(TRIGGER)
        await control.until(lambda: control.got.endswith(qrexec.service_refused(qrexec.request_id("SOCKET9"))))
        assert control.got == qrexec.hello(qrexec.VERSION) + qrexec.service_refused(qrexec.request_id("SOCKET9"))

    with_qube(tmp_path, work, scripted=True)


# -- the real client ---------------------------------------------------------------------------------------------------------------


def test_real_client(tmp_path: Path, services: Path) -> None:
    paths = Paths(str(tmp_path / "run"), str(tmp_path), str(tmp_path))
    os.makedirs(paths.qubes)

    def call(command: str, stdin: bytes) -> tuple[int, bytes, bytes]:
        read_in, write_in = os.pipe()
        out, err = (os.memfd_create(name) for name in ("out", "err"))
        os.write(write_in, stdin)
        os.close(write_in)
        status = client.run(paths, "work", command, client.Ends(read_in, out, err))
        with io.FileIO(out) as out_file, io.FileIO(err) as err_file:
            os.close(read_in)
            return status, out_file.seek(0) * b"" + out_file.readall(), err_file.seek(0) * b"" + err_file.readall()

    async def work(qube: Qube) -> None:
        run = asyncio.to_thread
        assert await run(call, "DEFAULT:QUBESRPC test.Cat dom0", b"through") == (0, b"through", b"")
        assert await run(call, "DEFAULT:QUBESRPC test.Both dom0", b"") == (3, b"out\n", b"err\n")
        assert await run(call, "DEFAULT:QUBESRPC test.Missing dom0", b"") == (127, b"", b"")
        many = await asyncio.gather(*(run(call, "DEFAULT:QUBESRPC test.Cat dom0", b"%d" % n) for n in range(30)))
        assert many == [(0, b"%d" % n, b"") for n in range(30)]

    with_qube(Path(paths.qubes), work)
    with pytest.raises(QubeNotRunning):
        client.run(paths, "work", "DEFAULT:true")


def test_real_client_of_a_hostile_agent(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "run"), str(tmp_path), str(tmp_path))
    os.makedirs(paths.qubes)

    async def work(qube: Qube) -> None:
        (await qube.scripted_control()).send(qrexec.hello(4))
        news = News()
        calling = asyncio.ensure_future(asyncio.to_thread(client.run, paths, "work", "DEFAULT:true"))
        calling.add_done_callback(lambda _: news.tell())
        control = await qube.scripted_control()
        await control.until(lambda: b"true\0" in control.got)
        channel = qube.guest.recorder(Address(0, XID, 513))
        channel.send(qrexec.hello(4) + qrexec.HEADER.pack(qrexec.STDOUT, 65537))
        await news.until(calling.done)
        assert calling.result() == client.PROTOCOL

    with_qube(Path(paths.qubes), work, scripted=True)
