"""The power fails before any fsync of any operation, and after its end: the volumes are the old ones or the new ones, and what was
done is done. That the fake sees what it should is tested with each fsync of the storage left out.
"""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.storage import power_cut, walk
from tests.storage.power_cut import WAYS, Disk, recording
from tests.storage.walk import MIB, leftovers, state

from cloison.errors import StorageError
from cloison.runtime import files
from cloison.storage import image_pool, images, volume
from cloison.storage.blanks import make_blank
from cloison.storage.flatten import flatten
from cloison.storage.image_pool import ImagePool
from cloison.storage.qcow2_image import create_overlay
from cloison.wire.warden import Layer

State = dict[str, object]


@pytest.fixture(scope="module", params=walk.DRIVERS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImagePool:
    pool = walk.pool_in(request.param, str(tmp_path_factory.mktemp("prepared") / "pool"))
    walk.prepare(pool)
    return pool


def copy(prepared: ImagePool, folder: Path) -> ImagePool:
    subprocess.run(["cp", "-a", "--sparse=always", prepared.folder, str(folder)], check=True)
    return walk.pool_in(prepared.driver, str(folder))


def after_cuts(disk: Disk, pool: ImagePool, folder: Path) -> list[State | str]:
    """What there is after a power cut at this moment, in each way it may be; a sentence where it can't be used."""
    found: list[State | str] = []
    for number, (records, others) in enumerate(WAYS):
        place = folder / f"cut{number}"
        disk.after_cut(place, new_records=records, new_others=others)
        reopened = walk.pool_in(pool.driver, str(place))
        try:
            reopened.setup()
            seen = state(reopened)
            found.append(f"left: {leftovers(reopened)}" if leftovers(reopened) else seen)
        except (StorageError, OSError) as error:
            found.append(f"records {records}, others {others}: {error}")
        shutil.rmtree(place)
    return found


def play(prepared: ImagePool, operation: str, folder: Path) -> tuple[State, list[State | str], list[State | str], State]:
    """The state before, those after a cut in the middle, those after a cut at the end, and the state it leads to."""
    pool = copy(prepared, folder / "pool")
    before, middle, busy = state(pool), list[State | str](), False

    def cut(disk: Disk) -> None:
        nonlocal busy
        if not busy:                        # not of what is done to look at a cut
            busy = True
            middle.extend(after_cuts(disk, pool, folder))
            busy = False

    with recording(Path(pool.folder), cut) as disk:
        walk.OPERATIONS[operation](pool)
        busy = True
        end = after_cuts(disk, pool, folder)
    return before, middle, end, state(pool)


def faults(prepared: ImagePool, operation: str, folder: Path) -> list[State | str]:
    """What a power cut leaves that is neither what was there before nor what the operation makes of it."""
    before, middle, end, wanted = play(prepared, operation, folder)
    allowed = [wanted, {**wanted, "import": True}]          # the file to import may be there though it was taken
    return [*(seen for seen in middle if seen not in (before, *allowed)), *(seen for seen in end if seen not in allowed)]


@pytest.mark.parametrize("operation", [name for name in walk.OPERATIONS if name != "export"])
def test_old_or_new_in_the_middle_and_new_at_the_end(prepared: ImagePool, tmp_path: Path, operation: str) -> None:
    assert faults(prepared, operation, tmp_path) == []


def _nothing(*_: object) -> None:
    """Is made durable."""


def _write_carelessly(path: str, data: bytes, mode: int = 0o600) -> None:
    temporary = path + ".tmp"
    Path(temporary).write_bytes(data)
    os.chmod(temporary, mode)
    files.rename(temporary, path)


def _seal_carelessly(path: str, format: str) -> int:
    os.chmod(path, images.COMMIT_MODE)
    return os.stat(path).st_size if format == "raw" else images_size(path)


def images_size(path: str) -> int:
    with images.opened(path) as fd:
        return images.checked_header(fd)


CARELESS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "no record": ("resize", lambda patch: patch.setattr(volume, "write_atomic", _write_carelessly)),
    "no rename": ("resize", lambda patch: patch.setattr(files, "fsync_dir", _nothing)),
    "no names of images": ("clone", lambda patch: patch.setattr(volume, "fsync_dir", _nothing)),
    "no content": ("stop", lambda patch: patch.setattr(images, "seal", _seal_carelessly)),
    "no folder of a new qube": ("create", lambda patch: patch.setattr(images, "fsync_dir", _nothing)),
    "no removal of a record": ("remove", lambda patch: patch.setattr(image_pool, "fsync_dir", _nothing)),
}


