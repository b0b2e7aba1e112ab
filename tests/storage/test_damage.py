"""Images and records that are missing, cut, overwritten or unreadable, and everything that can be asked of their volume.

What replaces the content works; everything else says in one sentence which image is damaged and how, and what helps.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.pool import DATA, MIB, exported, session, shows

from cloison.errors import StorageError
from cloison.storage.base import DamagedImage, PoolError
from cloison.storage.image_pool import ImagePool
from cloison.storage.qcow2 import Qcow2Pool
from cloison.storage.reflink import ReflinkPool

VOLUME = replace(DATA, revisions_to_keep=3)
COPY = replace(VOLUME, vid="appvms/copy/data")
Damage = Callable[[Path, pytest.MonkeyPatch], None]


@pytest.fixture(params=["qcow2", "file-reflink"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> ImagePool:
    folder = str(tmp_path / "pool")
    pool = Qcow2Pool("p", folder) if request.param == "qcow2" else ReflinkPool("p", folder, check=False)
    pool.setup()
    pool.create(VOLUME)
    for pattern in (1, 2):
        session(pool, VOLUME, pattern)
    assert pool.revisions(VOLUME) == ["1", "2"]
    return pool


def image(pool: ImagePool, number: int) -> Path:
    [found] = Path(pool.folder, "appvms/mail").glob(f"data.{number}.*")
    return found


def missing(path: Path, _: pytest.MonkeyPatch) -> None:
    path.unlink()


def cut(path: Path, _: pytest.MonkeyPatch) -> None:
    path.chmod(0o600)
    os.truncate(path, 70000)


def empty(path: Path, _: pytest.MonkeyPatch) -> None:
    path.chmod(0o600)
    os.truncate(path, 0)


def a_folder(path: Path, _: pytest.MonkeyPatch) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.pread

    def fail(fd: int, *args: int) -> bytes:
        if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, *args)

    monkeypatch.setattr(os, "pread", fail)


DAMAGES: tuple[tuple[Damage, str], ...] = (
    (missing, "it is missing"), (cut, "it (has 70000 bytes of|ends before)"), (empty, "it (has 0 bytes of|has no qcow2)"),
    (a_folder, "is not an ordinary file"), (unreadable, "it can't be read: input/output error. Look at the host's kernel log"),
)
SESSION = tuple(each for each in DAMAGES if each[0] is not a_folder)     # a QEMU can't make a folder of its image


def import_whole(pool: ImagePool, tmp_path: Path) -> None:
    path = pool.import_begin(VOLUME, MIB)
    Path(path).write_bytes(b"\7" * MIB)
    pool.import_end(VOLUME, ok=True)


def whole_file(tmp_path: Path) -> str:
    path = tmp_path / "pool" / "image"
    path.write_bytes(b"\7" * MIB)
    return str(path)


REPLACE: dict[str, tuple[Callable[[ImagePool, Path], None], int]] = {
    "revert": (lambda pool, _: pool.revert(VOLUME), 2),
    "revert to an older one": (lambda pool, _: pool.revert(VOLUME, "2"), 1),
    "clear": (lambda pool, _: pool.clear(VOLUME), 0),
    "import": (import_whole, 7),
    "import a file": (lambda pool, tmp_path: pool.import_file(VOLUME, whole_file(tmp_path), format="raw"), 7),
}


@pytest.mark.parametrize(("damage", "why"), SESSION, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("do", REPLACE)
def test_what_replaces_a_damaged_session_works(
    pool: ImagePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str, damage: Damage, why: str,
) -> None:
    pool.start(VOLUME)
    top = image(pool, 4)
    damage(top, monkeypatch)
    for use in (pool.stop, pool.start):
        with pytest.raises(DamagedImage, match=f"^volume appvms/mail/data is damaged: image {top.name}: .*{why}") as caught:
            use(VOLUME)
        assert "qvm-volume revert mail:data goes back to what its last whole stop has kept" in caught.value.hint
    assert pool.revisions(VOLUME) == ["1", "2", "3"], "what its last whole stop has kept can be gone back to"
    assert pool.is_dirty(VOLUME), "nothing is given up unasked"
    act, shown = REPLACE[do]
    act(pool, tmp_path)
    monkeypatch.undo()
    assert not pool.is_dirty(VOLUME) and not top.exists() and pool.revisions(VOLUME)[:2] == ["1", "2"]
    assert shows(pool.start(VOLUME), shown)


@pytest.mark.parametrize(("damage", "why"), SESSION, ids=lambda value: getattr(value, "__name__", None))
def test_a_damaged_session_bars_nothing_else(pool: ImagePool, monkeypatch: pytest.MonkeyPatch, damage: Damage, why: str) -> None:
    """Its size can be set, the volume can be shown, cloned and exported as it was before, and removed."""
    pool.start(VOLUME)
    damage(image(pool, 4), monkeypatch)
    assert pool.usage(VOLUME) > 0 and "/data.4." in pool.path(VOLUME)
    pool.resize(VOLUME, VOLUME.size + MIB)
    assert pool.size(VOLUME) == VOLUME.size + MIB
    pool.clone(COPY, VOLUME)
    assert shows(pool.start(COPY), 2) and exported(pool, VOLUME)[:4096] == b"\2" * 4096
    pool.remove(VOLUME)
    assert not Path(pool.folder, "appvms/mail").exists()


@pytest.mark.parametrize(("damage", "why"), DAMAGES, ids=lambda value: getattr(value, "__name__", None))
def test_a_damaged_commit_is_named_with_what_is_whole(
    pool: ImagePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage, why: str,
) -> None:
    broken = image(pool, 3)
    damage(broken, monkeypatch)
    sentence = f"^volume appvms/mail/data is damaged: image {broken.name}: .*{why}"
    uses: tuple[Callable[[Any], object], ...] = (pool.start, pool.export_begin, lambda volume: pool.clone(COPY, volume))
    for use in uses:
        with pytest.raises(DamagedImage, match=sentence) as caught:
            use(VOLUME)
        assert caught.value.hint == "qvm-volume revert mail:data 2 goes back to revision 2, which is whole."
    assert not pool.is_dirty(VOLUME) and pool.revisions(VOLUME) == ["1", "2"] and pool.usage(VOLUME) > 0
    pool.resize(VOLUME, VOLUME.size + MIB)
    pool.revert(VOLUME, "2")
    assert shows(pool.start(VOLUME), 1)
    pool.stop(VOLUME)
    with pytest.raises(DamagedImage, match=sentence):
        pool.revert(VOLUME, "3")


def test_where_nothing_is_whole_import_and_clear_are_named(pool: ImagePool) -> None:
    for number in (1, 2, 3):
        image(pool, number).unlink()
    with pytest.raises(DamagedImage) as caught:
        pool.start(VOLUME)
    assert "qvm-volume import mail:data FILE" in caught.value.hint and "qvm-volume clear mail:data" in caught.value.hint
    pool.clear(VOLUME)
    assert shows(pool.start(VOLUME), 0)


def test_a_damaged_session_that_a_process_has_open_is_not_given_up(pool: ImagePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloison.storage.base.HELD", 0.0)
    pool.start(VOLUME)
    with image(pool, 4).open("r+b") as held:
        held.truncate(0)
        for use in (pool.revert, pool.clear):
            with pytest.raises(PoolError, match="a process still has its image open"):
                use(VOLUME)
    assert pool.is_dirty(VOLUME)
    pool.revert(VOLUME)
    assert shows(pool.start(VOLUME), 2)


def test_a_session_that_is_whole_is_in_use(pool: ImagePool) -> None:
    pool.start(VOLUME)
    assert pool.revisions(VOLUME) == ["1", "2"]
    for use in (pool.revert, pool.clear):
        with pytest.raises(StorageError, match="it is in use"):
            use(VOLUME)


def test_records_of_an_earlier_version_know_no_lengths(pool: ImagePool) -> None:
    record = Path(pool.folder, "appvms/mail/data.json")
    lines = record.read_text().split("\n")
    record.write_text("\n".join(line for line in lines if '"length"' not in line).replace(",\n  }", "\n  }"))
    assert '"length"' not in record.read_text() and shows(pool.start(VOLUME), 2)
