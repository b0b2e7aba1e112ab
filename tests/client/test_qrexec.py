"""The host's end of a call against a warden that speaks the real protocol and runs real programs."""
from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_qubesd import FakeWarden

from cloison.client import qrexec
from cloison.client.ends import Sink
from cloison.client.failures import BadCommand, QrexecError
from cloison.errors import QubeNotRunning
from cloison.runtime.paths import Paths
from cloison.wire import qrexec as wire

pytestmark = pytest.mark.usefixtures("qubesd")


@pytest.fixture
def paths(root: Path) -> Paths:
    return Paths.from_environment()


class Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)

    def all(self) -> bytes:
        os.close(self.write_end)
        with open(self.read_end, "rb") as file:
            return file.read()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    yield Pipe()


def test_output_errors_and_status_arrive(paths: Paths, warden: FakeWarden) -> None:
    out, err = Pipe(), Pipe()
    status = qrexec.run(paths, "work", "DEFAULT:echo out; echo err >&2; exit 7", qrexec.Ends(None, out.write_end, err.write_end))
    assert (status, out.all(), err.all()) == (7, b"out\n", b"err\n")
    assert [exec_.command for exec_ in warden.commands] == ["DEFAULT:echo out; echo err >&2; exit 7"]


def test_input_reaches_the_program_after_the_prefix(paths: Paths, warden: FakeWarden) -> None:
    source, out = Pipe(), Pipe()
    os.write(source.write_end, b"from stdin")
    os.close(source.write_end)
    status = qrexec.run(paths, "work", "u:cat", qrexec.Ends(source.read_end, out.write_end), b"prefix ")
    os.close(source.read_end)
    assert (status, out.all()) == (0, b"prefix from stdin")


