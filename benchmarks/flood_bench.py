"""What one qube that floods the host with calls does to another qube's calls.

    python benchmarks/flood_bench.py [--qubes] [--calls N]

Without --qubes no VM takes part: a program plays the flooding guest's agent over vchan-socket, without mercy and at full speed; the
quiet side is our agent. That shows our own queues. With --qubes both are running qubes, so emulation competes for processors, too;
it needs `cloison up` and a template.

The flood: calls that are refused, as many as the protocol lets wait; calls that are allowed and whose data nobody takes; requests
that are never finished (in a qube). Of the quiet side every call is timed. Floors: the same calls without a flood, measured before
and after it; and beside two programs that only compute (in the other qube, if there is one), which tells what merely sharing two
processors costs. Wanted: a 99th percentile of at most twice the floor's.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from true_service import true_service

from cloison.cli import tool
from cloison.cli.bench_qubes import TAG, Qubes, alone, choose_template, tool_command
from cloison.client.connection import Connection
from cloison.client.create import Creation, create
from cloison.client.domains import list_qubes
from cloison.errors import CloisonError
from cloison.qrexec import caller
from cloison.qrexec.qube import client_vm
from cloison.runtime import inotify
from cloison.runtime.paths import Paths

QUIET, FLOOD = 7, 8                      # domain ids
MS = 1000
SERVICES = {"bench.True": 0, "bench.Refused": client_vm.REFUSED}         # with their exit statuses
POLICY = "bench.True * * dom0 allow\nbench.Refused * * dom0 deny notify=no\n"
_TOOL = "import sys; from cloison.qrexec.{} import main; sys.exit(main())"

# Run in a qube: the time of each call, as the qube's own programs make it.
TIMED = """
import json, sys, time
sys.path.insert(0, "/usr/lib/cloison")
from cloison.qrexec import caller
from cloison.qrexec.qube import client_vm
def call(service):
    begun, status = time.perf_counter(), client_vm.REFUSED
    try:
        agent, channel = client_vm._ask(client_vm.SOCKET, client_vm.trigger("", "dom0", service))
        status = caller.Caller(channel, None, None, None).run()
        channel.close(); agent.close()
    except client_vm.Failure:
        pass
    if (status == 0) != (service == "bench.True"):
        sys.exit(f"a call of {service} ended with {status}")
    return time.perf_counter() - begun
print(json.dumps({service: [call(service) for _ in range(int(sys.argv[1]))] for service in sys.argv[2:]}))
"""

# Run in a qube, until killed: 200 requests at a time; a third of them refused, a third never read, a third never finished.
FLOODING = """
import socket, sys
sys.path.insert(0, "/usr/lib/cloison")
from cloison.qrexec.qube import client_vm
waiting, made = [], 0
print("flooding", flush=True)
while True:
    one = socket.socket(socket.AF_UNIX)
    one.connect(client_vm.SOCKET)
    message = client_vm.trigger("", "dom0", ("bench.Refused", "bench.True", "bench.True")[made % 3])
    try:
        one.sendall(message[:40] if made % 3 == 2 else message)
    except OSError:
        pass
    waiting.append(one)
    made += 1
    if len(waiting) > 200:
        waiting.pop(0).close()
"""

BUSY = "while :; do :; done"

# Plays an agent: no call of its is ever without successors.
PEER = """
import os, socket, sys
from cloison.wire import qrexec
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
stream, _ = listener.accept()
stream.sendall(qrexec.hello(qrexec.VERSION))
stream.recv(64)
print("flooding", flush=True)
stream.setblocking(False)
number = 0
while True:
    batch = b""
    for _ in range(128):
        number += 1
        service = "bench.True" if number % 16 == 0 else "bench.Refused"
        batch += qrexec.trigger_service4("", "dom0", qrexec.request_id(f"SOCKET{number}"), service)
    view = memoryview(batch)
    while view:
        try:
            if not stream.recv(1 << 20):
                sys.exit("the daemon has hung up")
        except BlockingIOError:
            pass
        try:
            view = view[stream.send(view):]
        except BlockingIOError:
            pass
