"""A line in a log: it never fails or holds up what it tells of, and a guest can't have it said without end."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cloison
from cloison.runtime.say import MAX_RECORD, Pace

PROGRAM = """
import os, sys
from cloison.runtime.say import own_log, say, say_to
{before}
say("one \\x1b[2J")
say("x" * 100_000)
os.write(int(sys.argv[1]), b"goes on")
"""


def said(before: str = "", stderr: int | None = None) -> tuple[bytes, bytes]:
    """What it wrote to its standard error, if that is ours, and whether it went on."""
    read, write = os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM.format(before=before), str(write)], pass_fds=[write],
                              stderr=subprocess.PIPE if stderr is None else stderr, check=True, timeout=30)
        os.close(write)
        return done.stderr or b"", os.read(read, 100)
    finally:
        os.close(read)


def test_a_record_is_a_printable_line_of_bounded_length() -> None:
    text, went_on = said()
    first, second, rest = text.split(b"\n")
    assert first == rb"one \x1b[2J" and set(second) == {ord("x")} and len(second) < MAX_RECORD and not rest
    assert went_on == b"goes on"


def test_closed_standard_error_fails_nothing() -> None:
    assert said("os.close(2)")[1] == b"goes on"


def test_full_disk_fails_nothing() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert said(stderr=full)[1] == b"goes on"
    finally:
        os.close(full)


def test_pipe_that_nobody_reads_holds_up_nothing() -> None:
    read, write = os.pipe()
    try:
        assert said("for _ in range(1000): say('y' * 1000)", stderr=write)[1] == b"goes on"
    finally:
        os.close(read)
        os.close(write)


def test_reader_that_is_gone_fails_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert said(stderr=write)[1] == b"goes on"
    finally:
        os.close(write)


def test_file_as_standard_error_is_a_log_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with open(path, "ab") as file:
        said("import cloison.runtime.log_file as f\nlog = own_log()\nlog._max_size = 3000\nsay_to(log)\nsay('a' * 4000)",
             stderr=file.fileno())
    assert (tmp_path / "daemon.log.1").exists() and path.read_bytes().startswith(b"one")


@pytest.mark.parametrize("what", ["/dev/null", "pipe"])
def test_no_file_is_no_log(what: str) -> None:
    stderr = os.open("/dev/null", os.O_WRONLY) if what != "pipe" else None
    assert said("assert own_log() is None", stderr=stderr)[1] == b"goes on"
    if stderr is not None:
        os.close(stderr)


def test_pace_lets_a_burst_through_then_so_many_a_second_and_tells_what_it_left_out() -> None:
    now = [100.0]
    pace = Pace(3, 0.5, lambda: now[0])
    assert [pace.allowed() for _ in range(5)] == ["", "", "", None, None]
    now[0] += 1.9
    assert pace.allowed() is None
    now[0] += 0.1
    assert pace.allowed() == "(3 records were left out: too many at once)\n"
    now[0] += 1000
    assert [pace.allowed() for _ in range(4)] == ["", "", "", None]


PACED = "from cloison.runtime.say import Pace\nsay_to(None, Pace(1, 0.000001))"


def test_said_at_that_pace() -> None:
    assert said(PACED)[0] == b"one \\x1b[2J\n"


# They print to whoever started them, and nothing of a guest's waits for that.
MAINS = {"daemon/main.py", "warden/zygote.py"}


def test_nothing_that_serves_a_guest_prints() -> None:
    """Printing fails with a full disk, and what stood behind it is not done: such a line is for `say`, after the deed."""
    source = Path(cloison.__file__).parent
    modules = [*source.glob("warden/*.py"), *source.glob("qdb/*.py"), *source.glob("runtime/*.py"), *source.glob("daemon/*.py"),
               *source.glob("hypervisor/**/*.py"), *source.glob("qrexec/*.py")]
    assert len(modules) > 80
    printing = {str(path.relative_to(source)) for path in modules
                if re.search(r"(?<![\w.])(?<!def )print\(|sys\.std(err|out)", path.read_text())}
    assert printing - MAINS - {"qrexec/vmexec.py"} == set()
