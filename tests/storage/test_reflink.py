"""The reflink driver: the contract, on real btrfs and XFS where this machine can mount them, and with plain copies everywhere."""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contracts.pool import DATA, MIB, PRIVATE, ROOT, TEMPLATE, PoolContract, raw_file, session, write
from tests.storage import file_systems

from cloison.errors import StorageError
from cloison.storage.base import PoolError
from cloison.storage.reflink import ReflinkPool


@pytest.fixture(scope="module", params=("copies", *file_systems.available()))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of an ordinary file system, or of one whose files share blocks."""
    if request.param == "copies":
        yield tmp_path_factory.mktemp("copies")
    else:
        with file_systems.mounted(request.param) as folder:
            yield folder


@pytest.fixture
def pool(place: Path, request: pytest.FixtureRequest) -> Iterator[ReflinkPool]:
    pool = ReflinkPool("r", str(place / "pool"), check="copies" not in str(place))
    pool.setup()
    yield pool
    for folder, _, names in os.walk(pool.folder, topdown=False):
        for name in names:
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


@pytest.fixture
def tmp_path(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside the pool: what is imported must be on its file system."""
    folder = place / tmp_path_factory.mktemp("beside").name
    folder.mkdir()
    return folder


class TestReflinkPool(PoolContract):
    pass


def test_every_image_is_a_whole_raw_file(pool: ReflinkPool, tmp_path: Path) -> None:
    pool.create(DATA)
    for number in range(6):
        session(pool, DATA, number)
    source = pool.start(DATA)
    assert source.layers == () and source.top is not None and source.top.format == "raw"
    assert os.stat(source.top.path).st_size == DATA.size
    pool.create(TEMPLATE)
    assert [layer.format for layer in pool.start(ROOT).layers] == ["raw"]


def test_a_large_volume_starts_without_being_copied(pool: ReflinkPool, tmp_path: Path) -> None:
    """Shared blocks, or at the least shared holes."""
    large = replace(PRIVATE, size=2 << 30)
    pool.create(large)
    session(pool, large, 1, offset=1 << 30)
    pool.start(large)
    assert os.statvfs(pool.folder).f_bavail > 0
    assert pool.usage(large) < 64 * MIB


def test_only_raw_files_are_imported(pool: ReflinkPool, tmp_path: Path) -> None:
    path = raw_file(tmp_path, 1)
    for format in ("qcow2", "vmdk", ""):
        with pytest.raises(StorageError, match="raw files only"):
            pool.import_file(DATA, path, format=format)
    assert os.path.exists(path)


def test_a_dirty_image_left_by_a_crash_goes_on_and_grows(pool: ReflinkPool) -> None:
    pool.create(DATA)
    write(pool.start(DATA), 7)
    pool.setup()
    pool.resize(DATA, 12 * MIB)
    source = pool.start(DATA)
    assert source.top is not None and os.stat(source.top.path).st_size == 12 * MIB
    assert Path(source.top.path).read_bytes()[:1] == b"\x07"


def test_a_file_system_that_cannot_share_blocks_is_refused_clearly(tmp_path_factory: pytest.TempPathFactory) -> None:
    """/dev/shm is such a one everywhere."""
    folder = f"/dev/shm/cloison-test-{os.getpid()}"
    try:
        with pytest.raises(PoolError, match=r"can't set up pool r: .*share blocks") as caught:
            ReflinkPool("r", folder).setup()
        assert not os.path.exists(folder)
        assert "qcow2" in caught.value.hint and "btrfs" in caught.value.hint
        ReflinkPool("r", folder, check=False).setup()
        ReflinkPool("r", folder, check=False).destroy()
        assert not os.path.exists(folder)
    finally:
        if os.path.isdir(folder):
            ReflinkPool("r", folder, check=False).destroy()
