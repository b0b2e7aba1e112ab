"""What services complain of, in the log: one record a line, harmless, and never waited for."""
from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloison.qrexec.stderr_log import MAX_LINE, Log


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        server.setblocking(False)
        yield server


def records(server: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(server.recv(4096))
    except BlockingIOError:
        return found


def test_lines_and_the_rest_at_the_end(journal: socket.socket) -> None:
    log = Log("test.S+a-work", journal.getsockname())
    log.write(b"one\ntw")
    log.write(b"o\n\nthree")
    assert records(journal) == [b"<13>test.S+a-work: one", b"<13>test.S+a-work: two"]
    log.write(b"")
    assert records(journal) == [b"<13>test.S+a-work: three"]


def test_a_line_without_end_is_cut(journal: socket.socket) -> None:
    log = Log("s", journal.getsockname())
    log.write(b"x" * (MAX_LINE + 10))
    assert records(journal) == [b"<13>s: " + b"x" * MAX_LINE]
    log.write(b"")


@given(st.text(max_size=300), st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_qsb_087_nothing_but_printable_ascii_reaches_the_log(journal: socket.socket, tag: str, data: bytes) -> None:
    log = Log(tag, journal.getsockname())
    log.write(data)
    log.write(b"")
    for record in records(journal):
        assert record.startswith(b"<13>") and all(0x20 <= byte < 0x7F for byte in record)


def test_a_log_that_is_not_there_or_full_costs_lines_only(tmp_path: Path, journal: socket.socket) -> None:
    absent = Log("s", str(tmp_path / "none"))
    absent.write(b"lost\n")
    absent.write(b"")
    log = Log("s", journal.getsockname())
    for _ in range(1000):
        log.write(b"more than it takes\n")
    assert 1 <= len(records(journal)) < 1000
    log.write(b"")
