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
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.storage import full, walk
from tests.storage.walk import leftovers, state

import cloison.storage
from cloison.errors import StorageError
from cloison.storage.base import VolumeConfig
from cloison.storage.image_pool import ImagePool
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


@pytest.fixture(scope="module", params=walk.DRIVERS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImagePool:
    pool = walk.pool_in(request.param, str(tmp_path_factory.mktemp("prepared") / "pool"))
    walk.prepare(pool)
    return pool


def copy(prepared: ImagePool, tmp_path: Path) -> ImagePool:
    folder = tmp_path / "pool"
    subprocess.run(["cp", "-a", "--sparse=always", prepared.folder, str(folder)], check=True)
    return walk.pool_in(prepared.driver, str(folder))


def run(pool: ImagePool, operation: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CLOISON_FAULT": fault}
    argv = [sys.executable, walk.__file__, operation, pool.driver, pool.folder]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.fixture(scope="module")
def outcomes(prepared: ImagePool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
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
def test_old_or_new_and_nothing_left(
    prepared: ImagePool, outcomes: dict[str, dict[str, object]], tmp_path: Path, point: str, operation: str, fault: str,
) -> None:
    pool = copy(prepared, tmp_path)
    before = state(pool)
    done = run(pool, operation, point + fault)
    if pool.driver != "qcow2" and point.startswith("storage:merge:"):
        assert done.returncode == 0, "whole files are never merged"
    elif not fault:
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    elif done.returncode != 0:                      # a merge that fails does not fail its stop
        assert done.returncode == 3, done.stderr
        sentence, hint = done.stdout.splitlines()
        assert sentence.startswith("can't ") and hint and "\n" not in sentence
        assert all("/.blank/ext4-" in path for path in leftovers(pool)), "a failure cleans up at once"
    reopened = walk.pool_in(pool.driver, pool.folder)
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


def test_what_is_broken_off_can_be_done_again(prepared: ImagePool, outcomes: dict[str, dict[str, object]], tmp_path: Path) -> None:
    for number, operation in enumerate(RECORD):
        folder = tmp_path / str(number)
        folder.mkdir()
        pool = copy(prepared, folder)
        assert run(pool, operation, "storage:record:before").returncode == -signal.SIGKILL
        pool.setup()
        assert run(pool, operation).returncode == 0
        assert state(pool) == outcomes[operation]


# -- images that are not what they were ------------------------------------------------------------------------------------


def _missing(path: str) -> None:
    os.unlink(path)


def _folder(path: str) -> None:
    os.unlink(path)
    os.mkdir(path)


def _fifo(path: str) -> None:
    os.unlink(path)
    os.mkfifo(path)


def _link(path: str) -> None:
    os.rename(path, f"{path}.elsewhere")
    os.symlink(f"{path}.elsewhere", path)


def images_of(pool: ImagePool, volume: VolumeConfig) -> list[str]:
    files = VolumeFiles(pool.folder, volume.vid)
    return [os.path.join(files.folder, name) for name in sorted(files.existing().filenames(files.name))]


READERS = {"start": walk.DATA, "revert": walk.DATA, "stop": walk.DEEP, "clone": walk.DEEP, "export": walk.DEEP}


@pytest.mark.parametrize("damage", [_missing, _folder, _fifo, _link])
@pytest.mark.parametrize("operation", READERS)
def test_an_image_that_cannot_be_read_is_an_error_and_nothing_is_lost(
    prepared: ImagePool, tmp_path: Path, operation: str, damage: Callable[[str], None],
) -> None:
    pool = copy(prepared, tmp_path)
    volume = READERS[operation]
    for path in images_of(pool, volume):
        damage(path)
    files = VolumeFiles(pool.folder, volume.vid)
    before, there = files.read(), sorted(os.listdir(files.folder))
    done = run(pool, operation)
    assert done.returncode == 3, done.stderr
    assert ": " in done.stdout.splitlines()[0]
    assert (files.read(), sorted(os.listdir(files.folder))) == (before, there)
    pool.setup()


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A small file system in memory, filled up to every few KiB before the end: each operation works or says that it is full."""
    tmp_path.joinpath("full").mkdir()
    where = str(tmp_path / "full")
    for driver in walk.DRIVERS:
        argv = ["bwrap", "--unshare-user", "--dev-bind", "/", "/", "--size", str(full.SIZE), "--tmpfs", where, "--",
                sys.executable, full.__file__, driver, where]
        environment = {**os.environ, "PYTHONPATH": str(Path(full.__file__).parents[2])}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=4 * PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        seen = dict(line.split() for line in done.stdout.splitlines())
        assert set(seen) == set(walk.OPERATIONS)
        assert sum(int(number) for number in seen.values()) > len(full.SPARE), f"the disk was hardly ever full: {seen}"
