"""The archive writer: its bytes, what real cpio reads in it, what it refuses."""
from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from cloison.templates import cpio

GOLDEN = (
    b"070701000000010000" b"41ED" b"00000000000000000000000200000000000000000000000000000000000000000000000000000004"
    b"00000000" b"bin\0\0\0"
    b"070701000000020000" b"81ED" b"00000000000000000000000100000000000000030000000000000000000000000000000000000005"
    b"00000000" b"init\0\0"
    b"abc\0"
    b"0707010000000000000000000000000000000000000001000000000000000000000000000000000000000000000000"
    b"0000000B00000000TRAILER!!!\0\0\0\0"
)


def test_golden_bytes() -> None:
    assert cpio.archive([cpio.directory("bin"), cpio.file("init", b"abc", executable=True)]) == GOLDEN


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 4095, 4096])
def test_real_cpio_reads_every_padding(tmp_path: Path, length: int) -> None:
    data = bytes(range(256)) * 16
    entries = [cpio.directory("d"), cpio.file("d/file", data[:length]), cpio.symlink("link", "d/file")]
    archive = cpio.archive(entries)
    assert len(archive) % 4 == 0
    subprocess.run(["cpio", "--extract", "--quiet", "--make-directories"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "d" / "file").read_bytes() == data[:length]
    assert (tmp_path / "link").readlink() == Path("d/file")


def test_same_entries_same_bytes() -> None:
    entries = [cpio.file("a", b"1"), cpio.file("b", b"2")]
    assert cpio.archive(entries) == cpio.archive(list(entries))


@pytest.mark.parametrize("name", ["", "/init", "a\0b", "x" * 4096])
def test_refused_names(name: str) -> None:
    with pytest.raises(ValueError, match="can't be a name"):
        cpio.archive([cpio.Entry(name, stat.S_IFREG)])


def test_longest_name() -> None:
    assert b"x" * 4095 + b"\0" in cpio.archive([cpio.file("x" * 4095, b"")])
