"""A file system that follows its disk: its size read from real ones, and what is no file system left alone."""
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cloison.guest.volumes import file_system_size

MIB = 1 << 20


@pytest.mark.parametrize(("size", "options"), [
    (16 * MIB, []), (16 * MIB, ["-b", "1024"]), (2048 * MIB, []), (5 << 40, ["-O", "64bit"]), (300 * MIB, ["-O", "^64bit"]),
])
def test_the_size_of_a_real_file_system(tmp_path: Path, size: int, options: list[str]) -> None:
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", *options, str(path)], check=True)
    with open(path, "rb") as file:
        file.seek(1024)
        assert file_system_size(file.read(1024)) == size


@pytest.mark.parametrize("superblock", [
    b"", bytes(1024), b"\xff" * 1023, bytes(56) + b"\x53\xef", b"\xff" * 56 + b"\x53\xef" + b"\xff" * 966,
])
def test_what_is_no_file_system_has_no_size(superblock: bytes) -> None:
    assert file_system_size(superblock) is None
