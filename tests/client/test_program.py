"""Programs in qubes from Python, for callers that wait and for those with a loop: each promise is tested for both."""
from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_qubesd import FakeWarden
from tests.patience import PATIENCE

from cloison.client import agent_wait, aio, ends, words
from cloison.client import run as sync
from cloison.client.connection import Connection
from cloison.client.ends import Queue, Source, Tail, Whole
from cloison.client.failures import (
    BadCommand,
    CallLost,
    CallTimeout,
    CommandFailed,
    QrexecError,
    TooMuchOutput,
    Unfinished,
    said,
)
from cloison.client.program import Program
from cloison.client.run import Completed
from cloison.errors import BadValue, CloisonError, QubeNotRunning
from cloison.qrexec import vmexec
from cloison.runtime.paths import Paths
from cloison.wire import qrexec as wire

Run = Callable[..., Completed]


def run_and_wait(*arguments: object, **options: object) -> Completed:
    return sync.run(Connection(), *arguments, **options)  # type: ignore[arg-type]


def run_in_a_loop(*arguments: object, **options: object) -> Completed:
    return asyncio.run(aio.run(aio.Connection(), *arguments, **options))  # type: ignore[arg-type]


@pytest.fixture(params=[run_and_wait, run_in_a_loop], ids=["waiting", "awaited"])
def run(request: pytest.FixtureRequest, warden: FakeWarden) -> Run:
    found: Run = request.param
    return found


def gone(pid: int) -> None:
    """Wait for the end of a process that is no child of ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd)
    assert poll.poll(PATIENCE * 1000), f"process {pid} goes on"
    os.close(pidfd)


# -- run -------------------------------------------------------------------------------------------------------------------


def test_a_line_and_its_streams(run: Run) -> None:
    assert run("work", "cat; echo oops >&2; exit 3", data="in") == (3, b"in", b"oops\n")


def test_words_meet_no_shell(run: Run, warden: FakeWarden) -> None:
    odd = ["$HOME;`id`", "a b", "", "-x", "ü\n", "*"]
    assert run("work", ["printf", "[%s]", *odd]).untrusted_text == "".join(f"[{word}]" for word in odd)
    assert warden.commands[0].command.startswith("DEFAULT:QUBESRPC qubes.VMExec+printf+")


def test_environment_and_folder(run: Run, tmp_path: Path) -> None:
    value = "a'\"$(id)\n;=ü"
    assert run("work", ["sh", "-c", 'pwd; printf %s "$NAME"'], env={"NAME": value}, cwd=str(tmp_path)).untrusted_text \
        == f"{tmp_path}\n{value}"
    assert run("work", 'echo "$A$B"', env={"A": "1", "B": "2"}).untrusted_text == "12\n"
    assert run("work", "pwd", cwd="/").untrusted_text == "/\n"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3_000_000])
def test_bytes_of_any_size(run: Run, size: int) -> None:
    data = os.urandom(size)
    assert run("work", ["cat"], data=data) == (0, data, b"")


@pytest.mark.parametrize("size,fits", [(999, True), (1000, True), (1001, False)])
def test_output_is_bounded(run: Run, warden: FakeWarden, size: int, fits: bool) -> None:
    for redirect in ("", " >&2"):
        if fits:
            assert len(b"".join(run("work", f"head -c {size} /dev/zero{redirect}", max_output=1000)[1:])) == size
        else:
            with pytest.raises(TooMuchOutput) as error:
                run("work", f"head -c {size} /dev/zero{redirect}; sleep 1000", max_output=1000)
            assert error.value.limit == 1000 and "1000" in str(error.value)
    if not fits:
        assert signal.SIGKILL in warden.signals


def test_a_program_that_takes_too_long_is_killed(run: Run, warden: FakeWarden) -> None:
    with pytest.raises(CallTimeout) as error:
        run("work", "echo $$; echo why >&2; sleep 1000", timeout=0.5)
    assert (error.value.qube, error.value.seconds, error.value.untrusted_stderr) == ("work", 0.5, b"why\n")
    assert "0.5 seconds" in str(error.value)
    gone(int(error.value.untrusted_stdout))
    assert warden.signals[0] == signal.SIGKILL


def test_a_flood_does_not_outrun_the_limit(run: Run, warden: FakeWarden) -> None:
    with pytest.raises((CallTimeout, TooMuchOutput)):
        run("work", "yes", timeout=0.3, max_output=1 << 40)


def test_a_warden_that_does_not_answer(run: Run, warden: FakeWarden, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = warden.gate = threading.Event()
    try:
        with pytest.raises(CallTimeout):
            run("work", "true", timeout=0.2)
        monkeypatch.setattr("cloison.client.qrexec.ANSWER_TIME", 0.2)
        with pytest.raises(QrexecError, match="does not answer"):
            run("work", "true")
    finally:
        gate.set()


def test_the_qubes_end_is_no_status(run: Run, warden: FakeWarden) -> None:
    def die(channel: socket.socket) -> None:
        channel.sendall(wire.hello(wire.VERSION) + b"".join(wire.data(wire.STDOUT, b"so far")))

    warden.script = die
    with pytest.raises(CallLost) as error:
        run("work", "true")
    assert (error.value.qube, error.value.untrusted_stdout) == ("work", b"so far")
    assert isinstance(error.value, Unfinished) and "work ended" in str(error.value)
    warden.script = None
    assert run("work", "exit 255") == (255, b"", b"")


def test_a_broken_protocol_is_no_status(run: Run, warden: FakeWarden) -> None:
    warden.script = lambda channel: channel.sendall(b"\xff" * 64)
    with pytest.raises(QrexecError, match="broke the qrexec protocol"):
        run("work", "true")
    warden.script = None
    assert run("work", "exit 125").status == 125


def test_status_and_check(run: Run) -> None:
    assert run("work", "true", check=True).status == 0
    with pytest.raises(CommandFailed) as error:
        run("work", "echo out; echo 'no such\033[2J' >&2; exit 4", check=True)
    assert (error.value.status, error.value.untrusted_stdout) == (4, b"out\n")
    assert str(error.value) == "the program in work ended with status 4; it said: no such_[2J"


@pytest.fixture
def agent_away(warden: FakeWarden, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The qube runs, and its agent has just ended. The next one is there when `there` is in the list and qubesd is asked."""
    path = Path(Paths.from_environment().qubes, "qrexec.work")
    away = path.rename(path.with_suffix(".away"))
    wanted: list[str] = []

    def state(_paths: Paths, _qube: str) -> str:
        if wanted:
            away.rename(path)
        return "Running"

    monkeypatch.setattr(agent_wait, "state", state)
    yield wanted
    if away.exists():
        away.rename(path)