"""


Times = dict[str, list[float]]           # seconds of each call, by service


def both(first: Times, second: Times) -> Times:
    return {service: first[service] + second[service] for service in first}


def timed(path: str, calls: int) -> Times:
    """Through an agent on this machine."""
    def call(service: str) -> float:
        begun = time.perf_counter()
        status = client_vm.REFUSED
        with contextlib.suppress(client_vm.Failure):
            agent, channel = client_vm._ask(path, client_vm.trigger("", "dom0", service))
            status = caller.Caller(channel, None, None, None).run()
            channel.close()
            agent.close()
        if status != SERVICES[service]:
            raise SystemExit(f"a call of {service} ended with {status}")
        return time.perf_counter() - begun

    return {service: [call(service) for _ in range(calls)] for service in SERVICES}


# -- without a VM ----------------------------------------------------------------------------------------------------------


def _module(stack: contextlib.ExitStack, name: str, words: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return _kept(stack, [sys.executable, "-c", _TOOL.format(name), *words], environ)


def _kept(stack: contextlib.ExitStack, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, start_new_session=True)     # as wardens have

    def end() -> None:
        process.kill()
        process.communicate()

    stack.callback(end)
    return process


@contextlib.contextmanager
def peers(root: Path) -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """A qubesd, a policy daemon, a quiet agent with its daemon: the agent's socket, and what begins the flood."""
    environ = {**os.environ, "CLOISON_ROOT": str(root), "VCHAN_SOCKET_DIR": str(root / "vchan")}
    os.environ["VCHAN_SOCKET_DIR"] = environ["VCHAN_SOCKET_DIR"]
    (root / "vchan").mkdir()
    with contextlib.ExitStack() as stack:
        subprocess.run([*tool_command("cloison", "up", "--bare"), "-q"], env=environ, check=True)
        stack.callback(subprocess.run, [*tool_command("cloison", "down"), "-q"], env=environ, check=True)
        paths = Paths.from_environment(environ)
        Path(paths.config, "policy.d", "30-user.policy").write_text(POLICY, encoding="ascii")
        services = Path(paths.config, "qubes-rpc")
        services.mkdir(exist_ok=True)
        (services / "bench.True").symlink_to("/usr/bin/true")
        environ["QREXEC_SERVICE_PATH"] = str(services)
        connection = Connection(paths)
        for name in ("quiet", "flood"):
            create(connection, Creation(name, "StandaloneVM", "red"))
        known = list_qubes(connection)

        def daemon(xid: int, name: str) -> None:
            words = ["-D", f"--socket-dir={paths.run}", f"--uuid={known[name].uuid}", str(xid), name]
            process = _module(stack, "host.daemon_main", words, environ)
            if not inotify.wait_for(os.path.join(paths.run, f"qrexec.{xid}"), os.pidfd_open(process.pid)):
                raise SystemExit("a daemon did not start")

        agent = str(root / "agent")
        _module(stack, "qube.agent_main", [f"--agent-socket={agent}", "-S"], {**environ, "VCHAN_DOMAIN": str(QUIET)})
        daemon(QUIET, "quiet")

        def flood() -> subprocess.Popen[bytes]:
            peer = _kept(stack, [sys.executable, "-c", PEER, str(root / "vchan" / f"vchan.{FLOOD}.0.512.sock")], environ)
            daemon(FLOOD, "flood")
            assert peer.stdout is not None
            peer.stdout.readline()
            return peer

        os.environ["VCHAN_DOMAIN"] = str(QUIET)
        yield agent, flood


def without_vms(calls: int) -> None:
    with tempfile.TemporaryDirectory(prefix="cloison-flood-") as name, peers(Path(name)) as (agent, flood):
        with contextlib.suppress(SystemExit):        # the daemon is there before the agent knows
            timed(agent, 20)
        before = timed(agent, calls)
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                _kept(stack, ["/bin/sh", "-c", BUSY], dict(os.environ))
            busy = timed(agent, calls)
        peer = flood()
        during = timed(agent, calls)
        if peer.poll() is not None:
            raise SystemExit("the flood ended before the measurement did")
        peer.kill()
        report("a flood by a program, no VM", both(before, timed(agent, calls)), busy, during)


# -- with qubes ------------------------------------------------------------------------------------------------------------


def with_qubes(calls: int) -> None:
    connection = Connection(Paths.from_environment())
    paths = connection.paths
    template = choose_template(connection)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(paths))
        qubes = stack.enter_context(Qubes(connection, template))
        stack.enter_context(true_service(paths, POLICY.replace("* *", f"* @tag:{TAG}")))
        quiet, noisy = qubes.app("bench-quiet"), qubes.app("bench-flood")
        for name in (quiet, noisy):
            connection.call(name, "admin.vm.Start")

        def measure() -> Times:
            done = subprocess.run(
                tool_command("qvm-run", "-p", quiet, "python3 - " + " ".join([str(calls), *SERVICES])),
                input=TIMED.encode(), stdout=subprocess.PIPE, check=True)
            result: Times = json.loads(done.stdout)
            return result

        measure()
        before = measure()
        computing = [subprocess.Popen(tool_command("qvm-run", "-p", noisy, BUSY)) for _ in range(2)]
        busy = measure()
        for one in computing:
            one.kill()
            one.wait()
        connection.call(noisy, "admin.vm.Kill")
        connection.call(noisy, "admin.vm.Start")
        flood = subprocess.Popen(
            tool_command("qvm-run", "-p", noisy, "python3 -"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(flood.communicate)
        stack.callback(flood.kill)
        assert flood.stdin is not None and flood.stdout is not None
        flood.stdin.write(FLOODING.encode())
        flood.stdin.close()
        flood.stdin = None
        flood.stdout.readline()
        during = measure()
        if flood.poll() is not None:
            raise SystemExit("the flood ended before the measurement did")
        qubes.kill(noisy)
        report("a flood by a qube", both(before, measure()), busy, during)


# -- both ------------------------------------------------------------------------------------------------------------------


def _percentiles(times: list[float]) -> tuple[float, float]:
    """Median and 99th percentile, in ms."""
    return MS * statistics.median(times), MS * statistics.quantiles(times, n=100, method="inclusive")[98]


def report(title: str, quiet: Times, busy: Times, during: Times) -> None:
    print(f"{title:30}{'median':>9}{'quiet':>9}{'busy':>9}{'p99':>9}{'quiet':>9}{'busy':>9}   p99 in times the floors")
    for service in SERVICES:
        flood, floor, shared = (_percentiles(times[service]) for times in (during, quiet, busy))
        columns = "".join(f"{value:>9.2f}" for value in (flood[0], floor[0], shared[0], flood[1], floor[1], shared[1]))
        verdict = "" if flood[1] <= 2 * floor[1] else "  ABOVE 2"
        print(f"{service:30}{columns}   {flood[1] / floor[1]:.2f}, {flood[1] / shared[1]:.2f}{verdict}   (ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qubes", action="store_true", help="with running qubes instead of programs")
    parser.add_argument("--calls", type=int, default=300, metavar="N", help="timed calls of each kind in each round")
    options = parser.parse_args()
    (with_qubes if options.qubes else without_vms)(options.calls)


if __name__ == "__main__":
    try:
        main()
    except CloisonError as error:        # no `cloison up`, no template
        sys.exit(tool.report("flood_bench.py", error))
