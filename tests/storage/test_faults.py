"""Every step of every operation, broken: kill -9, a full disk, a broken disk. Afterwards the volumes are the old ones or
the new ones, they can be used, and no file is left that belongs to none (#5323, #7219, #4972).
"""
from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.storage import walk

import cloison.storage
from cloison.errors import StorageError
from cloison.storage.base import VolumeConfig
from cloison.storage.qcow2 import Qcow2Pool
from cloison.storage.volume import VolumeFiles

SOURCES = Path(cloison.storage.__file__).parent
POINTS = sorted({name for path in SOURCES.glob("*.py") for name in re.findall(r'point\("(storage:[a-z:]+)"\)', path.read_text())})
FAULTS = ("", "=enospc", "=eio")
# Which operation passes which point; all pass those of the record.
PASSES = {
    "storage:blank:made": ("create",), "storage:empty:made": ("create", "clear"), "storage:start:overlay": ("start",),
    "storage:stop:sealed": ("stop",), "storage:import:linked": ("import_file", "import_end"), "storage:clone:linked": ("clone",),
    "storage:revert:linked": ("revert",), "storage:remove:record": ("remove",), "storage:merge:flat": ("stop",),
    "storage:merge:renamed": ("stop",),
}
RECORD = tuple(name for name in walk.OPERATIONS if name not in ("export", "remove"))
CASES = [(point, operation) for point in POINTS for operation in PASSES.get(point, RECORD)]


def test_no_point_is_forgotten() -> None:
    assert {point for point in POINTS if not point.startswith("storage:record:")} == set(PASSES)
    assert {operation for _, operation in CASES} == set(walk.OPERATIONS) - {"export"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "pool"
    walk.prepare(Qcow2Pool("qcow2", str(folder)))
    return folder


def copy(prepared: Path, tmp_path: Path) -> Qcow2Pool:
    folder = tmp_path / "pool"
    subprocess.run(["cp", "-a", "--sparse=always", str(prepared), str(folder)], check=True)
    return Qcow2Pool("qcow2", str(folder))


def run(pool: Qcow2Pool, operation: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CLOISON_FAULT": fault}
    argv = [sys.executable, walk.__file__, operation, pool.folder]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=120)


def state(pool: Qcow2Pool) -> dict[str, object]:
    """All that can be seen of the volumes, and the file to import, but for times and how images are chained."""
    seen: dict[str, object] = {"import": os.path.exists(f"{pool.folder}/import")}
    for volume in walk.VOLUMES:
        seen[volume.vid] = one(pool, volume)
    return seen


def one(pool: Qcow2Pool, volume: VolumeConfig) -> object:
    found = VolumeFiles(pool.folder, volume.vid).read()
    if found is None:
        return None
    path = pool.export_begin(volume)
    content = Path(path).read_bytes()
    pool.export_end(volume, path)
    # A blank ext4 has a random id; that it is one is enough.
    shown = b"ext4" if content[1080:1082] == b"\x53\xef" else content
    return found.size, found.current, found.revisions, found.dirty, found.last, shown


def leftovers(pool: Qcow2Pool) -> set[str]:
    """Files that no record names."""
    known = {f"{pool.folder}/import"}
    for volume in walk.VOLUMES:
        files = VolumeFiles(pool.folder, volume.vid)
        found = files.read()
        if found is not None:
            known |= {files.record_path} | {os.path.join(files.folder, name) for name in found.filenames(files.name)}
    there = {os.path.join(folder, name) for folder, _, names in os.walk(pool.folder) for name in names}
    return {path for path in there - known if "/.blank/" not in path or os.stat(path).st_nlink == 1}


@pytest.fixture(scope="module")
def outcomes(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What each operation leads to undisturbed."""
    after = {}
    for operation in walk.OPERATIONS:
        pool = copy(prepared, tmp_path_factory.mktemp(operation))
        done = run(pool, operation)
        assert done.returncode == 0, done.stdout + done.stderr
        after[operation] = state(pool)
        assert leftovers(pool) == set()
        shutil.rmtree(pool.folder)
    return after


@pytest.mark.parametrize(("point", "operation", "fault"), [(*case, fault) for case in CASES for fault in FAULTS])
def test_old_or_new_and_nothing_left(  # noqa: PLR0917
    prepared: Path, outcomes: dict[str, dict[str, object]], tmp_path: Path, point: str, operation: str, fault: str,
) -> None:
    pool = copy(prepared, tmp_path)
    before = state(pool)
    done = run(pool, operation, point + fault)
    if not fault:
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    elif done.returncode != 0:                      # a merge that fails does not fail its stop
        assert done.returncode == 3, done.stderr
        sentence, hint = done.stdout.splitlines()
        assert sentence.startswith("can't ") and hint and "\n" not in sentence
        assert all("/.blank/ext4-" in path for path in leftovers(pool)), "a failure cleans up at once"
    reopened = Qcow2Pool("qcow2", pool.folder)
    reopened.setup()
    found = state(reopened)
    # A file to import may be there although it was taken, never gone although it was not.
    if operation == "import_file" and found != before:
        found["import"] = False
    assert found in (before, outcomes[operation])
    assert leftovers(reopened) == set()
    for volume in walk.VOLUMES:
        try:
            reopened.start(volume)
            reopened.stop(volume)
            reopened.remove(volume)
        except StorageError as error:
            assert "does not exist" in str(error)
            assert found[volume.vid] is None


def test_what_is_broken_off_can_be_done_again(prepared: Path, outcomes: dict[str, dict[str, object]], tmp_path: Path) -> None:
    for number, operation in enumerate(RECORD):
        folder = tmp_path / str(number)
        folder.mkdir()
        pool = copy(prepared, folder)
        assert run(pool, operation, "storage:record:before").returncode == -signal.SIGKILL
        pool.setup()
        assert run(pool, operation).returncode == 0
        assert state(pool) == outcomes[operation]
