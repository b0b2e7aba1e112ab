"""`qrexec-client` and `qrexec-daemon` as programs: against the daemon in this process, and against each other over vchan-socket."""
from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import PATIENCE
from tests.qrexec.served_qube import USER, XID, Qube

from cloison.qrexec import caller
from cloison.qrexec.host import client_main
from cloison.qrexec.host.client_main import Failure, Options
from cloison.wire import qrexec

UUID = "00000000-0000-4000-8000-000000000007"
SERVICES = {
    "test.Cat": "#!/bin/sh\nexec cat\n",
    "test.Both": "#!/bin/sh\nprintf 'o\\033ut\\n'; printf 'e\\033rr\\n' >&2; exit 3\n",
    "test.Deaf": "#!/bin/sh\nexec <&-\necho deaf\nexit 5\n",
}
Outcome = tuple[int, bytes, bytes]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "rpc").mkdir()
    for name, text in SERVICES.items():
        (tmp_path / "rpc" / name).write_text(text)
        (tmp_path / "rpc" / name).chmod(0o755)
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path / "rpc"))
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path / "rpc-config"))
    monkeypatch.setenv("VCHAN_SOCKET_DIR", str(tmp_path))
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    (tmp_path / "data" / "log").mkdir(parents=True)
    yield tmp_path


def _run(module: str) -> list[str]:
    """As the console script does it."""
    return [sys.executable, "-c", f"import sys; from cloison.qrexec.host.{module} import main; sys.exit(main())"]


async def program(module: str, *words: str, stdin: bytes = b"", **environ: str) -> Outcome:
    process = await asyncio.create_subprocess_exec(
        *_run(module), *words, stdin=-1, stdout=-1, stderr=-1, env={**os.environ, **environ})
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out, err


async def client(folder: Path, *words: str, stdin: bytes = b"") -> Outcome:
    return await program("client_main", f"--socket-dir={folder}", *words, stdin=stdin)


def with_qube(folder: Path, work: Callable[[Qube], Awaitable[None]]) -> None:
    async def run() -> None:
        with Qube(folder) as qube:
            await work(qube)
            assert qube.violations == []

    asyncio.run(run())


RPC = "DEFAULT:QUBESRPC {} dom0"


@pytest.mark.parametrize(("words", "stdin", "outcome"), [
    ([RPC.format("test.Cat")], b"through", (0, b"through", b"")),
    (["-p", "prefix ", RPC.format("test.Cat")], b"through", (0, b"prefix through", b"")),
    (["--prefix-data=prefix ", RPC.format("test.Cat")], b"", (0, b"prefix ", b"")),
    ([RPC.format("test.Both")], b"", (3, b"o\x1but\n", b"e\x1brr\n")),
    (["-t", RPC.format("test.Both")], b"", (3, b"o_ut\n", b"e\x1brr\n")),
    (["-T", RPC.format("test.Both")], b"", (3, b"o\x1but\n", b"e_rr\n")),
    (["-tTE", RPC.format("test.Both")], b"", (0, b"o_ut\n", b"e_rr\n")),
    (["-e", RPC.format("test.Both")], b"", (0, b"", b"")),
    (["-e", RPC.format("test.Missing")], b"", (127, b"", b"")),
    ([RPC.format("test.Missing")], b"", (127, b"", b"")),
    ([RPC.format("test.Deaf")], bytes(1 << 20), (5, b"deaf\n", b"")),
    ([f"{USER}:exit 200"], b"", (200, b"", b"")),
    ([f"{USER}:kill -9 $$"], b"", (137, b"", b"")),
    (["-l", "exec >&-; cat >&2; exit 9", RPC.format("test.Cat")], b"", (9, b"", b"")),
    (["-l", "echo from here; exec >&-; cat >&2; exit 9", RPC.format("test.Cat")], b"", (9, b"", b"from here\n")),
    (["-l", "cat >&2; echo $QREXEC_REMOTE_DOMAIN >&2", RPC.format("test.Both")], b"", (3, b"", b"e\x1brr\no\x1but\nwork\n")),
])
def test_calls(folder: Path, words: list[str], stdin: bytes, outcome: Outcome) -> None:
    async def work(_qube: Qube) -> None:
        status, out, err = await client(folder, "-d", "work", *words, stdin=stdin)
        assert (status, out, sorted(err)) == (*outcome[:2], sorted(outcome[2]))

    with_qube(folder, work)


