"""Boot files by version."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloison.errors import StorageError
from cloison.storage.linux_kernel import KernelPool
from cloison.wire.warden import DiskSource, Kernel, Layer


@pytest.fixture
def pool(tmp_path: Path) -> KernelPool:
    for version in ("6.1.0-18", "6.9.0-1"):
        folder = tmp_path / version
        folder.mkdir()
        for name in ("vmlinuz", "initramfs", "modules.img"):
            (folder / name).write_bytes(b"x" * 512)
    return KernelPool(str(tmp_path))


def test_versions_are_the_complete_ones(pool: KernelPool, tmp_path: Path) -> None:
    (tmp_path / "6.10").mkdir()
    (tmp_path / ".6.9.0-1.tmp").mkdir()
    assert pool.versions() == ["6.1.0-18", "6.9.0-1"]
    assert KernelPool(str(tmp_path / "absent")).versions() == []


def test_versions_are_in_the_order_of_their_numbers(pool: KernelPool, tmp_path: Path) -> None:
    """The last one is the default kernel: 6.10 is newer than 6.9."""
    right = ["5.15", "6.1.0-9-cloud-amd64", "6.1.0-18", "6.1.0-56-cloud-amd64", "6.9", "6.9.0-1", "6.9.1", "6.10-rc1",
             "6.10-rc2", "6.10", "6.10.1", "6.10-1", "6.100", "new"]
    for version in right:
        if not (tmp_path / version).exists():
            shutil.copytree(tmp_path / "6.1.0-18", tmp_path / version)
    assert pool.versions() == right


def test_kernel_and_its_modules(pool: KernelPool, tmp_path: Path) -> None:
    folder = f"{tmp_path}/6.9.0-1"
    assert pool.kernel("6.9.0-1") == Kernel("6.9.0-1", f"{folder}/vmlinuz", f"{folder}/initramfs", f"{folder}/modules.img")
    assert pool.modules("6.9.0-1") == DiskSource("modules", 512, (Layer(f"{folder}/modules.img", "raw"),), writable=False)


@pytest.mark.parametrize("missing", ["vmlinuz", "initramfs", "modules.img"])
def test_a_missing_file_is_named(pool: KernelPool, tmp_path: Path, missing: str) -> None:
    (tmp_path / "6.9.0-1" / missing).unlink()
    with pytest.raises(StorageError, match=missing) as caught:
        pool.kernel("6.9.0-1")
    assert caught.value.hint


@pytest.mark.parametrize("version", ["", ".", "..", "../6.9.0-1", "6.9.0-1/", "a b", "6\n", "x" * 65, "absent"])
def test_bad_versions(pool: KernelPool, version: str) -> None:
    for use in (pool.kernel, pool.modules, pool.default_kernelopts):
        with pytest.raises(StorageError):
            use(version)


def test_default_kernelopts(pool: KernelPool, tmp_path: Path) -> None:
    assert pool.default_kernelopts("6.9.0-1") == ""
    path = tmp_path / "6.9.0-1" / "default-kernelopts-common.txt"
    path.write_text("quiet loglevel=3\n")
    assert pool.default_kernelopts("6.9.0-1") == "quiet loglevel=3"
    for bad in ("a\nb", "x" * 5000, "é"):
        path.write_text(bad)
        with pytest.raises(StorageError, match="one line"):
            pool.default_kernelopts("6.9.0-1")
