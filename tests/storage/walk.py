"""One operation on a pool, in a process of its own that a fault point may kill: `python walk.py OPERATION DRIVER DIR`.

Each operation starts from what `prepare` makes; `state` and `leftovers` are what is compared afterwards.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cloison.errors import StorageError
from cloison.storage.base import Kind, VolumeConfig
from cloison.storage.flatten import graph
from cloison.storage.image_pool import ImagePool
from cloison.storage.qcow2 import SHALLOW, Qcow2Pool
from cloison.storage.reflink import ReflinkPool
from cloison.storage.volume import VolumeFiles
from cloison.wire.warden import DiskSource

MIB = 1 << 20
DATA = VolumeConfig("appvms/mail/data", "data", Kind.ORIGIN, MIB)
DEEP = VolumeConfig("appvms/deep/data", "data", Kind.ORIGIN, MIB)
NEW = VolumeConfig("appvms/new/private", "private", Kind.ORIGIN, MIB)
COPY = VolumeConfig("appvms/copy/data", "data", Kind.ORIGIN, MIB)
VOLUMES = (DATA, DEEP, NEW, COPY)


def pool_in(driver: str, folder: str) -> ImagePool:
    """Where files can't share blocks, the reflink driver copies."""
    return Qcow2Pool("pool", folder) if driver == "qcow2" else ReflinkPool("pool", folder, check=False)


DRIVERS = ("qcow2", "file-reflink")


def write_to(source: DiskSource, pattern: int) -> None:
    """The first 4 KiB, as a session does that is to be kept."""
    layers = (*source.layers, *([source.top] if source.top else []))
    subprocess.run(["qemu-io", "json:" + json.dumps(graph(layers)), "-c", f"write -P {pattern} 0 4k"], check=True,
                   stdout=subprocess.DEVNULL)


def prepare(pool: ImagePool) -> None:
    """`data`: two sessions old and idle; `deep`: dirty, and its chain is to be merged at the stop."""
    pool.setup()
    pool.create(DATA)
    for pattern in range(2):
        write_to(pool.start(DATA), 1 + pattern)
        pool.stop(DATA)
    pool.create(DEEP)
    for pattern in range(SHALLOW - 1):
        write_to(pool.start(DEEP), 1 + pattern)
        pool.stop(DEEP)
    write_to(pool.start(DEEP), SHALLOW)
    Path(pool.folder, "import").write_bytes(b"\x07" * 2 * MIB)


def _start(pool: ImagePool) -> None:
    pool.start(DATA)


def _import_end(pool: ImagePool) -> None:
    Path(pool.import_begin(DATA, 2 * MIB)).write_bytes(b"\x08" * 2 * MIB)
    pool.import_end(DATA, ok=True)


def _export(pool: ImagePool) -> None:
    pool.export_end(DEEP, pool.export_begin(DEEP))


OPERATIONS: dict[str, Callable[[ImagePool], None]] = {
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


def state(pool: ImagePool) -> dict[str, object]:
    """All that can be seen of the volumes, and the file to import, but for times and how images are chained."""
    seen: dict[str, object] = {"import": os.path.exists(f"{pool.folder}/import")}
    for volume in VOLUMES:
        seen[volume.vid] = _one(pool, volume)
    return seen


def _one(pool: ImagePool, volume: VolumeConfig) -> object:
    found = VolumeFiles(pool.folder, volume.vid).read()
    if found is None:
        return None
    path = pool.export_begin(volume)
    content = Path(path).read_bytes()
    pool.export_end(volume, path)
    # A blank ext4 has a random id; that it is one is enough.
    shown = b"ext4" if content[1080:1082] == b"\x53\xef" else content
    return found.size, found.current, found.revisions, found.dirty, found.last, shown


def leftovers(pool: ImagePool) -> set[str]:
    """Files that no record names."""
    known = {f"{pool.folder}/import"}
    for volume in VOLUMES:
        files = VolumeFiles(pool.folder, volume.vid)
        found = files.read()
        if found is not None:
            known |= {files.record_path} | {os.path.join(files.folder, name) for name in found.filenames(files.name)}
    there = {os.path.join(folder, name) for folder, _, names in os.walk(pool.folder) for name in names}
    return {path for path in there - known if "/.blank/" not in path or os.stat(path).st_nlink == 1}


def main() -> int:
    try:
        OPERATIONS[sys.argv[1]](pool_in(*sys.argv[2:]))
    except StorageError as error:
        print(f"{error}\n{getattr(error, 'hint', '')}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
