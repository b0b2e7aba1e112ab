"""The log of calls: what a line holds, what is cut, what a reader finds, and that nothing of it fails a call."""
from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from cloison.qrexec import call_log
from cloison.qrexec.call_log import MAX_TEXT, CallLog, path, recent
from cloison.runtime.paths import Paths


def test_it_lies_beside_the_other_logs(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path), str(tmp_path / "data"), str(tmp_path))
    assert path(paths) == f"{paths.log}/qrexec.log"


@pytest.mark.parametrize(("length", "kept"), [(0, 0), (1, 1), (MAX_TEXT, MAX_TEXT), (MAX_TEXT + 1, MAX_TEXT), (10**6, MAX_TEXT)])
def test_a_text_is_cut_and_says_so(tmp_path: Path, length: int, kept: int) -> None:
    log = CallLog(str(tmp_path / "log"))
    log.write(service="x" * length, count=10**300, nothing=None)
    log.close()
    (entry,) = recent(str(tmp_path / "log"))
    assert entry["service"] == "x" * kept + ("..." if length > kept else "")
    assert entry["count"] == 10**300 and entry["nothing"] is None and entry["time"] > 0


def test_qsb_087_a_line_is_one_and_plain(tmp_path: Path) -> None:
    log = CallLog(str(tmp_path / "log"))
    log.write(service="\n{}\x1b[2J\xe9\u2028")
    log.close()
    line, end = (tmp_path / "log").read_bytes().split(b"\n")
    assert end == b"" and line.isascii() and line.decode().isprintable() and json.loads(line)["service"] == "\n{}\x1b[2J\xe9\u2028"


def test_the_newest_first_from_both_files_and_what_is_no_entry_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "log"
    (tmp_path / "log.1").write_text('{"n": 1}\n{"n": 2}\n')
    file.write_text('{"n": 3}\n[]\nnot json\n1\n\n{"n": 4}\n{"n": 5, cut sh')
    assert [entry["n"] for entry in recent(str(file))] == [4, 3, 2, 1]
    file.unlink()
    assert [entry["n"] for entry in recent(str(file))] == [2, 1]
    (tmp_path / "log.1").unlink()
    assert list(recent(str(file))) == []


@pytest.mark.parametrize("tail", [18, 19, 20])
def test_a_reader_takes_so_much_and_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: int) -> None:
    monkeypatch.setattr(call_log, "_TAIL", tail)
    (tmp_path / "log").write_text('{"n": 1}\n{"n": 2}\n{"n": 3}\n')            # 9 bytes each
    assert [entry["n"] for entry in recent(str(tmp_path / "log"))] == ([3] if tail == 18 else [3, 2])


def test_it_grows_to_its_size_and_no_further(tmp_path: Path) -> None:
    log = CallLog(str(tmp_path / "log"), 2000)
    for number in range(200):
        log.write(number=number)
    log.close()
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 2 * 2000 + 200
    assert next(iter(recent(str(tmp_path / "log"))))["number"] == 199


def test_one_that_can_not_be_written_is_told_of_once_until_it_can(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    log = CallLog(str(folder / "x" / "log"))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            log.write(service="s")
        assert len(caplog.records) == 1
        (folder / "x").mkdir()
        log.write(service="s")
        assert len(caplog.records) == 1
    log.close()
    assert len(list(recent(str(folder / "x" / "log")))) == 1
