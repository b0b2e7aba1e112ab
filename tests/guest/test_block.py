"""cloison.Block over a file: what is read and written, who may call it, and clients that misbehave."""
from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.guest.rpc import block
from cloison.wire.nbd import Server

SIZE = 1 << 16
GREETED = struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0)


def request(command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IHH8sQI", 0x25609513, flags, command, b"8-handle", offset, length) + data


class Served:
    """A server in a thread, and its client's end."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        path.write_bytes(bytes(range(256)) * (SIZE // 256))
        self._fd = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        self.client, self._far = socket.socketpair()
        self.client.settimeout(PATIENCE)
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._serve, args=(Server(SIZE, read_only=read_only),))
        self._thread.start()
        assert self.take(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.client.sendall(GREETED)
        assert self.take(10) == struct.pack(">QH", SIZE, 15 if read_only else 13)

    def _serve(self, server: Server) -> None:
        try:
            block.serve(self._fd, server, self._far.fileno(), self._far.fileno())
        except (PeerError, OSError) as error:
            self.error = error
        finally:
            self._far.close()

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.client.recv(size - len(data))):
            data += more
        return data

    def ask(self, message: bytes, size: int = 0) -> tuple[int, bytes]:
        self.client.sendall(message)
        magic, error, handle = struct.unpack(">II8s", self.take(16))
        assert (magic, handle) == (0x67446698, b"8-handle")
        return error, b"" if error else self.take(size)

    def end(self) -> Exception | None:
        """Idempotent."""
        self.client.close()
        self._thread.join(PATIENCE)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return self.error


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path / "disk")
    yield one
    one.end()


def test_reads_writes_and_flushes(served: Served, tmp_path: Path) -> None:
    assert served.ask(request(0, 255, 3), 3) == (0, b"\xff\0\1")
    assert served.ask(request(1, 10, 5, b"hello")) == (0, b"")
    assert served.ask(request(1, 20, 5, b"there", flags=1)) == (0, b"")
    assert served.ask(request(3)) == (0, b"")
    assert served.ask(request(0, 10, 5), 5) == (0, b"hello")
    served.client.sendall(request(2))
    assert served.client.recv(1) == b""
    assert (tmp_path / "disk").read_bytes()[20:25] == b"there"


def test_a_disk_that_has_shrunk_or_is_read_only_is_an_error_for_one_request(served: Served, tmp_path: Path) -> None:
    os.truncate(tmp_path / "disk", 100)
    assert served.ask(request(0, 90, 20)) == (5, b"")
    assert served.ask(request(0, 0, 1), 1) == (0, b"\0")


def test_a_read_only_device_is_not_written(tmp_path: Path) -> None:
    served = Served(tmp_path / "disk", read_only=True)
    assert served.ask(request(1, 0, 1, b"x")) == (1, b"")
    assert served.end() is None
    assert (tmp_path / "disk").read_bytes()[:1] == b"\0"


def test_lesson_15_garbage_ends_the_server(served: Served) -> None:
    served.client.sendall(b"\xff" * 64)
    assert served.client.recv(1) == b""
    assert isinstance(served.end(), PeerError)


def test_a_client_that_goes_in_the_middle_of_a_write_has_written_nothing(served: Served, tmp_path: Path) -> None:
    served.client.sendall(request(1, 0, 100, b"x" * 99))
    assert served.end() is None
    assert (tmp_path / "disk").read_bytes()[:1] == b"\0"


@pytest.mark.parametrize("argument", ["", "sda", "sda+x", "sda+rw", "../sda+r", "a/b+r", "sda+r\n", "x" * 13 + "+r", "SDA+r"])
def test_arguments_that_name_no_device(argument: str) -> None:
    with pytest.raises(block.NotServed, match="it takes a device"):
        block.open_device(argument)


@pytest.mark.parametrize(("argument", "why"), [("null+r", "no block device"), ("nothing-here+w", "No such file")])
def test_what_is_no_block_device_is_not_served(argument: str, why: str) -> None:
    with pytest.raises(block.NotServed, match=why):
        block.open_device(argument)


@pytest.mark.parametrize("source", ["work", "", "dom0x"])
def test_only_the_host_may_call(source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QREXEC_REMOTE_DOMAIN", source)
    assert block.main(["cloison.Block", "null+r"]) == 1
    assert "only the host" in capsys.readouterr().err
    monkeypatch.setenv("QREXEC_REMOTE_DOMAIN", "dom0")
    assert block.main(["cloison.Block", "null+r"]) == 1
    assert "no block device" in capsys.readouterr().err


@pytest.mark.parametrize("command", [0, 1, 3])           # a read, a write, a flush: one of them asks for the disk by itself
def test_whatever_was_written_is_on_disk_when_the_client_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: int,
) -> None:
    synced: list[str] = []
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    monkeypatch.setattr(block.os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    ours, theirs = socket.socketpair()
    with ours, theirs, open(tmp_path / "disk", "r+b", buffering=0) as disk:
        ours.sendall(request(command, 0, 0 if command == 3 else 512, b"x" * 512 if command == 1 else b""))
        ours.shutdown(socket.SHUT_WR)
        block.serve(disk.fileno(), Server(SIZE, read_only=False, greeted=True), theirs.fileno(), theirs.fileno())
    assert synced == [str(tmp_path / "disk")] * (2 if command == 3 else 1)
    assert (tmp_path / "disk").read_bytes()[:512] == (b"x" if command == 1 else b"\0") * 512
