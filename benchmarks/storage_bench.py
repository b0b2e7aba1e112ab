"""What the storage drivers take, each beside its floor: the least that some other tool takes for the same bytes on the same disk.

    python benchmarks/storage_bench.py [--dir DIR] [--size MIB] [--runs N]

DIR (default: a temporary folder) decides the file system. Medians in milliseconds; an import also in MB/s. The floors are
programs run whole, as a person would: qemu-img, cp, and one sequential write with fsync, just before each driver's turn.
Everything of ours is durable when it returns; of the floors only the write is. Wanted is that nothing takes longer than the
program that does it without us (SLACK, since a busy disk differs from one moment to the next); exit status 1 if something does.
"""
from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cloison.storage.base import Kind, PoolError, VolumeConfig
from cloison.storage.image_pool import ImagePool
from cloison.storage.qcow2 import Qcow2Pool
from cloison.storage.reflink import ReflinkPool

MIB, GIB = 1 << 20, 1 << 30
SLACK = 1.5
CHUNK = bytes(range(256)) * 4096                 # a MiB that no file system takes for a hole
Row = tuple[str, float]


def root(number: int = 0) -> VolumeConfig:
    return VolumeConfig(f"appvms/q{number}/root", "root", Kind.ORIGIN, 10 * GIB)


def private(number: int) -> VolumeConfig:
    return VolumeConfig(f"appvms/q{number}/private", "private", Kind.ORIGIN, 2 * GIB)


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def median(runs: int, work: Callable[[int], object]) -> float:
    return statistics.median(milliseconds(partial(work, number)) for number in range(runs))


def write(path: str, size: int) -> None:
    """`size` MiB, and to the disk."""
    with open(path, "r+b" if os.path.exists(path) else "wb", 0) as file:
        for _ in range(size):
            file.write(CHUNK)
        os.fsync(file.fileno())


def ours(pool: ImagePool, size: int, runs: int) -> list[Row]:
    """A driver's whole life of volumes; `size` MiB of content where content counts."""
    pool.setup()
    rows: list[Row] = []

    def measure(name: str, work: Callable[[int], object], times: int = runs) -> None:
        rows.append((name, median(times, work)))

    def fill(_: int) -> None:
        write(pool.import_begin(root(), size * MIB), size)
        pool.import_end(root(), ok=True)

    def session(_: int) -> None:
        top = pool.start(root()).top
        assert top is not None
        commits.append(milliseconds(lambda: pool.stop(root())))

    def start(_: int) -> None:
        pool.start(root())
        pool.discard(root())

    commits: list[float] = []
    pool.create(private(-1))                     # the first one of a size makes its empty file system
    measure("create private", lambda number: pool.create(private(number)))
    measure("create root", lambda number: pool.create(root(number)))
    measure("import", fill, 3)
    measure("start", start)
    measure("start and commit", session)
    rows.append(("commit", statistics.median(commits)))
    measure("clone", lambda number: pool.clone(root(number + 1), root()))
    measure("revert", lambda _: pool.revert(root()))
    measure("remove", lambda number: pool.remove(root(number + 1)))
    return rows


def floors(folder: str, size: int, runs: int, *, copying: bool) -> dict[str, Row]:
    """What each measure is compared with: how, and its milliseconds. A driver that has to copy starts no faster than `cp`, and
    what its commit makes durable is the whole copy.
    """
    def run(*argv: str) -> None:
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    def path(name: str, number: int) -> str:
        return os.path.join(folder, f"{name}{number}")

    def copy_durably(number: int) -> None:
        run("cp", "--sparse=always", path("raw", 0), path("d", number))
        run("sync", path("d", number))

    written = median(3, lambda number: write(path("raw", number), size))
    create = median(runs, lambda number: run("qemu-img", "create", "-q", "-f", "qcow2", path("q", number), "10G"))
    overlay = median(runs, lambda number: run(
        "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", path("raw", 0), path("o", number)))
    copy = median(3, lambda number: run("cp", "--reflink=auto", "--sparse=always", path("raw", 0), path("c", number)))
    durable = median(3, copy_durably) if copying else copy
    commit = median(3, lambda number: run("qemu-img", "commit", "-q", path("o", number)))
    remove = median(3, lambda number: run("rm", path("c", number)))
    return {
        "create private": ("qemu-img create", create), "create root": ("qemu-img create", create),
        "import": ("write, fsync", written),
        "start": ("cp, sync FILE", durable) if copying else ("qemu-img create -b", overlay),
        "commit": ("write, fsync", written) if copying else ("qemu-img commit", commit), "clone": ("cp --reflink=auto", copy),
        "revert": ("cp --reflink=auto", copy), "remove": ("rm", remove),
    }


def report(title: str, rows: list[Row], floor: dict[str, Row], size: int) -> int:
    """How many figures are not as wanted."""
    print(f"{title}")
    missed = 0
    for name, took in rows:
        how, least = floor.get(name, ("", 0.0))
        late = bool(how) and took > SLACK * least
        missed += late
        beside = f"{how:20} {least:9.2f} ms  {took / least:6.2f} times  {'MISSED' if late else 'ok'}" if how else ""
        rate = f"  {size * MIB / took / 1000:6.0f} MB/s, floor {size * MIB / least / 1000:.0f}" if name == "import" else ""
        print(f"  {name:18} {took:9.2f} ms   {beside}{rate}")
    return missed


def drivers(folder: str) -> dict[str, ImagePool]:
    pools: dict[str, ImagePool] = {"qcow2": Qcow2Pool("q", os.path.join(folder, "q"))}
    place = os.path.join(folder, "r")
    try:
        reflink = ReflinkPool("r", place)
        reflink.setup()
        pools["file-reflink"] = reflink
    except PoolError:
        pools["file-reflink, copying (no reflinks here)"] = ReflinkPool("r", place, check=False)
    return pools


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dir", default=None, help="where to measure")
    parser.add_argument("--size", type=int, default=256, help="MiB of content")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    folder, missed = tempfile.mkdtemp(prefix="storage-bench-", dir=options.dir), 0
    try:
        for title, pool in drivers(folder).items():
            place = Path(folder, f"floor-{pool.driver}")
            place.mkdir()
            floor = floors(str(place), options.size, options.runs, copying="copying" in title)
            shutil.rmtree(place)
            os.sync()
            missed += report(title, ours(pool, options.size, options.runs), floor, options.size)
    finally:
        shutil.rmtree(folder)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
