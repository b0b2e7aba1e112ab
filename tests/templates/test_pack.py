"""Tree to image: what is taken out, what the file system is, read back with the real tools."""
from __future__ import annotations

import json
import os
import re
import stat
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


def test_what_is_written_and_what_is_left_is_everybodys_to_read(tree: Path) -> None:
    (tree / "etc/ssh/sshd_config").write_text("kept")
    (tree / "var/lib/systemd/random-seed-of-mine").write_text("x")
    (tree / "var/lib/systemd/linger").write_text("kept")
    umask = os.umask(0o077)
    try:
        pack.finish(str(tree), "deb x\n")
    finally:
        os.umask(umask)
    written = {"etc/resolv.conf": "", "etc/machine-id": "", "etc/hostname": "localhost\n", "etc/apt/sources.list": "deb x\n"}
    assert {name: (tree / name).read_text() for name in written} == written
    assert "127.0.0.1\tlocalhost\n" in (tree / "etc/hosts").read_text()
    assert (tree / "etc/fstab").read_text().startswith("#") and (tree / "etc/fstab").read_text().count("\n") == 1
    for name in (*written, "etc/hosts", "etc/fstab"):
        assert stat.S_IMODE((tree / name).stat().st_mode) == 0o644, name
    assert os.listdir(tree / "etc/apt/sources.list.d") == []
    assert os.listdir(tree / "etc/ssh") == ["sshd_config"] and os.listdir(tree / "var/lib/systemd") == ["linger"]


def test_what_is_emptied_is_empty_and_logs_keep_their_folders(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder/file").write_text("mine")
    for folder in ("var/lib/apt/lists", "var/cache/apt", "var/log", "dev", "tmp", "run"):
        (tree / folder / "deep/er").mkdir(parents=True)
        (tree / folder / "deep/file").write_text(HOSTS)
        (tree / folder / "deep/away").symlink_to(outside / "folder")
        (tree / folder / "away").symlink_to(outside / "folder/file")
    pack.finish(str(tree), "")
    for folder in ("var/lib/apt/lists", "var/cache/apt", "dev", "tmp", "run"):
        assert os.listdir(tree / folder) == [], folder
    assert sorted(str(path.relative_to(tree / "var/log")) for path in (tree / "var/log").rglob("*")) == ["apt", "deep", "deep/er"]
    assert (outside / "folder/file").read_text() == "mine"


def test_a_tree_that_lacks_most_is_packed_too(tmp_path: Path) -> None:
    (tmp_path / "tree/etc/apt").mkdir(parents=True)
    pack.finish(str(tmp_path / "tree"), "")
    assert (tmp_path / "tree/etc/machine-id").read_text() == ""


def test_the_image_is_on_disk_when_it_is_done(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = subprocess.run
    monkeypatch.setattr(pack.subprocess, "run", lambda argv, **named: (order.append(argv[0]), real(argv, **named))[1])
    monkeypatch.setattr(pack.os, "fsync", lambda fd: order.append(os.readlink(f"/proc/self/fd/{fd}")))
    before = len(os.listdir("/proc/self/fd"))
    pack.make_image(str(tree), str(tmp_path / "root.img"), SIZE)
    assert order == ["mke2fs", str(tmp_path / "root.img")]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_tree_that_can_not_be_packed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        pack.make_image(str(tmp_path / "nowhere"), str(tmp_path / "root.img"), SIZE)


def test_the_program_finishes_tells_and_packs(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, said, image = tmp_path / "sources.list", tmp_path / "offers.json", tmp_path / "root.img"
    sources.write_text("deb http://x.example/ s main\n")
    monkeypatch.setattr(pack.offers, "of_tree", lambda of: {"tree": of, "id": (tree / "etc/machine-id").read_text()})
    assert pack.main([str(tree), str(image), str(SIZE), str(sources), str(said)]) == 0
    assert json.loads(said.read_text()) == {"tree": str(tree), "id": ""}
    assert image.stat().st_size == SIZE
    kept = subprocess.run(["/sbin/debugfs", "-R", "cat /etc/apt/sources.list", str(image)], check=True, capture_output=True).stdout
    assert kept == b"deb http://x.example/ s main\n"
    with pytest.raises(FileExistsError):
        pack.main([str(tree), str(tmp_path / "other.img"), str(SIZE), str(sources), str(said)])
    assert not (tmp_path / "other.img").exists()


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
