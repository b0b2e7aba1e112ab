"""What the bench measures, one function a subject. Each takes a `Bench` and gives figures, samples and floors taken in turns.

Whatever a first time costs (RAM of the image read, files in the host's cache) is paid by a round that is not counted.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial

from cloison.cli import bench_memory as memory
from cloison.cli.bench_qubes import ToolFailed, timed, tool_command
from cloison.cli.bench_report import Figure, Target
from cloison.cli.bench_setting import MB, MS, Bench, Measure, forget, running
from cloison.cli.bench_streams import copy, stream
from cloison.client import qrexec
from cloison.client.connection import Connection
from cloison.client.create import Creation, create
from cloison.client.domains import DOM0, list_qubes
from cloison.errors import CloisonError, HostError
from cloison.runtime.paths import Paths

APP, BASE, COLD = "bench-app", "bench-base", "bench-cold"
PROGRAM = "echo here"
CALLS = 200
LISTED = 100                            # qubes that qvm-ls lists
IDLE = 5                                # percent of its processors that an idle qube uses at most
PATIENCE = 120.0                        # seconds for started qubes to become idle

# Runs inside the qube: for each line, N, starts N of the program that a call starts, as its agent does, and waits for them.
SPAWNER = """
import os, pwd, subprocess, sys, time
user = pwd.getpwnam("user")
command = ["-" + os.path.basename(user.pw_shell), "-c", "true"]
def spawn():
    return subprocess.Popen(
        command, executable=user.pw_shell, env={"HOME": user.pw_dir, "PATH": "/usr/bin:/bin"}, cwd="/", start_new_session=True,
        stdin=subprocess.DEVNULL, user=user.pw_uid, group=user.pw_gid, extra_groups=[user.pw_gid])
for line in sys.stdin:
    begun = time.perf_counter()
    for child in [spawn() for _ in range(int(line))]:
        child.wait()
    print(time.perf_counter() - begun, flush=True)
