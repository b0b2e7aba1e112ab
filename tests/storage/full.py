"""Every operation of a pool on a file system that is really full: `python full.py DRIVER DIR`, DIR a tmpfs of SIZE bytes.

Prints, for each operation, how often it met the full disk. What is found after each is what was there before or what the
operation makes of it, and nothing else; a failure is one sentence with advice.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

from tests.storage import walk

from cloison.storage.base import PoolError
from cloison.storage.image_pool import ImagePool

SIZE = 32 << 20
SPARE = (0, 4, 8, 16, 40, 100, 500, 1500)        # KiB that are left
MIB = 1 << 20


def prepare(driver: str, folder: str) -> ImagePool:
    """As `walk.prepare`, with content that takes space."""
    shutil.rmtree(folder, ignore_errors=True)
    pool = walk.pool_in(driver, folder)
    walk.prepare(pool)
    for volume in (walk.DATA, walk.DEEP):
        pool.discard(volume)
        path = Path(folder, "filling")
        path.write_bytes(b"\x05" * 2 * MIB)
        pool.import_file(volume, str(path), format="raw")
        for pattern in range(3):
            walk.write_to(pool.start(volume), 1 + pattern)
            pool.stop(volume)
    walk.write_to(pool.start(walk.DEEP), 9)
    return pool


def fill(folder: str, spare: int) -> str:
    """A file that takes all but that many KiB."""
    ballast = os.path.join(folder, "ballast")
    with open(ballast, "wb", 0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    with open(ballast, "r+b", 0) as file:
        file.truncate(max(os.path.getsize(ballast) - spare * 1024, 0))
    return ballast


def attempt(driver: str, folder: str, operation: str, spare: int | None) -> tuple[bool, dict[str, object], dict[str, object]]:
    """Whether it succeeded with that many KiB left (None: plenty), and the states before and after."""
    pool = prepare(driver, os.path.join(folder, "pool"))
    before = walk.state(pool)
    ballast = fill(folder, spare) if spare is not None else None
    done = True
    try:
        walk.OPERATIONS[operation](pool)
    except PoolError as error:
        done = False
        assert "no space left" in str(error).lower(), f"{operation}: {error}"
        assert error.hint, f"{operation}: no advice with {error}"
    except OSError as error:                     # of whoever fills an import, not of the pool
        done = False
        assert operation == "import_end", f"{operation}: {error}"
    if ballast is not None:
        os.unlink(ballast)
    again = walk.pool_in(driver, pool.folder)
    left = {path for path in walk.leftovers(again) if "/.blank/" not in path and not path.endswith(".import.raw")}
    assert not left or not done, f"{operation} left {left}"
    again.setup()
    assert walk.leftovers(again) == set(), f"{operation}: {walk.leftovers(again)}"
    return done, before, walk.state(again)


def main() -> int:
    driver, folder = sys.argv[1:]
    for operation in walk.OPERATIONS:
        done, _, wanted = attempt(driver, folder, operation, None)
        assert done
        failures = 0
        for spare in SPARE:
            done, before, after = attempt(driver, folder, operation, spare)
            failures += not done
            assert after == (wanted if done else before), f"{operation} with {spare} KiB left: neither the old state nor the new"
        print(operation, failures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
