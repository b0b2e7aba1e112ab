"""The lock that tells whether anything of a qube lives: held by inheritance, let go by the kernel."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.runtime import life

UUID = "00000000-0000-4000-8000-000000000001"


def test_taken_once(tmp_path: Path) -> None:
    fd = life.take(str(tmp_path), UUID)
    with pytest.raises(BlockingIOError):
        life.take(str(tmp_path), UUID)
    os.close(fd)
    os.close(life.take(str(tmp_path), UUID))


def test_asking_whether_it_lives_leaves_nothing_behind(tmp_path: Path) -> None:
    """An open file of who asked would be a lock: the qube could never start again."""
    fd = life.take(str(tmp_path), UUID)
    before = len(os.listdir("/proc/self/fd"))
    assert life.any_lives(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)
    assert not life.any_lives(str(tmp_path))
    life.end(str(tmp_path), UUID)
    life.wait_gone(str(tmp_path), UUID)
    assert len(os.listdir("/proc/self/fd")) == before - 1
    os.close(life.take(str(tmp_path), UUID))


def test_unknown_qube_is_gone_already(tmp_path: Path) -> None:
    life.wait_gone(str(tmp_path), UUID)
    life.drop(str(tmp_path), UUID)
    assert life.known(str(tmp_path)) == []


def test_waits_for_the_last_holder_and_sees_a_kill(tmp_path: Path) -> None:
    fd = life.take(str(tmp_path), UUID)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd])
    os.close(fd)
    gone = threading.Thread(target=life.wait_gone, args=(str(tmp_path), UUID))
    gone.start()
    assert gone.is_alive() and life.known(str(tmp_path)) == [UUID]
    child.send_signal(signal.SIGKILL)
    gone.join(PATIENCE)
    assert not gone.is_alive() and child.wait() == -signal.SIGKILL
    assert child.stdin is not None
    child.stdin.close()
    life.drop(str(tmp_path), UUID)
    assert life.known(str(tmp_path)) == []


def test_ending_kills_who_holds_it_and_nobody_who_only_waits(tmp_path: Path) -> None:
    fd = life.take(str(tmp_path), UUID)
    wait = "import sys; from cloison.runtime import life; print('waits', flush=True); life.wait_gone(sys.argv[1], sys.argv[2])"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd]) as holder, \
            subprocess.Popen([sys.executable, "-c", wait, str(tmp_path), UUID], stdout=subprocess.PIPE) as waiter:
        os.close(fd)
        assert waiter.stdout is not None and waiter.stdout.readline() == b"waits\n"
        life.end(str(tmp_path), UUID)
        assert holder.wait() == -signal.SIGKILL
        assert waiter.wait() == 0
    life.drop(str(tmp_path), UUID)
    life.end(str(tmp_path), UUID)


WAITER = """
import sys
from cloison.runtime import life
lock = life.fcntl.flock
def take(fd, kind):
    lock(fd, kind)
    print("has it", flush=True)
    input()
life.fcntl.flock = take
print("waits", flush=True)
life.wait_gone(sys.argv[1], sys.argv[2])
"""


def test_who_has_just_heard_that_it_is_gone_is_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last holder dies while the processes are looked at one by one: the lock is then a waiter's, for a moment."""
    fd = life.take(str(tmp_path), UUID)
    looked, opened = [], os.pidfd_open
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd]) as holder, \
            subprocess.Popen([sys.executable, "-c", WAITER, str(tmp_path), UUID], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE) as waiter:
        os.close(fd)
        assert waiter.stdout is not None and waiter.stdout.readline() == b"waits\n"

        def look(pid: int) -> int:
            if pid == waiter.pid and not looked:
                looked.append(pid)
                assert waiter.stdout is not None and waiter.stdout.readline() == b"has it\n"
            return opened(pid)

        monkeypatch.setattr(os, "listdir", _holder_first(os.listdir, holder.pid, waiter.pid))
        monkeypatch.setattr(life.os, "pidfd_open", look)
        life.end(str(tmp_path), UUID)
        assert holder.wait() == -signal.SIGKILL and looked == [waiter.pid]
        assert waiter.communicate(b"\n")[0] == b"" and waiter.returncode == 0
    life.drop(str(tmp_path), UUID)


def _holder_first(listdir: Callable[[str], list[str]], *pids: int) -> Callable[[str], list[str]]:
    """/proc as if these were all processes."""
    return lambda path: [str(pid) for pid in pids] if path == "/proc" else listdir(path)


def test_any_of_many_lives(tmp_path: Path) -> None:
    """One is enough; a folder that is not there has none."""
    assert not life.any_lives(str(tmp_path / "none")) and not life.any_lives(str(tmp_path))
    others = [f"{UUID[:-1]}{number}" for number in (2, 3)]
    for uuid in others:
        os.close(life.take(str(tmp_path), uuid))
    assert not life.any_lives(str(tmp_path))
    fd = life.take(str(tmp_path), UUID)
    assert life.any_lives(str(tmp_path)) and sorted(life.known(str(tmp_path))) == sorted([UUID, *others])
    os.close(fd)
    (tmp_path / "qrexec.work").write_text("no lock")
    assert not life.any_lives(str(tmp_path)) and sorted(life.known(str(tmp_path))) == sorted([UUID, *others])


def test_the_end_is_not_told_before_the_killed_are_dead(tmp_path: Path) -> None:
    """Not only unlocked: what it has open is closed."""
    fd = life.take(str(tmp_path), UUID)
    holders = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd]) for _ in range(3)]
    os.close(fd)
    life.end(str(tmp_path), UUID)
    for holder in holders:
        with holder:
            assert holder.poll() == -signal.SIGKILL
    life.drop(str(tmp_path), UUID)


HOPS = """
import os, sys
print("holds", flush=True)
for _ in range(200):                   # each parent is gone, and its lock with it, before who looks comes to its child
    if os.fork():
        os._exit(0)
input()
"""


def test_ending_finds_a_holder_that_hands_the_lock_from_child_to_child(tmp_path: Path) -> None:
    """A sandbox that is being set up forks and lets go. One look at the processes can miss the child; its machine lived on."""
    fd = life.take(str(tmp_path), UUID)
    with subprocess.Popen([sys.executable, "-c", HOPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd]) as first:
        os.close(fd)
        assert first.stdout is not None and first.stdout.readline() == b"holds\n"
        ended = threading.Thread(target=life.end, args=(str(tmp_path), UUID), daemon=True)
        ended.start()
        ended.join(PATIENCE)
        assert not ended.is_alive()
    life.drop(str(tmp_path), UUID)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / f"life.{UUID}").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        life.take(str(tmp_path), UUID)