def test_a_new_agent_is_waited_for(run: Run, agent_away: list[str]) -> None:
    agent_away.append("there")
    assert run("work", "echo there") == (0, b"there\n", b"")


@pytest.mark.usefixtures("agent_away")
def test_a_new_agent_is_waited_for_no_longer_than_the_caller_says(run: Run) -> None:
    with pytest.raises(CallTimeout):
        run("work", "true", timeout=0.2)


def test_who_is_not_there(run: Run) -> None:
    with pytest.raises(QubeNotRunning):
        run("nobody", "true")


@pytest.mark.parametrize("qube,command,options", [
    ("bad name", "true", {}), ("work", "", {}), ("work", [], {}), ("work", [""], {}),
    ("work", "a\0b", {}), ("work", ["a", "b\0"], {}),
    ("work", "true", {"env": {"A B": ""}}), ("work", "true", {"env": {"": ""}}), ("work", "true", {"env": {"1A": ""}}),
    ("work", "true", {"env": {"-u": "x"}}), ("work", "true", {"env": {"A": "\0"}}), ("work", "true", {"cwd": "\0"}),
    ("work", ["A=1", "x"], {"cwd": "/"}), ("work", "true", {"user": "root:x"}), ("work", "true", {"user": ""}),
    ("work", "x" * 70000, {}),
])
def test_what_can_not_be_asked_for(run: Run, warden: FakeWarden, qube: str, command: str, options: dict[str, str]) -> None:
    with pytest.raises((BadCommand, BadValue)):
        run(qube, command, **options)
    assert warden.commands == []


def test_services(warden: FakeWarden) -> None:
    sync.run_service(Connection(), "work", "qubes.GetDate")
    asyncio.run(aio.run_service(aio.Connection(), "work", "test.S+arg", user="root"))
    assert [each.command for each in warden.commands] == [
        "DEFAULT:QUBESRPC qubes.GetDate+ dom0", "root:QUBESRPC test.S+arg dom0"]
    for bad in ("a b", "", "+x", "a/b", "a+b c"):
        with pytest.raises(BadCommand):
            sync.run_service(Connection(), "work", bad)


