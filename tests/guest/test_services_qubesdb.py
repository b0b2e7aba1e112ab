"""The programs that read and write a qube's QubesDB, against the agent's own server."""
from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import cast

import pytest
from tests.guest.programs import Bin
from tests.patience import PATIENCE

from cloison.guest.qubesdb import QubesDb
from cloison.guest.tools import qubesdb
from cloison.runtime.port import Port
from cloison.wire import qdb

ENTRIES = {"/name": "work", "/qubes-service/one": "1", "/qubes-service/two": "0", "/type": "AppVM"}


@pytest.fixture
def bin(tmp_path: Path) -> Bin:
    return Bin(tmp_path)


def run(bin: Bin, *calls: tuple[str, ...]) -> list[tuple[int | None, bytes]]:
    """Programs one after the other beside one database: exit status and output of each."""
    async def all_of_them() -> list[tuple[int | None, bytes]]:
        database = QubesDb(cast(Port, None))         # no host is connected
        database.fill(ENTRIES)
        path = str(bin.folder / "db.sock")
        database.serve(path)
        ended = []
        for name, *arguments in calls:
            process = await asyncio.create_subprocess_exec(
                *bin.words("cloison.guest.tools.qubesdb", name, arguments), stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL, env=bin.environment(QUBESDB_SOCKET=path))
            output, _ = await process.communicate()
            ended.append((process.returncode, output))
        database.close()
        return ended

    return asyncio.run(all_of_them())


def test_reading(bin: Bin) -> None:
    assert run(bin, ("qubesdb-read", "/name"), ("qubesdb-read", "/none"), ("qubesdb-read", "-d", "x", "/none"),
               ("qubesdb-read", "-f", "/name", "/type"), ("qubesdb-list", "/qubes-service/"),
               ("qubesdb-multiread", "/qubes-service/")) == [
        (0, b"work\n"), (2, b""), (0, b"x\n"), (0, b"/name = work\n/type = AppVM\n"), (0, b"one\ntwo\n"),
        (0, b"one = 1\ntwo = 0\n")]


def test_watching(bin: Bin) -> None:
    """Each change once, in order, until so many were seen; Ctrl-C ends it without a traceback."""
    async def all_of_it() -> tuple[bytes, int | None, tuple[int | None, bytes]]:
        database = QubesDb(cast(Port, None))
        database.fill(ENTRIES)
        path = str(bin.folder / "db.sock")
        database.serve(path)

        async def start(*words: str) -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(
                *bin.words("cloison.guest.tools.qubesdb", "qubesdb-watch", words), stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, env=bin.environment(QUBESDB_SOCKET=path))
            return process

        async def heard(process: asyncio.subprocess.Process, number: int) -> bytes:
            """Changes are made until the watch is set and tells of one."""
            assert process.stdout is not None
            line = asyncio.ensure_future(process.stdout.readline())
            while not line.done():
                database.change({"/w/a": str(number := number + 1)})
                await asyncio.wait([line], timeout=0.05)
            return line.result()

        one, endless = await start("-n", "1", "/w/"), await start("-n", "1000000", "/w/")
        said = await heard(one, 0)
        status = await one.wait()
        assert await heard(endless, 1000) == said
        endless.send_signal(signal.SIGINT)
        _, errors = await endless.communicate()
        database.close()
        return said, status, (endless.returncode, errors)

    assert asyncio.run(all_of_it()) == (b"/w/a\n", 0, (130, b""))


def test_writing_and_removing(bin: Bin) -> None:
    calls = [("qubesdb-write", "/a", "1", "/b", "2"), ("qubesdb-read", "/b"), ("qubesdb-rm", "/b"), ("qubesdb-read", "/b")]
    assert run(bin, *calls) == [
        (0, b""), (0, b"2\n"), (0, b""), (2, b"")]


@pytest.mark.parametrize("call", [
    ("qubesdb-read",), ("qubesdb-write", "/a"), ("qubesdb-read", "--odd", "/name"), ("qubesdb-read", "no-path"),
    ("qubesdb-watch",), ("qubesdb-watch", "-n", "x", "/a"), ("qubesdb-read", "-n", "1", "/name"),
    ("qvm-features-request", "novalue"), ("qvm-features-request", "=x")])
def test_wrong_usage(bin: Bin, call: tuple[str, ...]) -> None:
    assert run(bin, call) == [(1, b"")]


def test_features_are_requested_and_committed(bin: Bin) -> None:
    calls = run(bin, ("qvm-features-request", "os=Linux", "vmexec=1"), ("qubesdb-multiread", "/features-request/"),
                ("qvm-features-request", "--commit"))
    assert calls == [(0, b""), (0, b"os = Linux\nvmexec = 1\n"), (126, b"")]
    assert bin.calls() == [["dom0", "qubes.FeaturesRequest"]]


def test_without_a_database_there_is_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUBESDB_SOCKET", str(tmp_path / "none"))
    assert qubesdb.read("/name") is None


def test_a_program_that_has_gone_is_forgotten_with_its_watches(bin: Bin) -> None:
    """Else each that comes and goes would cost memory for good, and be told of every change."""
    async def main() -> None:
        database = QubesDb(cast(Port, None))
        database.serve(str(bin.folder / "db.sock"))
        with socket.socket(socket.AF_UNIX) as program:
            program.setblocking(False)
            program.connect(str(bin.folder / "db.sock"))
            program.send(qdb.encode(qdb.WATCH, "/name"))
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(program, 100)
        [client] = database._clients
        assert len(database._tree._watches) == 1
        client.close()
        assert not database._clients and not database._tree._watches
        database.close()

    asyncio.run(main())
