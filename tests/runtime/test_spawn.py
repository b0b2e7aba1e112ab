"""A daemon keeps nothing of whoever caused its start: no descriptor, no ignored signal, no terminal."""
from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.runtime import inotify, spawn

DAEMON = """
import os, signal, sys
print(sorted(map(int, os.listdir("/proc/self/fd")))[:-1], os.getsid(0) == os.getpid(),
      [signal.getsignal(each) is signal.SIG_IGN for each in (signal.SIGHUP, signal.SIGTERM)],
      signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)
open(sys.argv[1], "w").close()
signal.pause()
"""
BEGINS = """
import sys
from cloison.runtime.daemon import begin
begin()
import os
print(sorted(map(int, os.listdir("/proc/self/fd")))[:-1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[int, Path, int]]:
    """One that was started by somebody who holds a lock, a pipe that is read to its end, and ignores signals: its id, its log,
    and the pipe's reading end.
    """
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    reader, writer = os.pipe()
    for fd in (lock, writer):
        os.set_inheritable(fd, True)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        pid = spawn.spawn([sys.executable, "-c", DAEMON, str(tmp_path / "up")], str(tmp_path / "log"))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        signal.signal(signal.SIGTERM, before)
        os.close(lock)
        os.close(writer)
    try:
        yield pid, tmp_path / "log", reader
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def test_whoever_reads_to_the_end_or_wants_the_lock_does_not_wait_for_the_daemon(
    daemon: tuple[int, Path, int], tmp_path: Path,
) -> None:
    _, _, reader = daemon
    assert select.select([reader], [], [], PATIENCE)[0] and os.read(reader, 1) == b""
    again = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)


def test_it_has_its_three_descriptors_and_listens_to_every_signal(daemon: tuple[int, Path, int]) -> None:
    pid, log, _ = daemon
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)                    # ignored by who started it
    assert select.select([process], [], [], PATIENCE)[0]
    os.close(process)
    said = log.read_text()
    assert said in ("", "[0, 1, 2] True [False, False] set()\n")      # it may have ended before it came to speak


def test_what_it_inherits_is_named_in_its_log(daemon: tuple[int, Path, int], tmp_path: Path) -> None:
    watch = inotify.Watch(str(tmp_path), inotify.CREATE)
    if not (tmp_path / "up").exists():
        assert select.select([watch.fileno()], [], [], PATIENCE)[0]
    watch.close()
    assert daemon[1].read_text() == "[0, 1, 2] True [False, False] set()\n"


def test_a_daemon_in_the_foreground_lets_go_too(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", BEGINS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[writer],
                          env={**os.environ, "CLOISON_ROOT": str(tmp_path)}) as process:
        os.close(writer)
        assert select.select([reader], [], [], PATIENCE)[0] and os.read(reader, 1) == b""
        assert process.stdout is not None and process.stdout.readline() == b"[0, 1, 2]\n"
        process.communicate(b"")
    os.close(reader)
