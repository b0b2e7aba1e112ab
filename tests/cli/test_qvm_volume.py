"""qvm-volume against the real qubesd on a fake pool."""
from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from cloison.cli import qvm_volume
from cloison.client.connection import Connection
from cloison.client.domains import volume_info
from cloison.errors import CloisonError

GIB = 1 << 30


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 4096)
    return path


QUBE = "work"             # of the fixture `real`


def size(real: Connection, volume: str = "private") -> int:
    return int(volume_info(real, "work", volume)["size"])


def test_list(real: Connection, capsys: pytest.CaptureFixture[str], image: Path) -> None:
    assert qvm_volume.main(["import", "work:private", str(image)]) == 0
    assert qvm_volume.main(["list", "work"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "POOL:VOLUME                       VMNAME  VOLUME_NAME  REVERT_POSSIBLE",
        "linux-kernel:6.6.1                work    kernel       No",
        f"varlibqubes:appvms/{QUBE}/private   {QUBE}    private      Yes",
        f"varlibqubes:appvms/{QUBE}/root      {QUBE}    root         No",
        f"varlibqubes:appvms/{QUBE}/volatile  {QUBE}    volatile     No",
    ]
    assert qvm_volume.main(["ls", "-p", "linux-kernel"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[1] for row in rows] == ["work", "net", "tpl"] and {row[2] for row in rows} == {"kernel"}
    assert len({row[0] for row in rows}) == 1


def test_list_without_words_is_everything(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_volume.main([]) == 0
    everything = capsys.readouterr().out
    assert qvm_volume.main(["list", "--all"]) == 0
    assert capsys.readouterr().out == everything
    assert qvm_volume.main(["list", "--all", "--exclude", "net"]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]} == {"tpl", "work"}


def test_on_a_terminal_a_shared_volume_is_named_once(
    real: Connection, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert qvm_volume.main(["list", "-p", "linux-kernel"]) == 0
    assert [len(line.split()) for line in screen.getvalue().splitlines()] == [4, 4, 3, 3]
    screen.seek(0)
    screen.truncate()
    assert qvm_volume.main(["list", "--full", "-p", "linux-kernel"]) == 0
    assert [len(line.split()) for line in screen.getvalue().splitlines()] == [4, 4, 4, 4]


def test_clone(real: Connection, capsys: pytest.CaptureFixture[str], image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert qvm_volume.main(["import", "work:private", str(image)]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert qvm_volume.main(["clone", "work:private", "net:private"]) == 1, "nobody there to agree"
    assert volume_info(real, "net", "private")["size"] == str(2 * GIB)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert qvm_volume.main(["clone", "work:private", "net:private"]) == 0
    assert volume_info(real, "net", "private")["size"] == "4096"
    for wrong in (["work:root", "net:private"], ["work:private", "net:root"], ["work:private", "nope:private"]):
        assert qvm_volume.main(["clone", "--force", *wrong]) != 0
    assert "save_on_stop" in capsys.readouterr().err


def test_clear(real: Connection, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert qvm_volume.main(["import", "work:private", str(image)]) == 0
    for answer in ("", "n\n", "yesno\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert qvm_volume.main(["clear", "work:private"]) == 1
    before = real.call("work", "admin.vm.volume.ListSnapshots", "private")
    assert qvm_volume.main(["clear", "-f", "work:private"]) == 0
    assert real.call("work", "admin.vm.volume.ListSnapshots", "private") != before and size(real) == 4096


def test_snapshots_switched_off_are_shown_as_such(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_volume.main(["set", "work:private", "revisions_to_keep", "-1"]) == 0
    assert qvm_volume.main(["info", "work:private"]) == 0
    assert "-1 (snapshot disabled)" in capsys.readouterr().out
    assert qvm_volume.main(["info", "work:private", "revisions_to_keep"]) == 0
    assert capsys.readouterr().out == "-1\n"


def test_an_import_of_unknown_size_says_what_to_do(real: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert qvm_volume.main(["import", "work:private", "/dev/zero"]) == 1
    assert "--size" in capsys.readouterr().err
    assert size(real) == 2 * GIB


def test_info(real: Connection, capsys: pytest.CaptureFixture[str], image: Path) -> None:
    assert qvm_volume.main(["info", "work:private"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "pool", "vid", "rw", "source", "save_on_stop", "snap_on_start", "size", "usage", "revisions_to_keep", "ephemeral",
        "is_outdated"]
    assert lines[1].split()[1] == f"appvms/{QUBE}/private"
    assert lines[-1] == "List of available revisions (for revert): none"
    assert qvm_volume.main(["i", "work:private", "size"]) == 0
    assert capsys.readouterr().out == f"{2 * GIB}\n"
    assert qvm_volume.main(["info", "work:private", "revisions"]) == 0
    assert capsys.readouterr().out == ""
    qvm_volume.main(["import", "work:private", str(image)])
    assert qvm_volume.main(["info", "work:private", "revisions"]) == 0
    revision = capsys.readouterr().out
    assert revision.count("\n") == 1
    qvm_volume.main(["info", "work:private"])
    assert capsys.readouterr().out.endswith(f"List of available revisions (for revert):\n  {revision}")


def test_config(real: Connection) -> None:
    assert qvm_volume.main(["config", "work:private", "revisions_to_keep", "5"]) == 0
    assert qvm_volume.main(["set", "work:private", "rw", "False"]) == 0
    assert qvm_volume.main(["s", "work:volatile", "ephemeral", "True"]) == 0
    private = volume_info(real, "work", "private")
    assert (private["revisions_to_keep"], private["rw"]) == ("5", "False")
    assert volume_info(real, "work", "volatile")["ephemeral"] == "True"


@pytest.mark.parametrize(("text", "expected"), [
    ("3221225472", 3 * GIB), ("3GiB", 3 * GIB), ("3 gib", 3 * GIB), ("3Gi", 3 * GIB), ("3072MiB", 3 * GIB),
    ("3145728KiB", 3 * GIB), ("3GB", 3 * 10**9), ("3G", 3 * 10**9), ("3000M", 3 * 10**9), ("3000000K", 3 * 10**9),
])
def test_resize(real: Connection, text: str, expected: int) -> None:
    assert qvm_volume.main(["resize", "work:private", text]) == 0
    assert size(real) == expected


@pytest.mark.parametrize("text", ["", "-1", "1T", "G", "1.5G", "1iB", "0x10", "9" * 20, "1 G B", "²", "1G1"])
def test_no_size(text: str) -> None:
    with pytest.raises(CloisonError, match="invalid size"):
        qvm_volume.parse_size(text)


def test_shrinking_takes_force(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_volume.main(["extend", "work:private", "1GiB"]) == 1
    assert "--force" in capsys.readouterr().err
    assert size(real) == 2 * GIB


def test_import_and_revert(real: Connection, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_volume.main(["revert", "work:private"]) == 1
    assert "no snapshots available" in capsys.readouterr().err
    assert qvm_volume.main(["import", "work:private", str(image)]) == 0
    assert size(real) == 4096
    assert qvm_volume.main(["import", "--size", "8192", "work:private", str(image)]) == 1
    assert "shorter" in capsys.readouterr().err
    assert qvm_volume.main(["import", "--no-resize", "work:private", str(image)]) == 0
    assert size(real) == 4096
    assert qvm_volume.main(["import", "--no-resize", "work:private", "/dev/null"]) == 0
    assert size(real) == 4096, "all zeros now: a file system is made at the next start"
    (image.parent / "short").write_bytes(b"x")
    assert qvm_volume.main(["import", "--no-resize", "work:private", str(image.parent / "short")]) == 1
    assert "shorter" in capsys.readouterr().err
    assert qvm_volume.main(["import", "--size", "4096", "work:private", "/dev/null"]) == 1
    assert qvm_volume.main(["revert", "work:private"]) == 0
    assert qvm_volume.main(["rv", "work:private", "77"]) == 1
    assert qvm_volume.main(["import", "work:private", str(image) + "-not"]) == 1


@pytest.mark.parametrize(("words", "status"), [
    (("info",), 2), (("info", "work"), 2), (("info", "work:"), 1), (("info", ":private"), 1), (("info", "work:a:b"), 2),
    (("info", "nowhere:root"), 1), (("info", "work:gone"), 1), (("info", "a b:root"), 1),
    (("info", "work:private", "colour"), 1),
    (("config", "work:private", "size", "1"), 1), (("config", "work:private", "revisions_to_keep", "-2"), 1),
    (("resize", "work:private", "big"), 1), (("import", "--size", "1k", "work:private", "x"), 2),
    (("list", "-p", "gone"), 2), (("list", "nowhere"), 2), (("list", "--exclude", "work"), 2), (("revert", "dom0:root"), 1),
])
def test_refusals(real: Connection, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int) -> None:
    before = volume_info(real, "work", "private")
    assert qvm_volume.main(list(words)) == status
    assert "error: " in capsys.readouterr().err
    assert volume_info(real, "work", "private") == before
