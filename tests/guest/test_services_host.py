"""Services that change this machine, with a machine that writes down what it is asked: clocks and disks."""
from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

import pytest

from cloison.errors import PeerError
from cloison.guest import volumes
from cloison.guest.rpc import backup, log, resize_disk, set_date_time, stdin
from cloison.guest.tools import sync_clock
from cloison.wire import clock

NOW = 1_800_000_000_000_000_000
NEAR = 2_000_000_000


@pytest.fixture
def was_set(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(time, "time_ns", lambda: NOW)
    monkeypatch.setattr(time, "clock_settime_ns", lambda *words: done.append(words))
    return done


@pytest.mark.parametrize(("off", "sets"), [
    (0, False), (NEAR, False), (-NEAR, False), (NEAR + 1, True), (-NEAR - 1, True), (10**18, True),
])
def test_a_clock_is_set_to_what_is_said_unless_it_is_near(
    monkeypatch: pytest.MonkeyPatch, was_set: list[tuple[int, int]], off: int, sets: bool,
) -> None:
    said = clock.encode(NOW + off, nanoseconds=True).strip()
    monkeypatch.setattr(set_date_time, "read_line", lambda limit: said if limit >= len(said) else b"")
    assert set_date_time.main(["qubes.SetDateTime"]) == 0
    assert was_set == ([(time.CLOCK_REALTIME, NOW + off)] if sets else [])


def test_a_clock_that_can_not_be_set_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no(*_: int) -> None:
        raise PermissionError(1, "not allowed")

    monkeypatch.setattr(time, "clock_settime_ns", no)
    monkeypatch.setattr(set_date_time, "read_line", lambda _: clock.encode(NOW, nanoseconds=True).strip())
    assert set_date_time.main(["qubes.SetDateTime"]) == 1
    assert "not allowed" in capsys.readouterr().err


class Call:
    """A call of qubes.GetDate whose other end says that, in pieces, and ends so."""

    def __init__(self, said: bytes, status: int) -> None:
        self.said, self.status, self.socket, self.done = said, status, self, list[str]()

    def end_input(self) -> None:
        self.done.append("end of input")

    def recv(self, size: int) -> bytes:
        piece, self.said = self.said[:min(size, 7)], self.said[min(size, 7):]
        return piece

    def wait(self) -> int:
        return self.status


@pytest.mark.parametrize(("status", "more", "sets"), [(0, b"", True), (126, b"", False), (1, b"", False), (0, b"x" * 1000, False)])
def test_a_qube_takes_the_time_of_a_call_that_went_well(
    monkeypatch: pytest.MonkeyPatch, was_set: list[tuple[int, int]], status: int, more: bytes, sets: bool,
) -> None:
    asked: list[tuple[str, str]] = []
    call = Call(clock.encode(NOW + 5, nanoseconds=True) + more, status)
    monkeypatch.setattr(sync_clock, "Outgoing", lambda *words: asked.append(words) or call)
    if more:
        with pytest.raises(SystemExit):
            sync_clock.main(["qvm-sync-clock"])
        assert len(call.said) > 900, "no more of it is read than a time has"
    else:
        assert sync_clock.main(["qvm-sync-clock"]) == status
    assert asked == [("@default", "qubes.GetDate+nanoseconds")] and call.done == ["end of input"]
    assert was_set == ([(time.CLOCK_REALTIME, NOW + 5)] if sets else [])


def test_a_time_is_taken_by_nobody_who_gives_words(was_set: list[tuple[int, int]]) -> None:
    with pytest.raises(SystemExit):
        sync_clock.main(["qvm-sync-clock", "x"])
    assert was_set == []


@pytest.mark.parametrize(("lines", "sizes", "grown"), [
    ((b"private", b"100"), (99, 100, 101), [False, True, True]), ((b"root", b""), (0, 5), [True, True]),
])
def test_a_file_system_follows_when_the_kernel_knows_the_new_size(
    monkeypatch: pytest.MonkeyPatch, lines: tuple[bytes, ...], sizes: tuple[int, ...], grown: list[bool],
) -> None:
    said, seen, became = list(lines), list[bool](), list[tuple[str, list[str]]]()
    monkeypatch.setattr(resize_disk, "read_line", lambda _: said.pop(0))
    monkeypatch.setattr(volumes, "_devices", {"private": "/dev/vdb", "root": "/dev/vda"})
    monkeypatch.setattr(volumes, "await_size", lambda disk, fits: seen.extend(fits(size) for size in sizes) or True)
    monkeypatch.setattr(os, "execv", lambda path, argv: became.append((path, argv)))
    resize_disk.main(["qubes.ResizeDisk"])
    disk = "/dev/vda" if lines[0] == b"root" else "/dev/vdb"
    assert seen == grown and became == [("/usr/sbin/resize2fs", ["/usr/sbin/resize2fs", "-f", disk])]


def test_a_disk_that_does_not_grow_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = [b"private", b"100"]
    monkeypatch.setattr(resize_disk, "read_line", lambda _: said.pop(0))
    monkeypatch.setattr(volumes, "_devices", {"private": "/dev/vdb"})
    monkeypatch.setattr(volumes, "await_size", lambda *_: False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it was grown"))
    with pytest.raises(SystemExit):
        resize_disk.main(["qubes.ResizeDisk"])
    assert "has not grown to 100 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(("leaves", "status"), [(False, 0), (True, 1)])
def test_lines_are_logged_under_the_name_of_who_sent_them(monkeypatch: pytest.MonkeyPatch, leaves: bool, status: int) -> None:
    done: list[tuple[object, ...]] = []

    def serve(*words: object) -> None:
        done.append(words)
        if leaves:
            raise BrokenPipeError

    monkeypatch.setattr(log.syslog, "openlog", lambda *words: done.append(words))
    monkeypatch.setattr(log, "serve", serve)
    monkeypatch.setenv("QREXEC_REMOTE_DOMAIN", "work")
    assert log.main(["qubes.Log"]) == status
    assert done == [("qubes.Log-work", log.syslog.LOG_PID, log.syslog.LOG_USER), (0, 1, log.syslog.syslog)]


# -- backups: what is not whole is no success --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 5])
@pytest.mark.parametrize("by_command", [False, True])
def test_a_restore_ends_as_its_sending_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, by_command: bool) -> None:
    sent: list[tuple[object, ...]] = []

    def send(archive: IO[bytes], *words: object) -> int:
        sent.append((archive.read(), *words))
        return status

    monkeypatch.setattr(backup.restore, "send", send)
    (tmp_path / "archive").write_bytes(b"all")
    lines = [os.fsencode(f"cat {tmp_path}/archive" if by_command else f"{tmp_path}/archive"), b"a  b/c "]
    monkeypatch.setattr(backup, "read_line", lambda _: lines.pop(0))
    assert backup.main_restore(["qubes.Restore"]) == status
    assert sent == [(b"all", [b"a", b"b/c"], 1, 0)]


@pytest.mark.parametrize(("command", "status"), [
    ("true", 0), ("false", 1), ("sh -c 'exit 7'", 7), ("no-such-program", 1), ("'", 1), ("", 1),
])
def test_a_backup_ends_as_its_command_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, status: int,
) -> None:
    monkeypatch.setattr(backup, "read_line", lambda _: command.encode())
    assert backup.main_backup(["qubes.Backup"]) == status
    assert bool(capsys.readouterr().err) is (command in ("no-such-program", "'", ""))


