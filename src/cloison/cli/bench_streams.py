"""How fast bytes go out of a qube, into one, and as a file from one to another."""
from __future__ import annotations

import subprocess
import tempfile

from cloison.cli.bench_qubes import timed, tool_command
from cloison.cli.bench_report import Figure
from cloison.cli.bench_setting import MB, Bench, forget, running

ONE, OTHER = "bench-app", "bench-other"
SINK = "echo; cat > /dev/null; echo"
FILE = "file"                           # in its qube's home


def stream(bench: Bench) -> list[Figure]:
    name, size = running(bench, ONE), bench.size
    source = f"echo; head -c {size} /dev/zero"
    out, into, out_floor, into_floor = [], [], [], []
    with tempfile.TemporaryFile(dir=bench.connection.paths.tmp) as zeros:
        zeros.truncate(size)
        for _ in range(max(1, bench.runs // 3)):
            out.append(_rate(name, size, source))
            out_floor.append(MB * size / bench.bare.stream(source, 0))
            zeros.seek(0)
            into.append(_rate(name, size, SINK, zeros.fileno()))
            into_floor.append(MB * size / bench.bare.stream(SINK, size))
    return [Figure("stream out of a qube", "MB/s", out, out_floor), Figure("stream into a qube", "MB/s", into, into_floor)]


def copy(bench: Bench) -> list[Figure]:
    """qvm-copy, with all that it does, policy and the receiver's disk included; its floor is the slower of the two streams."""
    source, target, size = running(bench, ONE), running(bench, OTHER), bench.size
    bench.qubes.allow(f"qubes.Filecopy * {source} @default allow target={target}")
    _shell(source, f"head -c {size} /dev/urandom > {FILE}")
    copies, floor = [], []
    with tempfile.TemporaryFile(dir=bench.connection.paths.tmp) as zeros:
        zeros.truncate(size)
        for number in range(max(1, bench.runs // 3) + 1):
            copies.append(_rate(source, size, f"echo; exec qvm-copy --without-progress {FILE}"))
            _shell(target, f"rm QubesIncoming/{source}/{FILE}")
            out = _rate(source, size, f"echo; exec cat {FILE}")
            zeros.seek(0)
            floor.append(min(out, _rate(target, size, SINK, zeros.fileno())))
            if number == 0:
                forget(copies, floor)
    return [Figure("copy of a file from qube to qube", "MB/s", copies, floor)]


def _shell(name: str, command: str) -> None:
    """In the qube, outside of what is timed. Raises ToolFailed."""
    timed(tool_command("qvm-run", "-p", name, command))


def _rate(name: str, size: int, command: str, stdin: int = subprocess.DEVNULL) -> float:
    """MB/s of a shell command in the qube: from its first byte, which says that it runs, to the end of its output."""
    one = timed(tool_command("qvm-run", "-p", "--no-filter-escape-chars", name, command), stdin, keep=1)
    return MB * size / (one.last - one.first)