def test_a_large_stream_both_ways(folder: Path) -> None:
    async def work(_qube: Qube) -> None:
        data = os.urandom(8 << 20)
        assert await client(folder, "-d", f"uuid:{UUID}", RPC.format("test.Cat"), stdin=data) == (0, data, b"")

    with_qube(folder, work)


def test_one_socket_for_both_directions(folder: Path) -> None:
    async def work(_qube: Qube) -> None:
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            *_run("client_main"), f"--socket-dir={folder}", "-d", "work", "--use-stdin-socket",
            RPC.format("test.Cat"), stdin=theirs.fileno())
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(b"through")
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b"through"
            assert await process.wait() == 0
        writer.close()

    with_qube(folder, work)


@pytest.mark.parametrize("words", [
    [], ["-d", "work"], ["true"], ["-x", "-d", "work", "true"], ["--unknown", "-d", "work", "true"], ["-d"],
    ["-d", "work", "-w", "x", "true"], ["-d", "work", "-l", "a", "-e", "true"], ["-d", "nowhere", "true"], ["-d", "../x", "true"],
    ["-d", "dom0", "root:QUBESRPC test.Cat dom0 name dom0"], ["-d", "dom0", "DEFAULT:true"], ["-d", "dom0", "-c", "x", "true"],
])
def test_what_can_not_be_done_ends_with_125(folder: Path, words: list[str]) -> None:
    async def work(_qube: Qube) -> None:
        status, out, err = await client(folder, *words)
        assert (status, out) == (125, b"") and err.startswith(b"qrexec-client: ")

    with_qube(folder, work)


@pytest.mark.parametrize("target", ["", " name dom0"])       # Qubes OS's own programs leave it out
@pytest.mark.parametrize(("service", "status", "out"), [("test.Cat+x", 0, b"in"), ("test.Missing", 127, b"")])
def test_a_service_of_the_host_takes_the_programs_place(folder: Path, service: str, status: int, out: bytes, target: str) -> None:
    async def work() -> None:
        words = ("-d", "dom0", f"DEFAULT:QUBESRPC {service} dom0{target}")
        assert (await client(folder, *words, stdin=b"in"))[:2] == (status, out)

    asyncio.run(work())


def test_programs_over_vchan_socket(folder: Path) -> None:
    """Agent, daemon in the background, client: each a process of its own, as with another implementation on either side."""
    async def work() -> None:
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "cloison.qrexec.qube.agent_main", f"--agent-socket={folder}/agent", "-S",
            env={**os.environ, "VCHAN_DOMAIN": str(XID)})
        words = (f"--socket-dir={folder}", f"--uuid={UUID}", str(XID), "work", USER)
        assert (await program("daemon_main", *words))[0] == 0
        log = folder / "data" / "log" / "qrexec.work.log"
        try:
            call = ("-d", str(XID), RPC.format("test.Cat"))
            many = await asyncio.gather(*(client(folder, *call, stdin=b"%d" % n) for n in range(8)))
            assert many == [(0, b"%d" % n, b"") for n in range(8)]
            agent.terminate()
            await agent.wait()
        finally:
            for pid in _daemons(folder):
                os.kill(pid, 15)
        assert log.read_text() in ("",) or "agent" in log.read_text()

    if not os.path.isdir("/var/log/qubes"):
        asyncio.run(work())


