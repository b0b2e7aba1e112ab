"""Tree to image: what is taken out, what the file system is, read back with the real tools."""
from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cloison.templates import pack

SIZE = 64 << 20
HOSTS = "private host facts"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for folder in ("etc/apt/sources.list.d", "etc/ssh", "var/lib/apt/lists/partial", "var/log/apt", "var/lib/systemd",
                   "dev", "tmp", "run"):
        (root / folder).mkdir(parents=True)
    for name in ("etc/hostname", "etc/hosts", "etc/machine-id", "var/log/apt/term.log", "etc/ssh/ssh_host_rsa_key",
                 "var/lib/systemd/random-seed", "var/lib/apt/lists/index", "etc/apt/sources.list.d/0000local.list", "tmp/x"):
        (root / name).write_text(HOSTS)
    (root / "etc/keep").write_text("kept")
    return root


def test_nothing_of_the_host_stays(tree: Path) -> None:
    pack.finish(str(tree), "deb http://x.example/ s main\n")
    assert all(HOSTS not in path.read_text() for path in tree.rglob("*") if path.is_file())
    assert (tree / "etc/machine-id").read_text() == ""
    assert (tree / "etc/apt/sources.list").read_text() == "deb http://x.example/ s main\n"
    assert (tree / "var/log/apt").is_dir()
    assert (tree / "etc/keep").read_text() == "kept"
    assert not (tree / "etc/ssh/ssh_host_rsa_key").exists()


def test_a_link_in_the_tree_does_not_lead_out(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tree / "etc/resolv.conf").symlink_to(outside)
    pack.finish(str(tree), "")
    assert outside.read_text() == "mine"
    assert not (tree / "etc/resolv.conf").is_symlink()


def test_image_is_sound_sparse_and_complete(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "root.img"
    pack.make_image(str(tree), str(image), SIZE)
    assert image.stat().st_size == SIZE
    assert image.stat().st_blocks * 512 < SIZE // 2
    subprocess.run(["/sbin/e2fsck", "-f", "-n", str(image)], check=True, capture_output=True)
    kept = subprocess.run(["/sbin/debugfs", "-R", "cat /etc/keep", str(image)], check=True, capture_output=True).stdout
    assert kept == b"kept"
    groups = subprocess.run(["/sbin/dumpe2fs", str(image)], check=True, capture_output=True, text=True).stdout
    assert groups.count("ITABLE_ZEROED") == len(re.findall(r"^Group \d", groups, re.MULTILINE))     # so no guest zeroes them later


def test_an_image_that_is_there_is_not_overwritten(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "root.img").write_text("another")
    with pytest.raises(FileExistsError):
        pack.make_image(str(tree), str(tmp_path / "root.img"), SIZE)
    assert (tmp_path / "root.img").read_text() == "another"
