"""Files into qubes and out of them: whole or not at all, at both ends."""
from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_qubesd import FakeWarden

from cloison.client import aio, files
from cloison.client.connection import Connection
from cloison.client.failures import BadCommand, CallLost, CallTimeout, TooMuchOutput, TransferFailed
from cloison.errors import BadValue, CloisonError, HostError
from cloison.wire import qrexec as wire

Call = Callable[..., object]


class Both:
    """put, get and get_file of one kind."""

    def __init__(self, *, awaited: bool) -> None:
        self.put, self.get, self.get_file = (
            self._awaited(call) if awaited else self._plain(call) for call in ("put", "get", "get_file"))

    @staticmethod
    def _awaited(name: str) -> Call:
        return lambda *arguments, **options: asyncio.run(getattr(aio, name)(aio.Connection(), *arguments, **options))

    @staticmethod
    def _plain(name: str) -> Call:
        return lambda *arguments, **options: getattr(files, name)(Connection(), *arguments, **options)


@pytest.fixture(params=[False, True], ids=["waiting", "awaited"])
def both(request: pytest.FixtureRequest, warden: FakeWarden) -> Both:
    return Both(awaited=request.param)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder of the qube's: the fake one runs its programs here."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 2_000_001])
def test_there_and_back(both: Both, there: Path, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    both.put("work", data, str(there / "a b'$(id)"))
    assert both.get("work", str(there / "a b'$(id)")) == data
    assert both.get_file("work", str(there / "a b'$(id)"), tmp_path / "back") == size
    assert (tmp_path / "back").read_bytes() == data
    both.put("work", tmp_path / "back", str(there / "again"))
    assert (there / "again").read_bytes() == data
    assert sorted(path.name for path in there.iterdir()) == ["a b'$(id)", "again"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o4755])
def test_modes(both: Both, there: Path, tmp_path: Path, mode: int) -> None:
    both.put("work", b"x", str(there / "f"), mode=mode)
    assert stat.S_IMODE((there / "f").stat().st_mode) == mode
    both.get_file("work", str(there / "f"), tmp_path / "f")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_what_was_there_is_replaced_and_a_link_is_not_followed(both: Both, there: Path, tmp_path: Path) -> None:
    (there / "aim").write_text("aim")
    (there / "f").symlink_to(there / "aim")
    both.put("work", b"new", str(there / "f"))
    assert (there / "f").read_text() == "new" and not (there / "f").is_symlink()
    assert (there / "aim").read_text() == "aim"
    (tmp_path / "here").write_text("old")
    both.get_file("work", str(there / "f"), tmp_path / "here")
    assert (tmp_path / "here").read_text() == "new"


def test_where_nothing_can_be_put(both: Both, there: Path) -> None:
    (there / "folder").mkdir()
    for target in (there / "folder", there / "none" / "f"):
        with pytest.raises(TransferFailed) as error:
            both.put("work", b"x", str(target))
        assert error.value.path == str(target) and error.value.qube == "work"
        assert "it said" in str(error.value)
    assert list((there / "folder").iterdir()) == []
    assert [path.name for path in there.iterdir()] == ["folder"]


def test_what_can_not_be_got(both: Both, there: Path, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("old")
    with pytest.raises(TransferFailed, match="No such file"):
        both.get("work", str(there / "none"))
    with pytest.raises(TransferFailed, match="No such file"):
        both.get_file("work", str(there / "none"), tmp_path / "here")
    assert (tmp_path / "here").read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_limit(both: Both, there: Path, tmp_path: Path) -> None:
    (there / "f").write_bytes(bytes(1000))
    assert len(both.get("work", str(there / "f"), max_size=1000)) == 1000    # type: ignore[arg-type]
    assert both.get_file("work", str(there / "f"), tmp_path / "here", max_size=1000) == 1000
    for call in (both.get, lambda *arguments, **options: both.get_file(*arguments, tmp_path / "here", **options)):
        with pytest.raises(TooMuchOutput):
            call("work", str(there / "f"), max_size=999)
    with pytest.raises((TooMuchOutput, CallTimeout)):
        both.get("work", "/dev/zero", max_size=100_000, timeout=30)
    assert (tmp_path / "here").stat().st_size == 1000
    assert not list(tmp_path.glob("*.tmp"))


def test_a_qube_that_ends_half_way(both: Both, warden: FakeWarden, tmp_path: Path) -> None:
    def half(channel: socket.socket) -> None:
        channel.sendall(wire.hello(wire.VERSION) + b"".join(wire.data(wire.STDOUT, b"half")))

    warden.script = half
    (tmp_path / "here").write_text("old")
    with pytest.raises(CallLost):
        both.get("work", "/f")
    with pytest.raises(CallLost):
        both.get_file("work", "/f", tmp_path / "here")
    with pytest.raises(CallLost):
        both.put("work", b"x", "/f")
    assert (tmp_path / "here").read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_put_that_is_cut_off_changes_nothing(warden: FakeWarden, there: Path, tmp_path: Path) -> None:
    """Its size is told beforehand: a file that shrinks meanwhile is not whole, nor is one whose sender has gone."""
    source = tmp_path / "source"
    source.write_bytes(b"long enough")
    with files.sending("work", source, str(there / "f"), user="DEFAULT", mode=0o644) as sending:
        source.write_bytes(b"short")
        status = files.finish(Connection(), sending.order, None)
        with pytest.raises(TransferFailed, match="did not come whole"):
            files.sent(sending, status)
    assert list(there.iterdir()) == []


def test_files_of_the_host_that_can_not_be(both: Both, there: Path, tmp_path: Path) -> None:
    for source in (tmp_path / "none", tmp_path):
        with pytest.raises(HostError):
            both.put("work", source, str(there / "f"))
    (there / "f").write_text("x")
    with pytest.raises(HostError):
        both.get_file("work", str(there / "f"), tmp_path / "none" / "f")
    (tmp_path / "folder").mkdir()
    with pytest.raises(HostError):
        both.get_file("work", str(there / "f"), tmp_path / "folder")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_is_said(there: Path, tmp_path: Path, both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    (there / "f").write_text("x")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloison.client.ends.os.write", full)
    with pytest.raises(HostError, match="No space left"):
        both.get_file("work", str(there / "f"), tmp_path / "here")
    monkeypatch.undo()
    assert not list(tmp_path.glob("here*"))


@pytest.mark.parametrize("qube,path", [("bad name", "/f"), ("work", "/f\0")])
def test_bad_names(both: Both, warden: FakeWarden, qube: str, path: str) -> None:
    for call in (lambda: both.put(qube, b"", path), lambda: both.get(qube, path)):
        with pytest.raises((BadValue, BadCommand)):
            call()
    assert warden.commands == []
    assert issubclass(TransferFailed, CloisonError)


def test_a_relative_path_is_no_option(both: Both, warden: FakeWarden) -> None:
    with pytest.raises(TransferFailed):
        both.get("work", "--version")
    assert "./--version".replace("-", "--").replace("/", "-2F") in warden.commands[0].command
