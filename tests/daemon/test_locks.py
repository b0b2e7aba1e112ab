"""One qubesd an installation, however its folders are combined."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloison.daemon.locks import NOTE, OtherRunFolder, take_locks
from cloison.errors import HostError
from cloison.runtime import life
from cloison.runtime.paths import Paths


def place(tmp_path: Path, run: str = "run", data: str = "data") -> Paths:
    paths = Paths(str(tmp_path / run), str(tmp_path / data), str(tmp_path / "config"))
    paths.ensure()
    return paths


def release(locks: list[int]) -> None:
    for fd in locks:
        os.close(fd)


@pytest.mark.parametrize(("run", "data", "shared"), [("run", "data", "run"), ("run2", "data", "data"), ("run", "data2", "run")])
def test_a_second_one_is_refused_for_either_folder(tmp_path: Path, run: str, data: str, shared: str) -> None:
    held = take_locks(place(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=f"another qubesd uses {tmp_path}/{shared} already"):
        take_locks(place(tmp_path, run, data))
    assert len(os.listdir("/proc/self/fd")) == before
    release(held)
    release(take_locks(place(tmp_path, run, data)))


def test_qubes_that_run_by_another_run_folder_are_not_started_twice(tmp_path: Path) -> None:
    """qubesd died in a desktop session, and the next is started by su, without XDG_RUNTIME_DIR."""
    first, second = place(tmp_path), place(tmp_path, "run2")
    release(take_locks(first))
    qube = life.take(first.qubes, "00000000-0000-4000-8000-000000000001")
    with pytest.raises(OtherRunFolder, match=f"sockets are in {first.run}, not in {second.run}"):
        take_locks(second)
    release(take_locks(first))                      # from there all is well
    os.close(qube)
    release(take_locks(second))
    qube = life.take(second.qubes, "00000000-0000-4000-8000-000000000001")
    with pytest.raises(OtherRunFolder):
        take_locks(first)
    os.close(qube)


def test_a_copy_does_not_care_where_the_originals_qubes_run(tmp_path: Path) -> None:
    original, copy = place(tmp_path), place(tmp_path, "run2", "data2")
    release(take_locks(original))
    os.link(os.path.join(original.data, NOTE), os.path.join(copy.data, NOTE))
    qube = life.take(original.qubes, "00000000-0000-4000-8000-000000000001")
    release(take_locks(copy))
    os.close(qube)


@pytest.mark.parametrize("note", [b"", b"{}", b"[1]", b"\xff", b"[[], 2]", b"[" * 20000, b"null"])
def test_a_note_that_can_not_be_read_is_written_anew(tmp_path: Path, note: bytes) -> None:
    paths = place(tmp_path)
    Path(paths.data, NOTE).write_bytes(note)
    release(take_locks(paths))
    assert Path(paths.data, NOTE).read_bytes() not in (note, b"")
