"""cloison bench: how fast starts, calls and streams are, and what qubes cost, each beside the least it could be here.

It makes qubes of its own and removes them, whatever ends it. Figures of a busy machine mean little; their ratios mean more.
"""
from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NoReturn

from cloison.cli import bench_compare, tool
from cloison.cli.bench_bare import Bare, find_image
from cloison.cli.bench_measures import MEASURES, SLOW
from cloison.cli.bench_qubes import Qubes, alone, choose_template
from cloison.cli.bench_report import Figure, as_json, show
from cloison.cli.bench_setting import Bench
from cloison.client.connection import Connection
from cloison.hypervisor.qemu import warm
from cloison.runtime.paths import Paths

MAX_RUNS = 1000
MAX_QUBES = 200
MAX_LIMIT = 1000                                # percent
STREAM, QUICK_STREAM = 64 << 20, 8 << 20        # bytes each way, and of a copy
NOTES = (
    "Medians. A figure and its floor are measured in turns, after one round that is not counted. 1 MB is 10^6 bytes.",
    "First output byte: from the spawn of the tool to the first byte that the program in the qube puts out.",
    "Floor of a warm start: the same QEMU without sandbox, warden, qubesd and tool, from its spawn over the load of the same state"
    " to the first byte of the same program, which the agent runs without becoming anybody. The pong: the agent's first answer.",
    "Floor of qvm-start and of being a qube: bare QEMU until its agent has become a qube; and, of that, the agent's pong.",
    "Floor of a cold start: bare QEMU's boot of the same kernel and root to the agent's first answer.",
    "Floor of calls: fork, exec and wait for the same program as the same user by a program inside the qube (so many at once).",
    "Floor of streams: the same program in bare QEMU, the bytes straight through the agent's port. Here more is better.",
    "Copy of a file: qvm-copy of random bytes, its start, the policy's answer and the receiver's disk included. Its floor: the"
    " same bytes out of the one qube and as many into the other, one after the other with qvm-run, of which the slower counts.",
    "Floor of qvm-ls: python -I -S -c pass.",
    "Memory: proportional set size; what qubes share counts in equal parts.",
)


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench", help="measure starts, calls, streams and copies", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure starts, calls, streams, copies and memory with qubes made for it, each against its floor.",
        epilog="what is measured:\n" + "\n".join(f"  {note}" for note in NOTES))
    parser.add_argument("--json", action="store_true", help="for programs: every sample")
    parser.add_argument("--runs", type=_count(MAX_RUNS), metavar="N", help="samples of each figure (default: 10; 3 with --quick)")
    parser.add_argument("--only", action="append", choices=list(MEASURES), default=[], metavar="NAME",
                        help=f"only this, may be given again: {', '.join(MEASURES)}")
    parser.add_argument("--quick", action="store_true", help=f"few samples, short streams, without ({', '.join(SLOW)})")
    parser.add_argument("--qubes", type=_count(MAX_QUBES), default=20, metavar="N",
                        help="idle qubes of the memory figures (default: %(default)s)")
    parser.add_argument("--compare", metavar="FILE", help="a former run, as --json printed it: what got worse since, by the ratio"
                                                          " to the floor; exit status 1 if anything did by more than the limit")
    parser.add_argument("--limit", type=_count(MAX_LIMIT), default=15, metavar="PERCENT",
                        help="how much worse than the former run a figure may be (default: %(default)s)")


def _count(limit: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= limit:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number from 1 to {limit}")
        return int(text)
    return parse


def run(args: argparse.Namespace) -> int:
    former = bench_compare.read(args.compare) if args.compare else None
    connection = Connection(Paths.from_environment())
    template = choose_template(connection)
    runs = args.runs or (3 if args.quick else 10)
    names = [name for name in MEASURES if name in args.only or not (args.only or (args.quick and name in SLOW))]
    with _interruptible(), alone(connection.paths), Qubes(connection, template) as qubes:
        _ensure_image(qubes)
        image = find_image(connection.paths, template)
        facts: dict[str, object] = {
            "template": template, "accelerator": image.accelerator, "memory_MiB": image.memory, "vcpus": image.vcpus,
            "qemu": warm.qemu_version().removeprefix("QEMU emulator version ").partition(" ")[0], "host_cpus": os.cpu_count(),
            "runs": runs}
        with closing(Bare(image, connection.paths)) as bare:
            figures = _measure(Bench(connection, qubes, bare, runs, args.qubes, QUICK_STREAM if args.quick else STREAM), names)
    return tell(figures, facts, former, args.limit / 100, as_object=args.json)


def tell(
    figures: Sequence[Figure], facts: dict[str, object], former: bench_compare.Run | None, limit: float, *, as_object: bool,
) -> int:
    """On standard output; the exit status. `limit`: the share by which a figure may be worse than in the former run."""
    changes = bench_compare.changes(former, figures) if former else []
    if as_object:
        compared = {"compared": bench_compare.as_json(changes, limit)} if former else {}
        print(json.dumps(as_json(figures, facts, NOTES) | compared, indent=1))
    else:
        show(figures, facts, NOTES)
        if former:
            print()
            bench_compare.show(changes, former, facts, limit)
    return 1 if bench_compare.worse(changes, limit) else 0


def _ensure_image(qubes: Qubes) -> None:
    """A first start makes the template's warm image if it has none."""
    name = qubes.app("bench-first")
    qubes.connection.call(name, "admin.vm.Start")
    qubes.kill(name)


def _measure(bench: Bench, names: Sequence[str]) -> list[Figure]:
    figures: list[Figure] = []
    for name in names:
        if tool.is_terminal(sys.stderr):
            print(f"measuring: {name}", file=sys.stderr)
        figures += MEASURES[name](bench)
        bench.qubes.sweep()
    return figures


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the bench as Ctrl-C does: cleaning up."""
    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, interrupt))
        yield
