"""Atomic writes: the old content or the new one after a fault at any step, and nothing left over."""
from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cloison.runtime import files


@pytest.mark.parametrize("data", [b"", b"x", b"y" * 100_000])
def test_new_and_replaced(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    files.write_atomic(str(path), data)
    files.write_atomic(str(path), data + b"!", mode=0o640)
    assert path.read_bytes() == data + b"!" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_private_unless_said_otherwise(tmp_path: Path) -> None:
    files.write_atomic(str(tmp_path / "file"), b"secret")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("old")
    (tmp_path / "file").symlink_to(tmp_path / "precious")
    files.write_atomic(str(tmp_path / "file"), b"new")
    assert (tmp_path / "precious").read_text() == "old" and not (tmp_path / "file").is_symlink()


def test_disk_full_leaves_the_old_content(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(_with_limit(str(tmp_path)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def _with_limit(folder: str) -> int:
    """In a child: files of at most 100 bytes can be written. 0 when the write failed as a full disk does."""
    import resource
    import signal

    files.write_atomic(f"{folder}/file", b"old")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        files.write_atomic(f"{folder}/file", bytes(5000))
    except OSError as error:
        return 0 if error.errno == errno.EFBIG else 1
    return 2


def test_target_that_can_not_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_atomic(str(tmp_path / "folder"), b"x")
    assert os.listdir(tmp_path) == ["folder"]


def test_rename(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    files.rename(str(tmp_path / "a"), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["b"]


def test_a_lock_is_one_processs_until_it_is_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = files.try_lock(path)
    assert first is not None and not os.get_inheritable(first)
    before = len(os.listdir("/proc/self/fd"))
    assert files.try_lock(path) is None
    assert len(os.listdir("/proc/self/fd")) == before, "who is refused keeps nothing"
    os.close(first)
    again = files.try_lock(path)
    assert again is not None
    os.close(again)
    with pytest.raises(FileNotFoundError):
        files.try_lock(str(tmp_path / "missing" / "lock"))


def test_content_then_name_then_folder_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order, whatever a power cut leaves is one of both files, whole."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        steps.append("folder" if os.path.isdir(path) else os.path.basename(path).split(".")[-1])
        if os.path.isfile(path):
            assert Path(path).read_bytes() == b"new", "nothing of it waits in this process"
        fsync(fd)

    def renamed(src: str, dst: str) -> None:
        steps.append("rename")
        rename(src, dst)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "rename", renamed)
    files.write_atomic(str(tmp_path / "file"), b"new")
    assert steps == ["tmp", "rename", "folder"]