def test_an_interrupt_kills_the_program(warden: FakeWarden, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cloison.client.qrexec.Poller.turn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sync.run(Connection(), "work", "sleep 1000")


def test_cancelling_kills_the_program(warden: FakeWarden) -> None:
    async def main() -> int:
        async with asyncio.timeout(PATIENCE):
            reader: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def work() -> None:
                async with await aio.start(aio.Connection(), "work", "echo $$; sleep 1000") as under_way:
                    reader.set_result(int(await under_way.stdout.readline()))
                    await under_way.wait()

            task = asyncio.ensure_future(work())
            pid = await reader
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return pid

    gone(asyncio.run(main()))
    assert warden.signals[0] == signal.SIGKILL


def test_many_at_once_in_one_loop(warden: FakeWarden) -> None:
    async def main() -> list[Completed]:
        system = aio.Connection()
        return await asyncio.gather(*(aio.run(system, "work", f"cat; exit {n}", data=b"%d" % n) for n in range(20)))

    assert asyncio.run(main()) == [(n, b"%d" % n, b"") for n in range(20)]


# -- handles ---------------------------------------------------------------------------------------------------------------


def test_a_conversation(warden: FakeWarden) -> None:
    with Program(Connection(), "work", ["sh", "-c", 'while read x; do echo "<$x>"; done; exit 7']) as under_way:
        for word in ("a", "b"):
            under_way.stdin.write(f"{word}\n")
            assert under_way.stdout.readline() == f"<{word}>\n".encode()
        assert under_way.status is None
        under_way.stdin.close()
        assert under_way.stdout.read() == b""
        assert under_way.wait() == 7 == under_way.status
        with pytest.raises(QrexecError, match="ended"):
            under_way.stdin.write("more")


def test_an_awaited_conversation(warden: FakeWarden) -> None:
    async def main() -> None:
        command = ["sh", "-c", 'while read x; do echo "<$x>"; done; exit 7']
        async with asyncio.timeout(PATIENCE), await aio.start(aio.Connection(), "work", command) as under_way:
            for word in ("a", "b"):
                await under_way.stdin.write(f"{word}\n")
                assert await under_way.stdout.readline() == f"<{word}>\n".encode()
            assert under_way.status is None
            under_way.stdin.close()
            assert [line async for line in under_way.stdout] == []
            assert await under_way.wait(PATIENCE) == 7 == under_way.status
            with pytest.raises(QrexecError, match="ended"):
                await under_way.stdin.write("more")

    asyncio.run(main())


def test_signals(warden: FakeWarden) -> None:
    trap = "trap 'echo got; exit 5' USR1; echo up; sleep 1000 & wait"
    with Program(Connection(), "work", trap) as under_way:
        assert under_way.stdout.readline() == b"up\n"
        with pytest.raises(CallTimeout):
            under_way.wait(0.05)
        assert under_way.status is None
        under_way.signal(signal.SIGUSR1)
        assert (under_way.stdout.readline(), under_way.wait()) == (b"got\n", 5)
    with Program(Connection(), "work", "sleep 1000") as under_way:
        under_way.kill()
        assert under_way.wait() == 128 + signal.SIGKILL
        under_way.kill()                 # it has ended: nothing happens
    for number in (0, -1, 65):
        with pytest.raises(BadValue), Program(Connection(), "work", "sleep 1000") as under_way:
            under_way.signal(number)
    with pytest.raises(BadCommand):
        Program(Connection(), "work", "true", stderr="elsewhere")


def test_awaited_signals(warden: FakeWarden) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE), await aio.start(aio.Connection(), "work", "sleep 1000") as under_way:
            with pytest.raises(CallTimeout):
                await under_way.wait(0.05)
            under_way.signal(signal.SIGTERM)
            assert await under_way.wait() == 128 + signal.SIGTERM

    asyncio.run(main())


def test_a_slow_reader_makes_the_program_wait(warden: FakeWarden) -> None:
    """What waits here is bounded; nothing is lost."""
    total = 20 << 20
    with Program(Connection(), "work", f"head -c {total} /dev/zero; echo end") as under_way:
        first = under_way.stdout.read(10)
        with pytest.raises(CallTimeout):
            under_way.wait(0.3)
        assert len(under_way.untrusted_stdout) < ends.STREAM + (1 << 18)
        rest = b"".join(iter(under_way.stdout.read, b""))
        assert len(first) + len(rest) == total + 4 and rest.endswith(b"end\n")
        assert under_way.wait() == 0


def test_an_awaited_slow_reader(warden: FakeWarden) -> None:
    async def main() -> None:
        total = 20 << 20
        async with asyncio.timeout(PATIENCE), \
                await aio.start(aio.Connection(), "work", f"head -c {total} /dev/zero") as under_way:
            with pytest.raises(CallTimeout):
                await under_way.wait(0.3)
            assert len(under_way.untrusted_stdout) < ends.STREAM + (1 << 18)
            size = 0
            while data := await under_way.stdout.read():
                size += len(data)
            assert (size, await under_way.wait()) == (total, 0)

    asyncio.run(main())


def test_a_program_that_reads_nothing_makes_the_writer_wait(warden: FakeWarden) -> None:
    with Program(Connection(), "work", "sleep 1000") as under_way, pytest.raises(CallTimeout):
        under_way.stdin.write(bytes(50 << 20), timeout=0.5)


