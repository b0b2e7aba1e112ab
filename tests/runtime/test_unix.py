"""Unix sockets in deep folders, and those of other users."""
from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloison.runtime import inotify, unix


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder whose name alone is longer than a socket address."""
    folder = tmp_path / ("d" * 200) / "e"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("blocking", [True, False])
def test_listen_and_connect_in_a_deep_folder(deep: Path, blocking: bool) -> None:
    path = str(deep / "socket")
    before = len(os.listdir("/proc/self/fd"))
    with unix.listen(path, 1) as listener:
        assert os.listdir(deep) == ["socket"]
        with unix.connect(path, blocking=blocking, own=True) as client:
            stream, _ = listener.accept()
            with stream:
                client.sendall(b"hello")
                assert stream.recv(10) == b"hello"
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_path_appears_when_it_can_be_connected_to_and_for_its_user_alone(tmp_path: Path) -> None:
    path, news = str(tmp_path / "socket"), inotify.Watch(str(tmp_path), inotify.MOVED_TO)
    for _ in range(2):                      # the second replaces the first
        with unix.listen(path, 1) as listener:
            assert news.clear()
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600 and not listener.getblocking()
            unix.connect(path).close()
    news.close()


def test_what_one_left_that_was_killed_goes_with_the_next(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / ".socket.new"))
        with unix.listen(str(tmp_path / "socket"), 1):
            assert os.listdir(tmp_path) == ["socket"]


def test_a_listener_that_can_t_be_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "socket").mkdir()
    for name in ("socket", "missing/socket"):
        with pytest.raises(OSError):
            unix.listen(str(tmp_path / name), 1)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("length", [106, 107, 108])
def test_addresses_around_the_limit(length: int) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        below = os.path.join(folder, "x" * (length - len(folder) - len("//name")))
        os.mkdir(below)
        path = os.path.join(below, "name")
        with unix.address(path) as there:
            assert (there == path) == (length < 108)
            listener.bind(there)
        listener.listen(1)
        unix.connect(path).close()


def test_nothing_there_is_told_as_ever(deep: Path) -> None:
    for path in (deep / "missing", deep / "no-folder" / "missing", Path("/tmp/cloison-no-such-socket")):
        with pytest.raises(FileNotFoundError):
            unix.connect(str(path))


LISTENER = """
import os, socket, sys
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
else:       # an ordinary user has no other user's processes to offer
    os.execvp("unshare", ["unshare", "--user", "--map-auto", "--setuid=1", sys.executable, "-c", sys.argv[2], sys.argv[1]])
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen(1)
print("listens", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def strange() -> Iterator[str]:
    """A socket in a folder open to all, on which another user listens."""
    with tempfile.TemporaryDirectory(prefix="cloison-") as folder:
        os.chmod(folder, 0o777)                      # noqa: S103 as /tmp is
        path = os.path.join(folder, "qubesd.sock")
        body = LISTENER[LISTENER.index("listener ="):]
        with subprocess.Popen([sys.executable, "-c", LISTENER, path, "import os,socket,sys\n" + body],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline() == b"listens\n"
            yield path
            process.stdin.close()


def test_another_users_socket_is_not_taken_for_ours(strange: str) -> None:
    """Without XDG_RUNTIME_DIR the sockets lie below /tmp, where anybody may be first."""
    unix.connect(strange).close()
    with pytest.raises(PermissionError, match="another user listens there"):
        unix.connect(strange, own=True)