def test_a_backup_in_a_folder_is_on_disk_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(backup, "read_line", lambda _: os.fsencode(tmp_path))
    monkeypatch.setattr(backup, "copy", lambda source, sink: steps.append(f"copy from {source}") or os.write(sink, b"all"))
    monkeypatch.setattr(backup.os, "fsync", lambda fd: steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))[:12]))
    monkeypatch.setattr(backup, "fsync_dir", steps.append)
    before = len(os.listdir("/proc/self/fd"))
    assert backup.main_backup(["qubes.Backup"]) == 0
    assert steps == ["copy from 0", "qubes-backup", str(tmp_path)] and len(os.listdir("/proc/self/fd")) == before
    [made] = list(tmp_path.iterdir())
    assert made.read_bytes() == b"all" and made.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(backup.time, "strftime", lambda _: made.name)
    assert backup.main_backup(["qubes.Backup"]) == 1, "one that is there is not overwritten"
    assert made.read_bytes() == b"all"


# -- reading within bounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "limit", "line"), [
    (b"", 0, b""), (b"\n", 0, b""), (b"abc\n", 3, b"abc"), (b"abc", 3, b"abc"), (b"abcd\n", 3, None), (b"abcd", 3, None),
])
def test_a_line_of_at_most_so_many_bytes(tmp_path: Path, data: bytes, limit: int, line: bytes | None) -> None:
    (tmp_path / "in").write_bytes(data)
    with open(tmp_path / "in", "rb", buffering=0) as file:
        if line is None:
            with pytest.raises(PeerError):
                stdin.read_line(limit, file.fileno())
        else:
            assert stdin.read_line(limit, file.fileno()) == line


def test_so_many_bytes_and_all_that_is_left() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"headbody")
    os.close(writer)
    assert stdin.read_exactly(4, reader) == b"head"
    out, sink = os.pipe()
    assert stdin.copy(reader, sink, 3) == 4
    assert os.read(out, 100) == b"body"
    with pytest.raises(PeerError, match="4 bytes were due, 0 came"):
        stdin.read_exactly(4, reader)
    assert stdin.read_exactly(0, reader) == b""
    for fd in (reader, out, sink):
        os.close(fd)
