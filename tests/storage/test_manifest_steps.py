"""Records of volumes of earlier versions, read as today's."""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cloison.storage import manifest
from cloison.storage.base import PoolError
from cloison.storage.manifest import Commit, Manifest

FIRST = {
    "version": 1, "serial": "0" * 16, "size": 512, "last": 1, "current": 1, "revisions": [], "dirty": None,
    "commits": [{"id": 1, "format": "raw", "base": None, "size": 512, "time": 7}]}


def make_image(path: Path, size: int) -> None:
    """An empty one, of the format that its name ends in."""
    if path.suffix == ".raw":
        path.touch()
        os.truncate(path, size)
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)


def test_the_first_version_knew_no_lengths_and_no_replacing() -> None:
    read = manifest.decode(json.dumps(FIRST).encode(), "v")
    assert read == Manifest("0" * 16, 512, 1, 1, commits=(Commit(1, "raw", None, 512, 7, 0),))
    assert (read.dirty_format, read.replaces) == ("qcow2", False)
    assert json.loads(read.encode())["version"] == manifest.VERSION == 2
    assert manifest.decode(read.encode(), "v") == read


@pytest.mark.parametrize("version", [0, -1, 3, 1.0, True, "1", None])
def test_other_versions_are_refused(version: object) -> None:
    with pytest.raises(PoolError, match="reads up to 2"):
        manifest.decode(json.dumps({**FIRST, "version": version}).encode(), "v")
