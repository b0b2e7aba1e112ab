"""Encrypted images that we write are images to QEMU's own tools: with the secret only, and nothing readable in the file."""
from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.contracts.pool import MIB

from cloison.storage import luks
from cloison.storage.base import MAX_SIZE, PoolError
from cloison.storage.qcow2_image import Encryption, checked_header, create_overlay_fd

PATTERN = b"\xa7" * 4096


def image(path: Path, size: int = 8 * MIB) -> bytes:
    """A new encrypted one; its secret."""
    secret = luks.new_secret()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    create_overlay_fd(fd, size, Encryption(luks.new_header(secret), luks.LENGTH))
    os.close(fd)
    return secret


def qemu_io(path: Path, secret: bytes, *commands: str, backing: Path | None = None) -> subprocess.CompletedProcess[str]:
    return qemu(["qemu-io"], path, secret, [word for command in commands for word in ("-c", command)], backing)


def qemu(
    program: list[str], path: Path, secret: bytes, words: Sequence[str] = (), backing: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one of QEMU's tools on an image, opened with a secret."""
    key = path.with_suffix(".secret")
    key.write_bytes(secret)
    graph: dict[str, object] = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)},
                                "encrypt": {"format": "luks", "key-secret": "secret"}, "backing": None}
    if backing is not None:
        graph["backing"] = {"driver": "raw", "file": {"driver": "file", "filename": str(backing)}, "read-only": True}
    argv = [*program, "--object", f"secret,id=secret,file={key}", "json:" + json.dumps(graph), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("size", [512, MIB, 10 << 30, MAX_SIZE])
def test_qemu_opens_it_with_the_secret_and_reads_back_what_it_wrote(tmp_path: Path, size: int) -> None:
    secret = image(tmp_path / "image", size)
    last, length = max(0, size - 4096), min(4096, size)
    done = qemu_io(tmp_path / "image", secret, f"write -P 167 {last} {length}", "flush", f"read -P 167 {last} {length}")
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr
    checked = qemu(["qemu-img", "check"], tmp_path / "image", secret)
    assert checked.returncode == 0 and "No errors" in checked.stdout, checked.stderr


def test_what_was_written_is_not_in_the_file(tmp_path: Path) -> None:
    secret = image(tmp_path / "image")
    assert qemu_io(tmp_path / "image", secret, "write -P 167 0 1M", "flush").returncode == 0
    content = (tmp_path / "image").read_bytes()
    assert PATTERN[:16] not in content and secret not in content and bytes.fromhex(secret.decode()) not in content
    assert (tmp_path / "image").stat().st_blocks * 512 > MIB, "it was written somewhere"


@pytest.mark.parametrize("wrong", [b"0" * 64, b"", luks.new_secret()], ids=["zeros", "empty", "another"])
def test_no_other_secret_opens_it(tmp_path: Path, wrong: bytes) -> None:
    image(tmp_path / "image")
    done = qemu_io(tmp_path / "image", wrong, "read 0 512")
    assert done.returncode == 1 and "Invalid password" in done.stderr


def test_what_lies_below_shines_through_an_encrypted_overlay(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"\x07" * MIB)
    secret = image(tmp_path / "image")
    done = qemu_io(tmp_path / "image", secret, "write -P 8 64k 64k", "read -P 7 0 64k", "read -P 8 64k 64k", "read -P 0 1M 1M",
                   backing=tmp_path / "base")
    assert done.returncode == 0 and "failed" not in done.stdout
    assert (tmp_path / "base").read_bytes() == b"\x07" * MIB


def test_two_images_share_no_secret_and_no_key(tmp_path: Path) -> None:
    for name in ("one", "other"):
        secret = image(tmp_path / name)
        assert len(secret) == luks.SECRET_BYTES
        assert qemu_io(tmp_path / name, secret, "write -P 167 0 64k", "flush").returncode == 0
    one, other = ((tmp_path / name).read_bytes() for name in ("one", "other"))
    assert (tmp_path / "one.secret").read_bytes() != (tmp_path / "other.secret").read_bytes()
    data = slice(len(one) - 65536, None)            # the last cluster: what was written
    assert len(set(map(bytes, zip(one[data], other[data], strict=True)))) > 1000, "not encrypted"
    assert one[data] != other[data], "the same content in the same place looks different"


def test_an_encrypted_image_is_none_that_a_pool_takes_back(tmp_path: Path) -> None:
    image(tmp_path / "image")
    with open(tmp_path / "image", "rb") as file, pytest.raises(PoolError, match="damaged disk image"):
        checked_header(file.fileno())


def test_a_header_is_sparse_but_for_one_key_slot(tmp_path: Path) -> None:
    image(tmp_path / "image")
    assert (tmp_path / "image").stat().st_blocks * 512 <= 8 * 65536
    assert luks.LENGTH % 512 == 0
