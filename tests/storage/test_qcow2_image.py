"""Images written by us are images to QEMU's own tools."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.contracts.pool import MIB, qemu_io

from cloison.storage.base import MAX_SIZE, PoolError
from cloison.storage.qcow2_image import checked_header, create_overlay, create_overlay_fd, empty_image, grow
from cloison.wire.warden import Layer


def check(path: Path) -> None:
    done = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "No errors were found" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("size", [1, 512, 513, 65536, MIB, (512 << 20) + 512, 2 << 30, 10 << 30, MAX_SIZE])
def test_qemu_accepts_an_empty_image(tmp_path: Path, size: int) -> None:
    path = tmp_path / "image"
    create_overlay(str(path), size)
    check(path)
    whole = -(-size // 512) * 512
    last = max(0, whole - 4096)
    length = min(4096, whole)
    qemu_io((Layer(str(path), "qcow2"),), f"write -P 1 {last} {length}", f"read -P 1 {last} {length}", "flush")
    check(path)
    assert path.stat().st_blocks * 512 <= 6 * 65536 and path.stat().st_mode & 0o777 == 0o600


def test_an_explicit_chain_reads_through_and_writes_on_top(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"\x07" * MIB)
    middle, top = tmp_path / "middle", tmp_path / "top"
    for path in (middle, top):
        create_overlay(str(path), 2 * MIB)
    chain = (Layer(str(base), "raw"), Layer(str(middle), "qcow2"), Layer(str(top), "qcow2"))
    qemu_io(chain[:2], "write -P 8 64k 64k", "write -z 256k 64k", "flush")
    qemu_io(chain, "write -P 9 128k 64k", "flush")
    reads = [
        "read -P 7 0 64k", "read -P 8 64k 64k", "read -P 9 128k 64k", "read -P 7 192k 64k", "read -P 0 256k 64k", "read -P 0 1M 1M",
    ]
    assert "failed" not in qemu_io(chain, *reads, read_only=True)
    assert base.read_bytes() == b"\x07" * MIB
    for path in (middle, top):
        check(path)


def test_an_unnamed_file(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    create_overlay_fd(fd, MIB)
    path = f"/proc/{os.getpid()}/fd/{fd}"
    assert "wrote 4096" in qemu_io((Layer(path, "qcow2"),), "write -P 1 0 4k")
    assert checked_header(fd) == MIB
    os.close(fd)


@pytest.mark.parametrize("size", [-1, 0, MAX_SIZE + 1])
def test_sizes_out_of_range(tmp_path: Path, size: int) -> None:
    with pytest.raises(PoolError):
        create_overlay(str(tmp_path / "image"), size)
    assert not (tmp_path / "image").exists()


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        create_overlay(str(path), MIB)
    assert path.read_bytes() == b"precious"


def test_growing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    create_overlay(str(path), MIB)
    layers = (Layer(str(path), "qcow2"),)
    qemu_io(layers, "write -P 5 0 4k", "flush")
    with open(path, "r+b") as file:
        grow(file.fileno(), MAX_SIZE)
        grow(file.fileno(), MIB)
        assert checked_header(file.fileno()) == MAX_SIZE
    assert "failed" not in qemu_io(layers, "read -P 5 0 4k", f"write -P 6 {MAX_SIZE - 4096} 4k")
    check(path)


def test_the_header_of_every_truncation_is_refused(tmp_path: Path) -> None:
    regions, _ = empty_image(MIB)
    header = regions[0].data
    path = tmp_path / "image"
    for length in range(len(header)):
        path.write_bytes(header[:length])
        with open(path, "rb") as file, pytest.raises(PoolError):
            checked_header(file.fileno())


@pytest.mark.parametrize(("offset", "value"), [
    (0, b"XXXX"), (4, b"\0\0\0\2"), (8, b"\0\0\0\0\0\0\1\0"), (16, b"\0\0\0\x09"), (20, b"\0\0\0\x09"), (24, b"\0" * 8),
    (24, b"\xff" * 8), (32, b"\0\0\0\1"), (32, b"\0\0\0\2"),
    (60, b"\0\0\0\1"), (79, b"\2"), (79, b"\4"), (79, b"\x08"), (79, b"\x10"), (72, b"\x80"),
    (36, b"\0\0\0\0"), (40, b"\0" * 8), (46, b"\x01"),
])
def test_a_header_that_is_not_one_of_ours_is_refused(tmp_path: Path, offset: int, value: bytes) -> None:
    path = tmp_path / "image"
    create_overlay(str(path), MIB)
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), value, offset)
        with pytest.raises(PoolError, match="damaged disk image: "):
            checked_header(file.fileno())