@pytest.mark.parametrize("careless", CARELESS)
def test_the_fake_sees_what_was_not_made_durable(
    prepared: ImagePool, tmp_path: Path, careless: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    operation, forget = CARELESS[careless]
    with monkeypatch.context() as patch:
        forget(patch)
        if careless == "no content":
            assert _seen_without_content(prepared, tmp_path)
        else:
            assert faults(prepared, operation, tmp_path) != []


def _seen_without_content(prepared: ImagePool, folder: Path) -> bool:
    """A write to the dirty image, not durable before the stop, must be found missing after the cut."""
    pool = copy(prepared, folder / "pool")
    pool.start(walk.DATA)
    pool._after_stop = _nothing  # type: ignore[method-assign]  # a merge makes durable whatever it copies
    with recording(Path(pool.folder), lambda _: None) as disk:
        _write(pool)
        pool.stop(walk.DATA)
        wanted = state(pool)
        return any(seen != wanted for seen in after_cuts(disk, pool, folder))


def _write(pool: ImagePool) -> None:
    """As a guest's QEMU does it, without fsync."""
    path = pool.path(walk.DATA)
    if pool.format == "raw":
        with open(path, "r+b") as file:
            file.write(b"\x09" * 4096)
    else:
        subprocess.run(["qemu-io", "-f", "qcow2", "-t", "unsafe", "-c", "write -P 9 0 4096", path], check=True, capture_output=True)


def test_what_a_guest_wrote_is_durable_when_its_volume_has_stopped(prepared: ImagePool, tmp_path: Path) -> None:
    assert not _seen_without_content(prepared, tmp_path)


def _into_file(pool: ImagePool, folder: Path) -> str:
    """A file of a MiB, with something in it."""
    path = folder / "image"
    path.write_bytes(b"\x01" * MIB)
    return str(path)


def _merged(pool: ImagePool, folder: Path) -> str:
    output = str(folder / "output")
    images.sparse_file(output, MIB)
    flatten([Layer(_into_file(pool, folder), "raw")], output)
    return output


def _overlay(pool: ImagePool, folder: Path) -> str:
    create_overlay(str(folder / "overlay"), MIB)
    return str(folder / "overlay")


def _dirty(pool: ImagePool, folder: Path) -> str:
    format = pool.format
    base = _into_file(pool, folder)
    pool._make_dirty((Layer(base, "raw"),), str(folder / f"dirty.{format}"), 2 * MIB)
    return str(folder / f"dirty.{format}")


def _grown(pool: ImagePool, folder: Path) -> str:
    path = _dirty(pool, folder)
    SYNCED.clear()
    with images.opened(path, os.O_RDWR) as fd:
        pool._grow_dirty(fd, 3 * MIB)
    return path


def _copied(pool: ImagePool, folder: Path) -> str:
    target = str(folder / "target")
    images.sparse_file(target, MIB)
    images.copy_content(_into_file(pool, folder), target)
    return target


def _blank(pool: ImagePool, folder: Path) -> str:
    make_blank(str(folder / "blank.raw"), 4 * MIB)
    return str(folder)                      # and its name, of the folder that holds it


SYNCED: list[str] = []


@pytest.mark.parametrize("step", [_merged, _overlay, _dirty, _grown, _copied, _blank])
def test_each_step_makes_durable_what_it_made(
    prepared: ImagePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Callable[[ImagePool, Path], str],
) -> None:
    """By itself: what comes after may be an operation that has none of its own."""
    real = os.fsync
    SYNCED.clear()

    def fsync(fd: int) -> None:
        real(fd)
        SYNCED.append(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(os, "fsync", fsync)
    made = step(prepared, tmp_path)
    assert made in SYNCED


def test_the_fake_itself(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "old.json").write_bytes(b"old")

    def seen(disk: Disk, *, records: bool, others: bool) -> dict[str, bytes]:
        target = tmp_path / "cut"
        disk.after_cut(target, new_records=records, new_others=others)
        found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        shutil.rmtree(target)
        return found

    with recording(root, lambda _: None) as disk:
        (root / "folder" / "new.json").write_bytes(b"new")
        (root / "folder" / "image").write_bytes(b"image")
        (root / "folder" / "old.json").write_bytes(b"changed")
        assert seen(disk, records=False, others=False) == {"folder/old.json": b"old"}
        assert seen(disk, records=True, others=False) == {"folder/old.json": b"old", "folder/new.json": b""}
        assert seen(disk, records=False, others=True) == {"folder/old.json": b"old", "folder/image": b""}
        for name in ("folder/new.json", "folder"):
            fd = os.open(root / name, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        assert seen(disk, records=False, others=False) == {
            "folder/old.json": b"old", "folder/new.json": b"new", "folder/image": b""}
        (root / "folder" / "old.json").unlink()
        assert "folder/old.json" in seen(disk, records=False, others=False)
        assert "folder/old.json" not in seen(disk, records=True, others=False)
    assert power_cut.WAYS == ((False, False), (False, True), (True, False), (True, True))
