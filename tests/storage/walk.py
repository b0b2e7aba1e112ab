"""One operation on a pool, in a process of its own that a fault point may kill: `python walk.py OPERATION DIR`.

Each operation starts from what `prepare` makes. `test_faults.py` compares what is found afterwards.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from cloison.errors import StorageError
from cloison.storage.base import Kind, VolumeConfig
from cloison.storage.qcow2 import SHALLOW, Qcow2Pool

MIB = 1 << 20
DATA = VolumeConfig("appvms/work/data", "data", Kind.ORIGIN, MIB)
DEEP = VolumeConfig("appvms/deep/data", "data", Kind.ORIGIN, MIB)
NEW = VolumeConfig("appvms/new/private", "private", Kind.ORIGIN, MIB)
COPY = VolumeConfig("appvms/copy/data", "data", Kind.ORIGIN, MIB)
VOLUMES = (DATA, DEEP, NEW, COPY)


def prepare(pool: Qcow2Pool) -> None:
    """`data`: two sessions old and idle; `deep`: dirty, and its chain is to be merged at the stop."""
    pool.setup()
    pool.create(DATA)
    for _ in range(2):
        pool.start(DATA)
        pool.stop(DATA)
    pool.create(DEEP)
    for _ in range(SHALLOW - 1):
        pool.start(DEEP)
        pool.stop(DEEP)
    pool.start(DEEP)
    Path(pool.folder, "import").write_bytes(b"\x07" * 2 * MIB)


def _start(pool: Qcow2Pool) -> None:
    pool.start(DATA)


def _import_end(pool: Qcow2Pool) -> None:
    Path(pool.import_begin(DATA, 2 * MIB)).write_bytes(b"\x08" * 2 * MIB)
    pool.import_end(DATA, ok=True)


def _export(pool: Qcow2Pool) -> None:
    pool.export_end(DEEP, pool.export_begin(DEEP))


OPERATIONS: dict[str, Callable[[Qcow2Pool], None]] = {
    "create": lambda pool: pool.create(NEW),
    "start": _start,
    "stop": lambda pool: pool.stop(DEEP),
    "discard": lambda pool: pool.discard(DEEP),
    "clear": lambda pool: pool.clear(DATA),
    "import_file": lambda pool: pool.import_file(DATA, f"{pool.folder}/import", format="raw"),
    "import_end": _import_end,
    "clone": lambda pool: pool.clone(COPY, DEEP),
    "revert": lambda pool: pool.revert(DATA),
    "resize": lambda pool: pool.resize(DATA, 2 * MIB),
    "export": _export,
    "remove": lambda pool: pool.remove(DEEP),
}


def main() -> int:
    try:
        OPERATIONS[sys.argv[1]](Qcow2Pool("qcow2", sys.argv[2]))
    except StorageError as error:
        print(f"{error}\n{getattr(error, 'hint', '')}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
