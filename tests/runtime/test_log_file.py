"""A log of bounded size: many writers, no record lost or mixed at a rotation, and no failure that reaches the writer."""
from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.runtime import log_file
from cloison.runtime.log_file import LogFile


def test_record_that_would_follow_a_full_file_begins_another(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(str(path), max_size=30)
    for number in range(4):
        assert log.write(b"0123456789 %d\n" % number) is None
    assert path.read_bytes() == b"0123456789 3\n"
    assert (tmp_path / "a.log.1").read_bytes() == b"0123456789 0\n0123456789 1\n0123456789 2\n"
    assert path.stat().st_mode & 0o777 == 0o600
    log.close()
    log.write(b"again\n")
    assert path.read_bytes().endswith(b"again\n")
    log.close()


def test_a_file_of_just_its_size_is_full(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "a.log"), max_size=5)
    for record in (b"123\n", b"\n", b"next\n"):
        log.write(record)
    log.close()
    assert ((tmp_path / "a.log.1").read_bytes(), (tmp_path / "a.log").read_bytes()) == (b"123\n\n", b"next\n")


def test_size_stays_bounded_whatever_is_written(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "a.log"), max_size=1000)
    for _ in range(500):
        log.write(b"x" * 99 + b"\n")
    log.close()
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 2 * 1100
    assert sorted(os.listdir(tmp_path)) == ["a.log", "a.log.1"]


MANY = """
import sys
from cloison.runtime.log_file import LogFile
log = LogFile(sys.argv[1], max_size=20_000)
for number in range(200):
    log.write(f"{sys.argv[2]} {number}\\n".encode())
log.close()
"""


def test_many_processes_lose_no_record(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path / "a.log"), str(who)]) for who in range(3)]
    for writer in writers:
        assert writer.wait(PATIENCE) == 0
    lines = b"".join(each.read_bytes() for each in tmp_path.iterdir()).splitlines()
    assert sorted(lines) == sorted(b"%d %d" % (who, number) for who in range(3) for number in range(200))


def test_who_comes_second_leaves_the_rotation_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(str(path), max_size=1)
    log.write(b"first\n")
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        log.write(b"second\n")
    assert path.read_bytes() == b"first\nsecond\n" and not (tmp_path / "a.log.1").exists()
    log.close()


def test_what_another_has_rotated_just_now_is_not_rotated_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its size and the lock; the file under the name is the other's new one, and the full one must stay."""
    path = tmp_path / "a.log"
    log = LogFile(str(path), max_size=1)
    log.write(b"full\n")
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        os.rename(path, tmp_path / "a.log.1")
        path.write_bytes(b"the other's\n")
        flock(fd, operation)

    monkeypatch.setattr(log_file.fcntl, "flock", late)
    assert log.write(b"ours\n") is None
    assert (tmp_path / "a.log.1").read_bytes() == b"full\n" and path.read_bytes() == b"the other's\nours\n"
    log.close()


def test_renamed_by_another_it_follows_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(str(path))
    log.write(b"old\n")
    os.rename(path, tmp_path / "moved")
    log.write(b"new\n")
    assert path.read_bytes() == b"new\n" and (tmp_path / "moved").read_bytes() == b"old\n"
    log.close()


def test_failure_is_an_answer_and_no_exception(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "missing" / "a.log"))
    error = log.write(b"x\n")
    assert error is not None and error.errno == errno.ENOENT
    os.mkdir(tmp_path / "missing")
    assert log.write(b"y\n") is None, "and the next one is written when it can be"
    log.close()


def test_link_is_not_followed(tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / "a.log")
    error = LogFile(str(tmp_path / "a.log")).write(b"x\n")
    assert error is not None and error.errno == errno.ELOOP


def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "a.log"))
    log.write(b"x\n")
    with open("/dev/full", "wb") as full, monkeypatch.context() as patched:
        patched.setattr(log, "_fd", full.fileno())
        error = log.write(b"y\n")
    assert error is not None and error.errno == errno.ENOSPC
    log.close()


PROGRAM = """
import os, sys
from cloison.runtime.log_file import LogFile
log = LogFile(sys.argv[1], max_size=10, stdio=True)
log.write(b"begins here\\n")
os.write(2, b"raw error\\n")
log.write(b"rotated by now\\n")
os.write(1, b"raw output\\n")
"""


def test_what_the_process_writes_by_itself_goes_along(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, check=True, timeout=30)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert (tmp_path / "a.log.1").read_bytes() == b"begins here\nraw error\n"
    assert path.read_bytes() == b"rotated by now\nraw output\n"


def test_removed_with_its_predecessor(tmp_path: Path) -> None:
    for name in ("a.log", "a.log.1", "b.log"):
        (tmp_path / name).touch()
    log_file.remove(str(tmp_path / "a.log"))
    log_file.remove(str(tmp_path / "a.log"))
    assert os.listdir(tmp_path) == ["b.log"]


def test_swept_are_those_of_nobody(tmp_path: Path) -> None:
    for name in ("work.log", "work.log.1", "gone.log", "gone.log.1", "disp1.log.1"):
        (tmp_path / name).touch()
    log_file.sweep(str(tmp_path), {"work": 1})
    assert sorted(os.listdir(tmp_path)) == ["work.log", "work.log.1"]
    log_file.sweep(str(tmp_path / "missing"), {})
