"""Who has a file open, as the kernel counts: nothing a holder does hides it."""
from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.runtime import holders


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "private.1.qcow2"
    path.write_bytes(bytes(8192))
    return str(path)


def test_a_file_that_nobody_has_open(image: str) -> None:
    assert not holders.is_open(image)
    assert not holders.is_open(image), "asking leaves nothing behind"
    os.chmod(image, 0o400)
    assert not holders.is_open(image)


def test_no_such_file_is_open_nowhere(tmp_path: Path) -> None:
    assert not holders.is_open(str(tmp_path / "none"))


def test_a_link_is_not_followed(image: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(image)
    with pytest.raises(OSError, match="symbolic links"):
        holders.is_open(str(tmp_path / "link"))


def by_descriptor(flags: int) -> Callable[[str], Callable[[], object]]:
    def hold(path: str) -> Callable[[], object]:
        fd = os.open(path, flags)
        return lambda: os.close(fd)
    return hold


def by_mapping(path: str) -> Callable[[], object]:
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 4096).close


def on_its_way(path: str) -> Callable[[], object]:
    """In no process's table: sent through a socket and not yet received."""
    one, other = socket.socketpair()
    with open(path, "r+b") as file:
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])

    def end() -> None:
        one.close()
        other.close()
    return end


@pytest.mark.parametrize("hold", [by_descriptor(os.O_RDWR), by_descriptor(os.O_RDONLY), by_mapping, on_its_way])
def test_every_way_to_hold_it_counts(image: str, hold: Callable[[str], Callable[[], object]]) -> None:
    end = hold(image)
    assert holders.is_open(image)
    assert not holders.closed_within(image, 0)
    end()
    assert not holders.is_open(image) and holders.closed_within(image, 0)


def test_under_another_name_it_is_the_same_file(image: str) -> None:
    os.link(image, image + ".2")
    with open(image + ".2", "rb"):
        assert holders.is_open(image)


def test_a_killed_holders_file_is_waited_for(image: str) -> None:
    with open(image, "r+b") as file:
        holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
    with holder:
        assert holders.is_open(image) and holders.who(image) == [holder.pid]
        closed: list[bool] = []
        waiting = threading.Thread(target=lambda: closed.append(holders.closed_within(image, PATIENCE)))
        waiting.start()
        holder.kill()
        waiting.join(PATIENCE)
    assert closed == [True] and holders.who(image) == []


def test_whoever_opens_it_while_it_is_asked_about_is_not_harmed_and_harms_nobody(image: str) -> None:
    """The kernel tells a lease's holder by a signal, of which the usual one would end the process."""
    with open(image, "rb") as file:
        assert holders.lease(file.fileno())
        with pytest.raises(BlockingIOError):
            os.open(image, os.O_RDWR | os.O_NONBLOCK)
        assert holders.is_open(image), "who asks counts too, and for himself"
    with open(image, "r+b"):
        pass


def test_where_there_are_no_leases_processes_are_searched(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_fd: int, command: int, _argument: object = 0) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(22, "Invalid argument")
        return 0
    monkeypatch.setattr(fcntl, "fcntl", refused)
    assert not holders.is_open(image)
    with open(image, "rb") as file, \
            subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[file.fileno()]) as holder:
        assert holders.is_open(image)
        holder.kill()


def test_what_can_not_be_told_counts_as_open(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is refused, and no file can be made to see whether leases are."""
    opening = os.open

    def no_new(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "not supported")
        return opening(path, flags, mode)
    monkeypatch.setattr(holders, "lease", lambda _fd: False)
    monkeypatch.setattr(os, "open", no_new)
    assert holders.is_open(image)


def test_what_another_file_system_gives_to_nobody_says_nothing_of_this_one(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file can lie on another one than its folder: a mount of a single file."""
    monkeypatch.setattr(holders, "lease", lambda _fd: False)
    with open(image, "rb") as file, tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert os.stat(elsewhere).st_dev != os.fstat(file.fileno()).st_dev
        assert holders._without_leases(file.fileno(), image)
        assert not holders._without_leases(file.fileno(), f"{elsewhere}/{os.path.basename(image)}")


def test_only_who_has_it_open_is_ended(image: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x")
    code = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, image], stdin=pipe, stdout=pipe) as holder, \
            subprocess.Popen([sys.executable, "-c", code, str(other)], stdin=pipe, stdout=pipe) as bystander:
        for process in (holder, bystander):
            assert process.stdout is not None and process.stdout.readline() == b"open\n"
            holders.end(process.pid, image)
        assert holder.wait(PATIENCE) == -9
        bystander.communicate(b"", PATIENCE)
        assert bystander.returncode == 0
    holders.end(holder.pid, image)                  # it is gone already
