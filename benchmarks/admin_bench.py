"""The Admin API: how long calls take over a real socket, and what 200 qubes, listeners and writers cost, beside their floors.

Two floors are measured in the same run: a bare Unix socket server that answers every request with the same bytes, and one
durable commit of SQLite on the same file system. Run: `python benchmarks/admin_bench.py [--calls N]`. Medians, since a busy
machine adds time but takes none away.
"""
from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REFERENCE = {"admin.vm.List": 0.53, "property.Get": 0.31, "property.GetAll": 1.3, "property.Set": 16.0}   # ms, its own medians


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
    """Socket and process id of a qubesd with an empty model."""
    process = subprocess.Popen([sys.executable, "-m", "cloison.daemon", "--bare"], env={**os.environ, "CLOISON_ROOT": root},
                               stderr=subprocess.DEVNULL)
    path = os.path.join(root, "run", "qubesd.sock")
    try:
        while True:
            try:
                call(path, "admin.vmclass.List+ dom0 name dom0")
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError("qubesd ended") from None
                time.sleep(0.02)
        yield path, process.pid
    finally:
        process.terminate()
        process.wait()


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




# -- report --------------------------------------------------------------------------------------------------------------


def report(what: str, milliseconds: float, floor: float, *, wanted: float | None = None) -> None:
    line = f"{what:44} {milliseconds:8.3f} ms   floor {floor:7.3f} ms   x{milliseconds / floor:5.2f}"
    print(line + (f"   reference {wanted} ms" if wanted else ""))


def measure(path: str, pid: int, folder: str, calls: int) -> None:
    lists = call(path, "admin.vm.List+ dom0 name dom0")
    with bare_server(os.path.join(folder, "bare.sock"), lists):
        floor = median(lambda: call(os.path.join(folder, "bare.sock"), "admin.vm.List+ dom0 name dom0"), calls)
    commit = commit_floor(folder, calls)
    numbers = iter(range(1, 1 << 30))
    report("admin.vm.List, 8 qubes", median(lambda: call(path, "admin.vm.List+ dom0 name dom0"), calls), floor,
           wanted=REFERENCE["admin.vm.List"])
    report("admin.vm.property.Get", median(lambda: call(path, "admin.vm.property.Get+memory dom0 name q0"), calls), floor,
           wanted=REFERENCE["property.Get"])
    report("admin.vm.property.GetAll, 48 properties", median(lambda: call(path, "admin.vm.property.GetAll+ dom0 name q0"), calls),
           floor, wanted=REFERENCE["property.GetAll"])
    report("admin.vm.property.Set, durable", median(
        lambda: call(path, "admin.vm.property.Set+memory dom0 name q0", str(next(numbers)).encode()), calls), floor + commit,
        wanted=REFERENCE["property.Set"])
    internal = path.replace("qubesd.sock", "qubesd.internal.sock")
    report("internal.GetSystemInfo, kept", median(lambda: call(internal, "internal.GetSystemInfo+ dom0 name dom0"), calls), floor)
    make_qubes(path, 200, first=7)
    report("admin.vm.List, 200 qubes", median(lambda: call(path, "admin.vm.List+ dom0 name dom0"), calls), floor, wanted=3.0)
    before = resident(pid)
    for _ in range(calls):
        call(path, "admin.vm.List+ dom0 name dom0")
        call(path, "admin.vm.tag.Set+t dom0 name q0")
        call(path, "admin.vm.tag.Remove+t dom0 name q0")
    print(f"{'memory over ' + str(3 * calls) + ' calls':44} {before:8.1f} -> {resident(pid):.1f} MiB")
    taken = asyncio.run(crowd(path, 1000, 50, 10))
    print(f"{'1,000 listeners, 50 writers, 500 changes':44} {taken:8.2f} s    every change heard by all; "
          f"{before:.1f} -> {resident(pid):.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300, help="calls of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, daemon(os.path.join(folder, "root")) as (path, pid):
        call(path, "admin.vm.Create.TemplateVM+ dom0 name dom0", b"name=tpl label=black")
        make_qubes(path, 7)
        measure(path, pid, folder, options.calls)


if __name__ == "__main__":
    main()