@pytest.mark.parametrize("stderr", ["tail", "stream", "stdout"])
def test_where_errors_go(warden: FakeWarden, stderr: str) -> None:
    with Program(Connection(), "work", "echo oops >&2", stderr=stderr) as under_way:
        assert under_way.stdout.read() == (b"oops\n" if stderr == "stdout" else b"")
        assert under_way.stderr.read() == (b"oops\n" if stderr == "stream" else b"")
        assert under_way.wait() == 0
        assert under_way.untrusted_stderr == (b"oops\n" if stderr == "tail" else b"")


def test_errors_are_kept_at_their_end_and_never_in_the_way(warden: FakeWarden) -> None:
    with Program(Connection(), "work", "head -c 3000000 /dev/zero >&2; echo last >&2") as under_way:
        assert under_way.wait() == 0
        assert len(under_way.untrusted_stderr) == ends.TAIL and under_way.untrusted_stderr.endswith(b"\0last\n")


def test_long_lines_come_in_parts(warden: FakeWarden) -> None:
    with Program(Connection(), "work", "head -c 70000 /dev/zero; echo; echo b; printf c") as under_way:
        assert [len(line) for line in under_way.stdout] == [65536, 70000 - 65536 + 1, 2, 1]


def test_leaving_the_context_ends_it(warden: FakeWarden) -> None:
    with Program(Connection(), "work", "echo $$; sleep 1000") as under_way:
        pid = int(under_way.stdout.readline())
    gone(pid)


def test_a_handle_of_a_qube_that_ends(warden: FakeWarden) -> None:
    warden.script = lambda channel: channel.sendall(wire.hello(wire.VERSION) + b"".join(wire.data(wire.STDOUT, b"x")))
    with Program(Connection(), "work", "true") as under_way:
        assert under_way.stdout.read() == b"x"
        with pytest.raises(CallLost):
            under_way.stdout.read()
        with pytest.raises(CallLost):
            under_way.wait()
        with pytest.raises(CallLost):
            under_way.stdin.write("x")
        assert under_way.status is None


# -- parts -----------------------------------------------------------------------------------------------------------------


def test_words_survive_their_encoding() -> None:
    for spoken in (["a"], ["a b", "", "--", "ü", "\n"], ["x" * 1000]):
        assert [os.fsdecode(word) for word in vmexec.decode(words.encode_words(spoken))] == spoken


def test_a_line_is_no_service_call() -> None:
    assert words.program("QUBESRPC x y") == "DEFAULT: QUBESRPC x y"
    assert words.program("nogui:x", user="root") == "root: nogui:x"


def test_a_queue_blocks_at_its_bound() -> None:
    queue = Queue()
    queue.put(bytes(ends.STREAM - 1))
    assert not queue.blocked
    queue.put(b"x")
    assert queue.blocked
    assert queue.take(1) == b"\0" and not queue.blocked


def test_sinks_of_memory() -> None:
    whole, tail = Whole(2), Tail()
    whole.put(b"ab")
    with pytest.raises(TooMuchOutput):
        whole.put(b"c")
    tail.put(bytes(ends.TAIL) + b"x")
    assert len(tail.untrusted) == ends.TAIL and tail.untrusted[-1:] == b"x"
    for sink in (whole, tail):
        assert not sink.ended and not sink.blocked and sink.eager and sink.target is None
        sink.finish()
        assert sink.ended


def test_a_source() -> None:
    source = Source()
    assert not source.ready and source.empty
    source.put(b"abc")
    assert source.ready and source.read(2) == b"ab" and not source.empty and source.read(2) == b"c"
    assert not source.ready
    source.end()
    assert source.ready and source.read(1) == b""


def test_what_a_qube_said_is_short_and_harmless() -> None:
    assert said(b"") == ""
    assert said("ä\033x\nlast\x07\n".encode()) == "; it said: last_"
    assert len(said(b"x" * 1000)) == len("; it said: ") + 200


def test_every_failure_is_one_of_ours() -> None:
    for kind in (BadCommand, CallLost, CallTimeout, CommandFailed, QrexecError, TooMuchOutput, Unfinished):
        assert issubclass(kind, CloisonError)


def test_a_handle_s_timeout_does_not_say_that_the_program_was_ended(warden: FakeWarden) -> None:
    with Program(Connection(), "work", "sleep 1000") as under_way:
        with pytest.raises(CallTimeout, match=r"^the program in work took longer than 0\.1 seconds$") as error:
            under_way.wait(timeout=0.1)
        assert "goes on" in error.value.hint and not warden.signals
        under_way.kill()
        assert under_way.wait(timeout=30) == 128 + signal.SIGKILL
