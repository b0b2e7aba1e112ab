"""What a file copy takes, from one packer to one unpacker over a socket pair, beside what cp takes for the same files.

    python benchmarks/filecopy_bench.py [--dir DIR] [--size MIB] [--files N] [--runs N]

DIR (default: a temporary folder) decides the file system. One large file in MiB/s, small files a second. Both ends are programs,
started anew; a copy is on the disk when it ends, and so are the floors: `cat | cat > file` and `cp -r`, with `sync -f`.
"""
from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cloison

MIB = 1 << 20
SMALL = 2000                             # bytes of a small file
_SOURCE = str(Path(cloison.__file__).parents[1])


def program(module: str, *arguments: str) -> list[str]:
    """As its script in a qube starts it."""
    code = f"import sys; sys.path.insert(0, {_SOURCE!r}); from {module} import main; sys.exit(main(sys.argv))"
    return [sys.executable, "-ISEc", code, *arguments]


def copy(source: Path, target: Path) -> int:
    """One copy by our programs; the most memory that one of them took, in KiB."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        both = ((program("cloison.qrexec.filecopy.unpacker", "", str(target)), theirs),
                (program("cloison.qrexec.filecopy.agent", str(source)), ours))
        children = [subprocess.Popen(words, stdin=end, stdout=end) for words, end in both]
    ended = [os.wait4(child.pid, 0) for child in children]
    for child, (_, status, _) in zip(children, ended, strict=True):
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
    return max(usage.ru_maxrss for _, _, usage in ended)


def pipe(source: Path, target: Path) -> None:
    """The floor of a large file: two programs and a pipe."""
    with open(target / source.name, "wb") as output:
        first = subprocess.Popen(["cat", str(source)], stdout=subprocess.PIPE)
        subprocess.run(["cat"], stdin=first.stdout, stdout=output, check=True)
        first.communicate()
    subprocess.run(["sync", "-f", str(target)], check=True)


def tree(source: Path, target: Path) -> None:
    """The floor of a folder."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)


def seconds(runs: int, folder: Path, source: Path, work: Callable[[Path, Path], object]) -> float:
    """Median time of a copy into a fresh folder."""
    times = []
    for _ in range(runs):
        target = folder / "target"
        target.mkdir()
        began = time.perf_counter()
        work(source, target)
        times.append(time.perf_counter() - began)
        shutil.rmtree(target)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to copy")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="size of the large file")
    parser.add_argument("--files", type=int, default=2000, metavar="N", help="number of small files")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="copies of each, of which the median counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        large, small = folder / "large", folder / "small"
        with open(large, "wb") as file:
            for _ in range(args.size):
                file.write(os.urandom(MIB))
        small.mkdir()
        for number in range(args.files):
            (small / str(number)).write_bytes(os.urandom(SMALL))
        memory: list[int] = []
        floor = seconds(args.runs, folder, large, pipe)
        ours = seconds(args.runs, folder, large, lambda source, target: memory.append(copy(source, target)))
        print(f"one file of {args.size} MiB: {args.size / ours:.0f} MiB/s, floor {args.size / floor:.0f}, x {ours / floor:.2f}, "
              f"memory {max(memory) / 1024:.0f} MiB")
        floor = seconds(args.runs, folder, small, tree)
        ours = seconds(args.runs, folder, small, copy)
        print(f"{args.files} files of {SMALL} bytes: {args.files / ours:.0f} a second, "
              f"floor {args.files / floor:.0f}, x {ours / floor:.2f}")


if __name__ == "__main__":
    main()
