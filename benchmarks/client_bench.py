"""What `qrexec-client-vm` costs as a program in a real qube, alone and two hundred at once.

    python benchmarks/client_bench.py [--rounds N] [--at-once N]

Floors, measured in turns in the same qube: a bare interpreter (`python3 -I -S -c pass`), the call by a program that is resident,
and as many bare interpreters at once. Wanted: at most three times the bare interpreter plus the call. It needs `cloison up` and a
template.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys

from true_service import true_service

from cloison.cli import tool
from cloison.cli.bench_qubes import TAG, Qubes, alone, choose_template, tool_command
from cloison.client.connection import Connection
from cloison.errors import CloisonError
from cloison.runtime.paths import Paths

MS = 1000
POLICY = f"bench.True * @tag:{TAG} dom0 allow\n"

# Run in the qube: rounds, number at once.
MEASURED = """
import json, subprocess, sys, time
sys.path.insert(0, "/usr/lib/cloison")
from cloison.qrexec import caller
from cloison.qrexec.qube import client_vm
BARE, CLIENT = ["python3", "-I", "-S", "-c", "pass"], ["qrexec-client-vm", "dom0", "bench.True"]
def resident():
    agent, channel = client_vm._ask(client_vm.SOCKET, client_vm.trigger("", "dom0", "bench.True"))
    status = caller.Caller(channel, None, None, None).run()
    channel.close(); agent.close()
    return status
def alone(argv):
    return subprocess.call(argv, stdin=subprocess.DEVNULL)
def at_once(argv):
    programs = [subprocess.Popen(argv, stdin=subprocess.DEVNULL) for _ in range(int(sys.argv[2]))]
    return sum(program.wait() != 0 for program in programs)
def timed(work, *arguments):
    begun = time.perf_counter()
    failed = work(*arguments)
    return failed, time.perf_counter() - begun
found = {"bare": [], "client": [], "resident": [], "bare at once": [], "client at once": []}
for _ in range(int(sys.argv[1])):
    for name, work in (("bare", (alone, BARE)), ("client", (alone, CLIENT)), ("resident", (resident,))):
        found[name].append(timed(*work))
for name, argv in (("bare at once", BARE), ("client at once", CLIENT)):
    found[name].append(timed(at_once, argv))
print(json.dumps(found))
"""


def measure(rounds: int, at_once: int) -> dict[str, list[tuple[int, float]]]:
    """Failures and seconds, of each round."""
    connection = Connection(Paths.from_environment())
    paths = connection.paths
    template = choose_template(connection)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(paths))
        qubes = stack.enter_context(Qubes(connection, template))
        stack.enter_context(true_service(paths, POLICY))
        name = qubes.app("bench-client")
        connection.call(name, "admin.vm.Start")
        done = subprocess.run(
            tool_command("qvm-run", "-p", name, f"python3 - {rounds} {at_once}"),
            input=MEASURED.encode(), stdout=subprocess.PIPE, check=True)
        found: dict[str, list[tuple[int, float]]] = json.loads(done.stdout)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--at-once", type=int, default=200, metavar="N")
    options = parser.parse_args()
    found = measure(options.rounds, options.at_once)
    median = {name: MS * statistics.median(seconds for _, seconds in samples) for name, samples in found.items()}
    for name, samples in found.items():
        print(f"{name:16}{median[name]:>12.1f} ms   failed: {sum(failed for failed, _ in samples)}")
    program = (median["client"] - median["resident"]) / median["bare"]
    print(f"a client less the call, in bare interpreters: {program:.2f} (at most 3)")
    print(f"{options.at_once} clients in as many bare interpreters: {median['client at once'] / median['bare at once']:.2f}")


if __name__ == "__main__":
    try:
        main()
    except CloisonError as error:        # no `cloison up`, no template
        sys.exit(tool.report("client_bench.py", error))
