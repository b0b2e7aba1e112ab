"""What a person waits for: each tool's one-call job as a process of its own, beside a bare Python that does nothing.

    python benchmarks/tools_bench.py [--rounds N] [--qubes N]

A qubesd of its own runs on fake parts below a temporary folder: what is measured is the tools' start, one connection and the
answer, not a virtual machine. Limits of the project: 120 ms a tool, 150 ms for qvm-ls with 200 qubes. Exit status 1 if one is
missed. Wall time in milliseconds, the median and the best: on a busy machine they differ, and the processor time tells why.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

LIMIT, LISTING_LIMIT = 120.0, 150.0      # milliseconds
FLOOR = ("-I", "-S", "-c", "pass")
JOBS = (
    "qvm-ls", "qvm-ls --raw-list", "qvm-ls --tree", "qvm-prefs work label", "qvm-prefs work", "qubes-prefs default_netvm",
    "qvm-features work", "qvm-tags work", "qvm-service work", "qvm-notes --print work", "qvm-check work",
    "qvm-volume info work:private",
    "qvm-pool list", "qvm-firewall work list", "qvm-block list", "qvm-pci list", "qvm-device block list",
    "qvm-start --skip-if-running dom0", "qvm-shutdown --dry-run work", "qvm-kill work", "qvm-run --no-autostart work true",
    "qvm-tags work add bench", "qvm-features work bench 1", "qvm-prefs work memory 500",
)
_DAEMON = """
import asyncio, sys
from cloison.admin.methods import SOCKETS
from cloison.daemon.fake import fake_app
from cloison.daemon.server import Server

async def main():
    app = await fake_app(sys.argv[1])
    server = Server(app, app.parts.paths, SOCKETS)
    await server.listen()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def qubesd(root: str, qubes: int) -> Iterator[None]:
    """A qubesd with that many qubes; CLOISON_ROOT leads to it."""
    from cloison.client.connection import Connection
    from cloison.client.create import Creation, create

    os.environ["CLOISON_ROOT"] = root
    with subprocess.Popen([sys.executable, "-c", _DAEMON, root], stdout=subprocess.PIPE) as daemon:
        try:
            assert daemon.stdout is not None
            if not daemon.stdout.readline():
                raise SystemExit("qubesd did not start")
            connection = Connection()
            create(connection, Creation("tpl", "TemplateVM", "black"))
            for number in range(qubes - 1):
                create(connection, Creation("work" if number == 0 else f"app{number}", "AppVM", "red", "tpl"))
            yield
        finally:
            # Ends the policy daemon, too, which outlives its qubesd.
            subprocess.run([os.path.join(os.path.dirname(sys.executable), "cloison"), "down", "-q"], check=False)
            daemon.terminate()


class Times(NamedTuple):
    """Milliseconds. `cpu`: the process's own processor time, whatever else the machine did."""

    median: float
    best: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.median:7.1f} ms  best {self.best:6.1f}  cpu {self.cpu:6.1f}"


def measure(argv: list[str], rounds: int) -> Times:
    """The first run, which fills the caches, does not count."""
    null = os.open(os.devnull, os.O_RDWR)
    files = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
    walls, processor = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        _, _, usage = os.wait4(os.posix_spawn(argv[0], argv, os.environ, file_actions=files), 0)
        walls.append((time.perf_counter() - start) * 1000)
        processor.append((usage.ru_utime + usage.ru_stime) * 1000)
    os.close(null)
    return Times(statistics.median(walls[1:]), min(walls[1:]), min(processor[1:]))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long each tool takes for a one-call job.")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each (default: %(default)s)")
    parser.add_argument("--qubes", type=int, default=200, help="qubes for the long listing (default: %(default)s)")
    args = parser.parse_args()
    scripts = os.path.dirname(sys.executable)
    floor = measure([sys.executable, *FLOOR], args.rounds)
    print(f"{'python3 ' + ' '.join(FLOOR):40} {floor}")
    missed = []

    def show(job: str, limit: float, note: str = "") -> None:
        tool, *rest = job.split()
        took = measure([os.path.join(scripts, tool), *rest], args.rounds)
        late = took.median > limit
        ratio = took.best / floor.best
        print(f"{job + note:40} {took}  {ratio:5.1f} x floor   wanted {limit:.0f} ms   {'MISSED' if late else 'ok'}")
        if late:
            missed.append(job)

    with tempfile.TemporaryDirectory() as root, qubesd(root, 8):
        for job in JOBS:
            show(job, LIMIT)
    with tempfile.TemporaryDirectory() as root, qubesd(root, args.qubes):
        for job in ("qvm-ls", "qvm-ls --format network", "qvm-ls --raw-list"):
            show(job, LISTING_LIMIT, f" ({args.qubes} qubes)")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