@pytest.mark.parametrize("size", [0, 1, 4095, 65535, 65536, 65537, 5_000_000])
def test_a_stream_goes_both_ways_unchanged(paths: Paths, warden: FakeWarden, size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        status = qrexec.run(paths, "work", "u:cat", qrexec.Ends(source.fileno(), target.fileno()))
    assert status == 0
    assert (tmp_path / "out").read_bytes() == data


def test_a_slow_reader_of_a_pipe_gets_everything(paths: Paths, warden: FakeWarden) -> None:
    out = Pipe()
    received: list[bytes] = []

    def read() -> None:
        while data := os.read(out.read_end, 100):
            received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    status = qrexec.run(paths, "work", "u:head -c 300000 /dev/zero", qrexec.Ends(None, out.write_end))
    os.close(out.write_end)
    reader.join()
    os.close(out.read_end)
    assert (status, b"".join(received)) == (0, bytes(300000))


def test_a_full_pipe_stops_the_qube_and_the_other_stream_goes_on(paths: Paths, warden: FakeWarden) -> None:
    """The inherited description stays blocking, and what waits here is at most one chunk."""
    out = Pipe()
    sink = Sink(out.write_end, clean=False)
    sink.put(b"x" * wire.MAX_CHUNK)
    sink.flush()
    assert not sink.blocked              # a pipe holds 64 KiB
    sink.put(b"y" * 10)
    sink.flush()
    assert sink.blocked
    assert os.get_blocking(out.write_end)
    os.read(out.read_end, wire.MAX_CHUNK)
    sink.flush()
    assert not sink.blocked
    sink.close()
    assert out.all() == b"y" * 10


def test_nobody_reads_the_output_any_more(paths: Paths, warden: FakeWarden) -> None:
    out = Pipe()
    os.close(out.read_end)
    assert qrexec.run(paths, "work", "u:yes", qrexec.Ends(None, out.write_end)) == 128 + signal.SIGPIPE
    os.close(out.write_end)


def test_the_reader_sees_the_end_when_the_qube_closes_its_output(paths: Paths, warden: FakeWarden) -> None:
    out = Pipe()
    seen: list[bytes] = []

    def agent(channel: socket.socket) -> None:
        channel.sendall(wire.hello(4) + b"".join(wire.data(wire.STDOUT, b"all")) + wire.end_of_stream(wire.STDOUT))
        with open(out.read_end, "rb") as reader:
            seen.append(reader.read())   # ends although the call goes on
        channel.sendall(wire.exit_code(3))

    warden.script = agent
    assert qrexec.run(paths, "work", "u:x", qrexec.Ends(None, out.write_end)) == 3
    assert seen == [b"all"]
    os.close(out.write_end)


HELLO = wire.hello(4)
ENDINGS = [
    (HELLO + wire.exit_code(0), 0),
    (HELLO + wire.exit_code(126), 126),
    (HELLO + wire.exit_code(-1), 255),
    (HELLO + wire.exit_code(256), 255),
    (HELLO + wire.HEADER.pack(wire.EXIT_CODE, 2) + b"xx", 255),
    (HELLO, 255),
    (b"", 255),
    (wire.exit_code(0), 125),                                        # no HELLO
    (wire.hello(1), 125),
    (HELLO + wire.HEADER.pack(wire.STDOUT, wire.MAX_CHUNK + 1), 125),
    (HELLO + wire.HEADER.pack(0x999, 0), 125),
    (HELLO + wire.end_of_stream(wire.STDOUT) + b"".join(wire.data(wire.STDOUT, b"after the end")) + wire.exit_code(1), 1),
]


@pytest.mark.parametrize(("sent", "status"), ENDINGS)
def test_whatever_the_qube_says_the_call_ends(paths: Paths, warden: FakeWarden, sent: bytes, status: int) -> None:
    out = Pipe()
    warden.script = lambda channel: channel.sendall(sent)
    assert qrexec.run(paths, "work", "u:x", qrexec.Ends(None, out.write_end)) == status
    out.all()


def test_qsb_013b_no_escape_sequence_reaches_a_terminal(paths: Paths, warden: FakeWarden) -> None:
    out, err = Pipe(), Pipe()
    warden.script = lambda channel: channel.sendall(
        HELLO + b"".join(wire.data(wire.STDOUT, bytes(range(256)))) + b"".join(wire.data(wire.STDERR, b"\x1b]0;t\x9b1m"))
        + wire.exit_code(0))
    ends = qrexec.Ends(None, out.write_end, err.write_end, clean_stdout=True, clean_stderr=True)
    assert qrexec.run(paths, "work", "u:x", ends) == 0
    shown = out.all()
    assert set(shown) <= set(b"\t\n\r\b\a") | set(range(0x20, 0x7F))
    assert len(shown) == 256
    assert err.all() == b"_]0;t_1m"


def test_many_calls_at_once(paths: Paths, warden: FakeWarden) -> None:
    pipes = [Pipe() for _ in range(20)]
    calls = [
        qrexec.start(paths, "work", f"u:cat; exit {number}", qrexec.Ends(None, pipe.write_end), b"%d" % number)
        for number, pipe in enumerate(pipes)
    ]
    assert qrexec.pump(calls) == list(range(20))
    for call in calls:
        call.close()
    assert [pipe.all() for pipe in pipes] == [b"%d" % number for number in range(20)]


def test_only_start_asks_for_just_exec(paths: Paths, warden: FakeWarden) -> None:
    call = qrexec.start(paths, "work", "u:QUBESRPC a+ dom0", qrexec.Ends(), only_start=True)
    assert qrexec.pump([call]) == [0]
    call.close()
    assert warden.commands[0].kind == wire.JUST_EXEC


def test_a_qube_that_does_not_run(paths: Paths) -> None:
    with pytest.raises(QubeNotRunning, match="work does not run"):
        qrexec.run(paths, "work", "u:x")


def test_a_daemon_that_refuses(paths: Paths, warden: FakeWarden) -> None:
    warden.refuse = True
    with pytest.raises(QrexecError, match="work"):
        qrexec.run(paths, "work", "u:x")


@pytest.mark.parametrize("command", ["u:\0", "u:" + "x" * wire.MAX_COMMAND])
def test_a_command_that_cannot_be_sent(paths: Paths, warden: FakeWarden, command: str) -> None:
    with pytest.raises(BadCommand):
        qrexec.run(paths, "work", command)
    assert warden.commands == []


def test_closing_a_call_ends_its_program(paths: Paths, warden: FakeWarden) -> None:
    call = qrexec.start(paths, "work", "u:cat", qrexec.Ends())
    call.close()                         # the fixture joins the warden's threads: they end
    assert call.status is None


def test_who_waits_long_may_look_why(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    """Each time that nothing has moved for a while; a call that goes on asks nothing."""
    class Waiting:
        status: int | None = None

        def wants(self) -> dict[int, int]:
            return {pipe.read_end: select.POLLIN}

        def ready(self, fds: set[int]) -> None:
            if fds:
                self.status = len(os.read(pipe.read_end, 10))

    looked: list[int] = []

    def quiet() -> None:
        looked.append(1)
        if len(looked) == 3:
            os.write(pipe.write_end, b"done")

    monkeypatch.setattr(qrexec, "QUIET", 0.001)
    assert qrexec.pump([Waiting()], quiet) == [4]  # type: ignore[list-item]
    assert len(looked) == 3
    os.write(pipe.write_end, b"x")
    monkeypatch.setattr(qrexec, "QUIET", 30.0)
    assert qrexec.pump([Waiting()], quiet) == [1]  # type: ignore[list-item]
    assert len(looked) == 3
