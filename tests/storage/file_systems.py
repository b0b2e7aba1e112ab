"""File systems whose files share blocks, where this machine lets us make one: root, a loop device and the file system's tools."""
from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 320 << 20          # XFS makes none below 300 MiB; the file is sparse


@contextmanager
def mounted(kind: str) -> Iterator[Path]:
    """An empty file system of that kind (btrfs, xfs). Raises CalledProcessError, FileNotFoundError."""
    with tempfile.TemporaryDirectory(prefix=f"cloison-{kind}-") as folder:
        image, place = Path(folder, "image"), Path(folder, "mounted")
        image.touch()
        os.truncate(image, SIZE)
        place.mkdir()
        subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True, capture_output=True)


@functools.cache
def available() -> tuple[str, ...]:
    """Kinds that can be made and mounted here."""
    return tuple(kind for kind in ("btrfs", "xfs") if os.geteuid() == 0 and shutil.which(f"mkfs.{kind}") and _works(kind))


def _works(kind: str) -> bool:
    try:
        with mounted(kind):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