def _daemons(folder: Path) -> list[int]:
    """Processes that this test has put in the background: their command lines name its folder."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and Path("/proc", entry, "cmdline").exists():
            words = Path("/proc", entry, "cmdline").read_bytes()
            if b"daemon_main" in words and os.fsencode(folder) in words:
                found.append(int(entry))
    return found


def test_daemon_that_can_not_reach_its_agent_in_time(folder: Path) -> None:
    async def work() -> None:
        words = (f"--socket-dir={folder}", f"--uuid={UUID}", str(XID), "work")
        try:
            assert (await program("daemon_main", "-q", *words, QREXEC_STARTUP_NOWAIT="1"))[0] == 3
        finally:
            for pid in _daemons(folder):
                os.kill(pid, 15)

    asyncio.run(work())


# -- the light end of a data channel ---------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_protocol() -> None:
    for name in ("STDIN", "STDOUT", "STDERR", "EXIT_CODE", "HELLO", "VERSION"):
        assert getattr(caller, name) == getattr(qrexec, name)
    for name in ("EXEC_CMDLINE", "JUST_EXEC", "SERVICE_CONNECT", "SOCKET_VERSION"):
        assert getattr(client_main, name) == getattr(qrexec, name)
    assert (caller.HEADER.format, caller.CHUNKS[2], caller.CHUNKS[4]) == (
        qrexec.HEADER.format, qrexec.MAX_CHUNK_2, qrexec.MAX_CHUNK)
    assert client_main.MAX_BODY == qrexec.MAX_REQUEST


def converse(received: bytes) -> Outcome:
    """What a caller with these bytes from its service, and then the end, makes of them."""
    ours, theirs = socket.socketpair()
    out, err = os.pipe(), os.pipe()
    with ours, theirs:
        theirs.sendall(received)
        theirs.shutdown(socket.SHUT_WR)
        status = caller.Caller(ours, None, caller.Sink(out[1]), caller.Sink(err[1])).run()
    texts = []
    for reader, writer in (out, err):
        os.close(writer)
        with open(reader, "rb") as file:
            texts.append(file.read())
    return status, texts[0], texts[1]


OUT = b"".join(qrexec.data(qrexec.STDOUT, b"out"))
END = qrexec.end_of_stream(qrexec.STDOUT)


@pytest.mark.parametrize(("received", "outcome"), [
    (b"", (255, b"", b"")),
    (qrexec.hello(4), (255, b"", b"")),
    (qrexec.hello(4) + OUT, (255, b"out", b"")),
    (qrexec.hello(4) + OUT + END + qrexec.exit_code(7), (7, b"out", b"")),
    (qrexec.hello(2) + OUT + qrexec.exit_code(7), (7, b"out", b"")),
    (qrexec.hello(1), (125, b"", b"")),
    (qrexec.hello(99) + END + qrexec.exit_code(0), (0, b"", b"")),
    (OUT, (125, b"", b"")),
    (qrexec.HEADER.pack(qrexec.HELLO, 3) + b"\4\0\0", (125, b"", b"")),
    (qrexec.HEADER.pack(qrexec.HELLO, 5) + b"\4\0\0\0\0" + END, (125, b"", b"")),
    (qrexec.hello(4) + qrexec.hello(4), (125, b"", b"")),
    (qrexec.hello(4) + qrexec.HEADER.pack(qrexec.STDOUT, 65537), (125, b"", b"")),
    (qrexec.hello(2) + qrexec.HEADER.pack(qrexec.STDOUT, 4097), (125, b"", b"")),
    (qrexec.hello(4) + qrexec.HEADER.pack(0x194, 0), (125, b"", b"")),
    (qrexec.hello(4) + qrexec.HEADER.pack(qrexec.EXIT_CODE, 1) + b"x" + END, (255, b"", b"")),
    (qrexec.hello(4) + qrexec.exit_code(256) + END, (255, b"", b"")),
    (qrexec.hello(4) + qrexec.exit_code(-1) + END, (255, b"", b"")),
    (qrexec.hello(4) + OUT[:-1], (255, b"", b"")),
])
def test_what_a_service_says(received: bytes, outcome: Outcome) -> None:
    assert converse(received) == outcome


@given(st.binary(max_size=200))
def test_whatever_a_service_says_ends(received: bytes) -> None:
    assert 0 <= converse(qrexec.hello(4) + received)[0] <= 255
    assert 0 <= converse(received)[0] <= 255


@given(st.lists(st.text(max_size=6), max_size=6))
def test_options_are_understood_or_refused(words: list[str]) -> None:
    try:
        assert isinstance(Options(words).words, list)
    except Failure as error:
        assert str(error)