"""


def cold(bench: Bench) -> list[Figure]:
    name = bench.qubes.standalone(COLD)
    starts, floor = [], []
    for _ in range(max(1, bench.runs // 5)):
        starts.append(timed(tool_command("qvm-start", name)).exit)
        bench.qubes.kill(name)
        floor.append(bench.bare.cold_pong())
    return [Figure("cold start: qvm-start to running", "s", starts, floor)]


def warm_app(bench: Bench) -> list[Figure]:
    name = bench.qubes.app(APP)
    whole, starts, floor, identity, pong = [], [], [], [], []
    for number in range(bench.runs + 1):
        whole.append(timed(tool_command("qvm-run", "-p", name, PROGRAM)))
        bench.qubes.kill(name)
        starts.append(timed(tool_command("qvm-start", "-q", name)).exit)
        bench.qubes.kill(name)
        floor.append(bench.bare.output(PROGRAM))
        identity.append(bench.bare.identity())
        pong.append(bench.bare.pong())
        if number == 0:
            forget(whole, starts, floor, identity, pong)
    return [
        Figure("warm AppVM: qvm-run to first output byte", "s", [one.first for one in whole], floor),
        Figure("warm AppVM: qvm-run to its return", "s", [one.exit for one in whole], floor),
        Figure("warm AppVM: qvm-start to its return", "s", starts, identity),
        Figure("bare QEMU: spawn to being a qube", "s", identity, pong),
    ]


def disposable(bench: Bench) -> list[Figure]:
    base = bench.qubes.app(BASE, disposables=True)
    whole, floor, pong = [], [], []
    for number in range(bench.runs + 1):
        whole.append(timed(tool_command("qvm-run", "-p", f"--dispvm={base}", PROGRAM)))
        floor.append(bench.bare.output(PROGRAM))
        pong.append(bench.bare.pong())
        if number == 0:
            forget(whole, floor, pong)
    first = [one.first for one in whole]
    return [
        Figure("disposable: qvm-run to first output byte", "s", first, floor, Target(ratio=1.6, limit=1.0)),
        Figure("disposable: the same, over the agent's pong", "s", first, pong),
        Figure("disposable: qvm-run to its return", "s", [one.exit for one in whole], floor),
        Figure("disposable: program's end to qvm-run's return", "s", [one.exit - one.last for one in whole], (),
               Target(limit=0.15)),
    ]


def call(bench: Bench) -> list[Figure]:
    name = running(bench, APP)
    resident, tool, floor = [], [], []
    with _Spawner(name) as spawner:
        for number in range(3 * bench.runs + 1):
            resident.append(MS * _elapsed(partial(_call, bench, name)))
            floor.append(MS * spawner.spawn(1))
            tool.append(MS * timed(tool_command("qvm-run", "-p", name, "true")).exit)
            if number == 0:
                forget(resident, floor, tool)
    return [
        Figure("call of `true`, from a resident program", "ms", resident, floor, Target(ratio=1.5, plus=15)),
        Figure("call of `true`, with qvm-run", "ms", tool, floor),
    ]


def burst(bench: Bench) -> list[Figure]:
    name = running(bench, APP)
    calls, floor = [], []
    with _Spawner(name) as spawner:
        for _ in range(max(1, bench.runs // 5)):
            calls.append(_elapsed(partial(_many_calls, bench, name)))
            floor.append(spawner.spawn(CALLS))
    return [Figure(f"{CALLS} calls of `true` at once", "s", calls, floor)]


def idle_memory(bench: Bench) -> list[Figure]:
    names = [bench.qubes.app(f"bench-idle-{number}") for number in range(bench.many)]
    for name in names:
        bench.connection.call(name, "admin.vm.Start")
    _until_idle(bench.connection, names)
    known = list_qubes(bench.connection)
    usages = [memory.qube(bench.connection.paths, known[name].uuid) for name in names]
    qubesd, zygote = memory.daemons(bench.connection.paths)
    answers = [_elapsed(partial(_call, bench, name)) for name in names]
    for name in names:
        bench.qubes.kill(name)
    return [
        Figure(f"memory (PSS) of an idle qube, {bench.many} running", "MB", [MB * sum(usage) for usage in usages], (),
               Target(limit=90)),
        Figure("  of it QEMU and its sandbox", "MB", [MB * usage.qemu for usage in usages]),
        Figure("  of it our warden", "MB", [MB * usage.warden for usage in usages], (), Target(limit=12)),
        Figure("memory of qubesd", "MB", [MB * qubesd]),
        Figure("memory of the zygote", "MB", [MB * zygote]),
        Figure(f"first answer of each of {bench.many} qubes", "ms", [MS * answer for answer in answers]),
    ]


def listing(bench: Bench) -> list[Figure]:
    """In an installation of its own, with a qubesd of its own."""
    listed, floor = [], []
    with tempfile.TemporaryDirectory(prefix="cloison-bench-") as root, ExitStack() as stack:
        env = {**os.environ, "CLOISON_ROOT": root}
        timed(tool_command("cloison", "up", "--bare"), env=env)
        stack.callback(timed, tool_command("cloison", "down"), env=env)
        connection = Connection(Paths.from_environment(env))
        create(connection, Creation("bench", "TemplateVM", "black"))
        for number in range(LISTED - 1):
            create(connection, Creation(f"bench-{number}", "AppVM", "red", "bench"))
        for _ in range(bench.runs):
            one = timed(tool_command("qvm-ls"), env=env)
            if one.output.count(b"\n") < LISTED:
                raise ToolFailed(f"qvm-ls did not list {LISTED} qubes")
            listed.append(MS * one.exit)
            floor.append(MS * timed([sys.executable, "-I", "-S", "-c", "pass"]).exit)
    return [Figure(f"qvm-ls with {LISTED} qubes", "ms", listed, floor)]


# Name on the command line -> what is measured. SLOW: what takes longest without KVM, so --quick leaves it out.
MEASURES: dict[str, Measure] = {
    "cold": cold, "warm": warm_app, "disposable": disposable, "call": call, "calls": burst, "stream": stream,
    "copy": copy, "memory": idle_memory, "ls": listing,
}
SLOW = ("cold", "calls", "copy", "ls")


# -- helpers -------------------------------------------------------------------------------------------------------------


def _elapsed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _until_idle(connection: Connection, names: Iterable[str]) -> None:
    """Until each has used next to no processor between two of qubesd's reports. Raises HostError for one that goes on."""
    busy, known = set(names), set[str]()
    with connection.stream(DOM0, "admin.vm.Stats") as reports:
        for name, _, pairs in reports.until(time.monotonic() + PATIENCE):
            if name in known and int(dict(pairs)["cpu_usage"]) <= IDLE:
                busy.discard(name)
            if not busy:
                return
            known.add(name)              # a first report has nothing to compare with
    raise HostError(f"{len(busy)} qubes do not become idle, {min(busy)} for one")


def _call(bench: Bench, name: str) -> None:
    _succeeded([qrexec.run(bench.connection.paths, name, "user:true")])


def _many_calls(bench: Bench, name: str) -> None:
    with ExitStack() as stack:
        calls = []
        for _ in range(CALLS):
            calls.append(qrexec.start(bench.connection.paths, name, "user:true", qrexec.Ends()))
            stack.callback(calls[-1].close)
        _succeeded(qrexec.pump(calls))


def _succeeded(statuses: list[int]) -> None:
    """Raises CloisonError if a call failed: its time would mean nothing."""
    failed = [status for status in statuses if status]
    if failed:
        raise CloisonError(f"{len(failed)} of {len(statuses)} calls failed, the first with status {failed[0]}")


class _Spawner:
    """SPAWNER, running in a qube as root while the context lasts."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            tool_command("qvm-run", "-p", "-u", "root", name, "python3", "-c", SPAWNER),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def __enter__(self) -> _Spawner:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def spawn(self, count: int) -> float:
        """Seconds that the guest needs to start so many programs at once and see them end. Raises HostError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{count}\n".encode())
        line = self._process.stdout.readline()
        try:
            return float(line)
        except ValueError:
            raise HostError(f"the program that measures inside the qube ended, saying {line[:60]!r}") from None
