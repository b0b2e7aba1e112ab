"""The Admin API: how long calls take over a real socket, and what 200 qubes, listeners and writers cost, beside their floors.

Two floors are measured in the same run: a bare Unix socket server that answers every request with the same bytes, and one
durable commit of SQLite on the same file system. Run: `python benchmarks/admin_bench.py [--calls N]`. Medians, since a busy
machine adds time but takes none away. Beside each figure stands what is wanted of it; exit status 1 if one is missed.

Wanted: reads no slower than the reference's daemon (its own medians on such a machine, below), writes twice as fast; 200 qubes
listed in 3 ms; memory flat; no event lost; an honest caller served in its usual time beside 10,000 that only sit there.
"""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import socket
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from cloison.cli import daemons
from cloison.runtime.paths import Paths
from cloison.runtime.spawn import listener

SOCKET = "qubesd.sock"
LIST, GET, GET_ALL, SET = 0.53, 0.31, 1.3, 16.0     # ms, the reference's medians
LONG_LIST = 3.0                                     # ms, for 200 qubes
LIST_CALL = "admin.vm.List+ dom0 name dom0"
IDLE = 10_000                                       # connections that send nothing
USUAL = 3.0                                         # times its time alone that an honest caller may take beside them
GROWTH = 2.0                                        # MiB that many calls may leave


def call(path: str, head: str, payload: bytes = b"") -> bytes:
    """One call, one connection. Raises RuntimeError for anything but a good reply."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(head.encode() + b"\0" + payload)
        client.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: client.recv(1 << 16), b""))
    if not reply.startswith(b"0\0"):
        raise RuntimeError(f"{head}: {reply[:200]!r}")
    return reply


def median(work: Callable[[], object], times: int) -> float:
    """Milliseconds."""
    work()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1000


# -- floors --------------------------------------------------------------------------------------------------------------


@contextmanager
def bare_server(path: str, reply: bytes) -> Iterator[None]:
    """A process that accepts, reads to the end, answers, and closes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    child = os.fork()
    if child == 0:
        while True:
            client, _ = listener.accept()
            with client:
                while client.recv(1 << 16):
                    continue
                client.sendall(reply)
    listener.close()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def commit_floor(folder: str, times: int) -> float:
    database = sqlite3.connect(os.path.join(folder, "floor.sqlite"), isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (name TEXT PRIMARY KEY, value TEXT)")
    numbers = iter(range(1 << 30))
    taken = median(lambda: database.execute("INSERT OR REPLACE INTO t VALUES ('memory', ?)", (str(next(numbers)),)), times)
    database.close()
    return taken


# -- the daemon ----------------------------------------------------------------------------------------------------------


@contextmanager
def daemon(root: str) -> Iterator[tuple[str, int]]:
    """Socket and process id of a qubesd with an empty model. Raises HostError when it does not start."""
    os.environ["CLOISON_ROOT"] = root
    paths = Paths.from_environment()
    paths.ensure()
    daemons.ensure(paths, "qubesd", SOCKET, [sys.executable, "-m", "cloison.daemon", "--bare"])
    try:
        found = listener(paths.socket(SOCKET))
        assert found is not None
        os.close(found[1])
        yield paths.socket(SOCKET), found[0]
    finally:
        daemons.end(paths, SOCKET)


def make_qubes(path: str, count: int, first: int = 0) -> None:
    for number in range(first, count):
        call(path, "admin.vm.Create.AppVM+tpl dom0 name dom0", f"name=q{number} label=red".encode())


def resident(pid: int) -> float:
    """MiB."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


# -- many at once --------------------------------------------------------------------------------------------------------


async def listen(path: str, ready: asyncio.Event, wanted: int) -> None:
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    writer.write(b"admin.Events+ dom0 name dom0\0")
    writer.write_eof()
    await reader.readexactly(len(b"1\0\0connection-established\0\0"))
    ready.set()
    for _ in range(wanted):
        await reader.readuntil(b"\0domain-feature-set:")
    writer.close()


async def write(path: str, number: int, times: int) -> None:
    for value in range(times):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"admin.vm.feature.Set+n%d dom0 name dom0\0%d" % (number, value))
        writer.write_eof()
        if await reader.read() != b"0\0":
            raise RuntimeError("a write failed")
        writer.close()


async def crowd(path: str, listeners: int, writers: int, times: int) -> float:
    """Seconds from the first write until every listener has heard every change."""
    ready = [asyncio.Event() for _ in range(listeners)]
    async with asyncio.TaskGroup() as group:
        for event in ready:
            group.create_task(listen(path, event, writers * times))
        for event in ready:
            await event.wait()
        begin = time.perf_counter()
        for number in range(writers):
            group.create_task(write(path, number, times))
    return time.perf_counter() - begin


@contextmanager
def idle(path: str, count: int) -> Iterator[None]:
    """So many connections that send nothing and do not end."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        yield


# -- report --------------------------------------------------------------------------------------------------------------


class Report:
    """Prints a figure with its floor and what is wanted of it; knows whether all were reached."""

    def __init__(self) -> None:
        self.missed = 0

    def time(self, what: str, milliseconds: float, floor: float, *, limit: float | None = None) -> None:
        line = f"{what:46} {milliseconds:8.3f} ms   floor {floor:7.3f} ms   x{milliseconds / floor:5.2f}"
        if limit is None:
            print(line)
        else:
            self.verdict(f"{line}   wanted {limit:6.2f} ms", milliseconds <= limit)

    def verdict(self, line: str, reached: bool) -> None:
        print(f"{line}   {'ok' if reached else 'MISSED'}")
        self.missed += not reached


def reads_and_writes(report: Report, path: str, folder: str, calls: int) -> None:
    bare = os.path.join(folder, "bare.sock")
    lists = call(path, LIST_CALL)
    with bare_server(bare, lists):
        floor = median(partial(call, bare, LIST_CALL), calls)
    commit = commit_floor(folder, calls)
    numbers = iter(range(1, 1 << 30))
    internal = path.replace(SOCKET, "qubesd.internal.sock")
    for what, wanted, head in (
        ("admin.vm.List, 8 qubes", LIST, LIST_CALL),
        ("admin.vm.property.Get", GET, "admin.vm.property.Get+memory dom0 name q0"),
        ("admin.vm.property.GetAll, 48 properties", GET_ALL, "admin.vm.property.GetAll+ dom0 name q0"),
    ):
        report.time(what, median(partial(call, path, head), calls), floor, limit=wanted)
    report.time("admin.vm.property.Set, durable", median(
        lambda: call(path, "admin.vm.property.Set+memory dom0 name q0", str(next(numbers)).encode()), calls), floor + commit,
        limit=SET / 2)
    info = partial(call, internal, "internal.GetSystemInfo+ dom0 name dom0")
    report.time("internal.GetSystemInfo, kept", median(info, calls), floor)
    make_qubes(path, 200, first=7)
    long = call(path, LIST_CALL)
    os.unlink(bare)
    with bare_server(bare, long):
        floor = median(partial(call, bare, LIST_CALL), calls)
    report.time("admin.vm.List, 200 qubes", median(partial(call, path, LIST_CALL), calls), floor, limit=LONG_LIST)


def many(report: Report, path: str, pid: int, calls: int) -> None:
    before = resident(pid)
    for _ in range(calls):
        call(path, LIST_CALL)
        call(path, "admin.vm.tag.Set+t dom0 name q0")
        call(path, "admin.vm.tag.Remove+t dom0 name q0")
    after = resident(pid)
    report.verdict(f"{'memory over ' + str(3 * calls) + ' calls':46} {before:8.1f} -> {after:.1f} MiB", after - before <= GROWTH)
    taken = asyncio.run(crowd(path, 1000, 50, 10))
    report.verdict(f"{'1,000 listeners, 50 writers, 500 changes':46} {taken:8.2f} s    every change heard by all; "
                   f"{after:.1f} -> {resident(pid):.1f} MiB", True)
    alone = median(partial(call, path, LIST_CALL), calls)
    with idle(path, IDLE):
        beside = median(partial(call, path, LIST_CALL), calls)
        report.time(f"admin.vm.List beside {IDLE:,} idle connections", beside, alone, limit=USUAL * alone)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300, help="calls of each kind")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    report = Report()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, daemon(os.path.join(folder, "root")) as (path, pid):
        call(path, "admin.vm.Create.TemplateVM+ dom0 name dom0", b"name=tpl label=black")
        make_qubes(path, 7)
        reads_and_writes(report, path, folder, options.calls)
        many(report, path, pid, options.calls)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
