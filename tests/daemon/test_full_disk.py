"""Levels of space, what is told when one changes, the reserve; and qubesd on a disk that is really full."""
from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import full_disk
from tests.patience import PATIENCE

from cloison.daemon import reserve, space
from cloison.daemon.fake import ask, close_app, fake_app
from cloison.daemon.reserve import Reserves
from cloison.daemon.space import Found, Level, Space, level
from cloison.errors import DiskFull, StorageError, StoreError

MIB, GIB = 1 << 20, 1 << 30
SIZE = 96 << 20


@pytest.mark.parametrize(("size", "free", "before", "now"), [
    (500 * GIB, 2 * GIB, Level.PLENTY, Level.PLENTY), (500 * GIB, 2 * GIB - 1, Level.PLENTY, Level.LOW),
    (500 * GIB, 2 * GIB + 1, Level.LOW, Level.LOW), (500 * GIB, 5 * GIB // 2, Level.LOW, Level.PLENTY),
    (500 * GIB, 256 * MIB, Level.LOW, Level.LOW), (500 * GIB, 256 * MIB - 1, Level.LOW, Level.LAST),
    (500 * GIB, 256 * MIB + 1, Level.LAST, Level.LAST), (500 * GIB, 320 * MIB, Level.LAST, Level.LOW),
    (500 * GIB, 0, Level.PLENTY, Level.LAST), (500 * GIB, 100 * GIB, Level.LAST, Level.PLENTY),
    (GIB, 130 * MIB, Level.PLENTY, Level.PLENTY), (GIB, 100 * MIB, Level.PLENTY, Level.LOW), (GIB, 60 * MIB, Level.LOW, Level.LAST),
])
def test_levels(size: int, free: int, before: Level, now: Level) -> None:
    assert level(size, free, before) is now


class Disks:
    """File systems that are what a test says: folder -> (device, size, free)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **sizes: tuple[int, int, int]) -> None:
        self.sizes: dict[str, tuple[int, int, int]] = dict(sizes)
        self.hung: set[str] = set()
        self.told: list[Found] = []
        self.reserves = Reserves(str(tmp_path))
        self.kept: list[list[str]] = []
        monkeypatch.setattr(self.reserves, "keep", self.kept.append)
        monkeypatch.setattr(space, "_ask", lambda folder: self.sizes[folder])
        monkeypatch.setattr(space, "TICK", 0.01)
        self.space = Space(lambda: list(self.sizes), self.told.append, self.reserves, self._in_thread)

    async def _in_thread(self, do: Callable[..., Any], *args: Any) -> Any:
        if args[0] in self.hung if isinstance(args[0], str) else False:
            await asyncio.Event().wait()
        return do(*args)

    def look(self) -> list[tuple[str, Level]]:
        """What is told of."""
        asyncio.run(self._look())
        told, self.told[:] = [(found.folder, found.level) for found in self.told], []
        return told

    async def _look(self) -> None:
        await self.space.look()
        for task in self.space._asking.values():
            task.cancel()
        await asyncio.gather(*self.space._asking.values(), return_exceptions=True)
        self.space._asking.clear()


Make = Callable[..., Disks]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    return lambda **sizes: Disks(monkeypatch, tmp_path, **sizes)


def test_a_change_of_level_is_told_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    disks = make(data=(1, 100 * GIB, 50 * GIB))
    assert disks.look() == [] and disks.space.warnings() == []
    disks.sizes["data"] = (1, 100 * GIB, GIB)
    assert disks.look() == [("data", Level.LOW)]
    assert disks.look() == []
    sentence = "1024 MB are free in data: the disk is nearly full; when it is full, qubes that write stop"
    assert disks.space.warnings() == [sentence] and sentence in caplog.text
    disks.sizes["data"] = (1, 100 * GIB, MIB)
    assert disks.look() == [("data", Level.LAST)]
    disks.sizes["data"] = (1, 100 * GIB, 50 * GIB)
    assert disks.look() == [("data", Level.PLENTY)] and disks.space.warnings() == []


def test_a_look_that_fails_does_not_end_the_watch(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    disks = make(data=(1, 100 * GIB, 50 * GIB))
    looks: list[int] = []
    done = asyncio.Event()

    def folders() -> list[str]:
        looks.append(1)
        if len(looks) in (1, 2, 4):
            raise StoreError("the store can't be written") if len(looks) > 1 else ValueError("unforeseen")
        if len(looks) > 5:
            done.set()
        return list(disks.sizes)

    disks.space._folders = folders

    async def watch() -> None:
        watching = asyncio.ensure_future(disks.space.watch())
        await asyncio.wait_for(done.wait(), PATIENCE)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(watch())
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told == [f"how much space is left can't be found out: {why}" for why in ("unforeseen", "the store can't be written")]


def test_folders_of_one_file_system_are_told_of_together(make: Make) -> None:
    disks = make(data=(1, 100 * GIB, GIB), pool=(1, 100 * GIB, GIB), other=(2, 100 * GIB, GIB))
    assert disks.look() == [("data", Level.LOW), ("other", Level.LOW)]
    assert len(disks.space.warnings()) == 2


def test_a_folder_that_hangs_holds_up_no_other_and_one_that_goes_is_forgotten(make: Make) -> None:
    disks = make(away=(3, 100 * GIB, GIB), data=(1, 100 * GIB, GIB))
    disks.hung = {"away"}
    assert disks.look() == [("data", Level.LOW)]
    assert disks.kept[-1] == ["data"], "no reserve is made where nobody answers"
    disks.hung = set()
    assert disks.look() == [("away", Level.LOW)]
    del disks.sizes["away"]
    assert disks.look() == [] and len(disks.space.warnings()) == 1
    disks.sizes["data"] = (0, 0, 0)
    assert disks.look() == [] and disks.space.warnings() == [], "one that can't be asked is not full"


def test_a_start_is_refused_while_next_to_nothing_is_left_and_looked_at_again_before(make: Make) -> None:
    disks = make(data=(1, 100 * GIB, MIB), pool=(2, 100 * GIB, 50 * GIB))
    disks.look()
    with pytest.raises(DiskFull, match="work is not started: only 1 MB are free in data, and the qubes that run need them"):
        asyncio.run(disks.space.check_start("work", ["pool", "data"]))
    asyncio.run(disks.space.check_start("work", ["pool"]))
    asyncio.run(disks.space.check_start("work", ["nobody-knows"]))
    disks.sizes["data"] = (1, 100 * GIB, 50 * GIB)
    asyncio.run(disks.space.check_start("work", ["data"]))
    disks.sizes["data"] = (1, 100 * GIB, GIB)
    disks.look()
    asyncio.run(disks.space.check_start("work", ["data"]))


def test_starts_at_the_same_time_are_all_refused_and_nothing_is_told_twice(make: Make) -> None:
    disks = make(data=(1, 100 * GIB, MIB))
    assert disks.look() == [("data", Level.LAST)]

    async def starts() -> None:
        results = await asyncio.gather(*(disks.space.check_start("work", ["data"]) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [DiskFull] * 3

    asyncio.run(starts())
    assert disks.look() == [] and len(disks.space.warnings()) == 1


def test_it_is_told_by_an_event_and_in_the_status(tmp_path: Path) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        heard: list[tuple[str, str, dict[str, str]]] = []
        app.listen(app.system.dom0, None, lambda subject, name, pairs: heard.append((subject, name, dict(pairs))))
        found = Found(app.parts.paths.data, Level.LAST, MIB)
        app.space._found, app.space._devices = {1: found}, {app.parts.paths.data: 1}
        app._tell_space(found)
        assert heard == [("", "space-last", {"folder": app.parts.paths.data, "free": str(MIB)})]
        assert (await app.status())["space"] == [str(found)]
        assert set(app._space_folders()) == {app.parts.paths.data, os.path.realpath(app.parts.paths.pool)}
        await close_app(app)

    asyncio.run(run())


def test_a_refused_start_is_announced_and_a_disposable_that_can_not_start_goes(tmp_path: Path) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        for method, argument, payload in (
            ("admin.vm.Create.TemplateVM", "", "name=tpl label=black"), ("admin.vm.Create.AppVM", "tpl", "name=work label=red")):
            assert not (await ask(app, method, "dom0", argument, payload)).failure
        heard: list[str] = []

        async def full(name: str, folders: list[str]) -> None:
            assert app.parts.paths.data in folders and os.path.realpath(app.parts.paths.pool) in folders
            raise DiskFull(name, "/data", MIB)

        app.space.check_start = full  # type: ignore[method-assign,assignment]
        app.listen(app.system.dom0, "work", lambda _subject, name, _pairs: heard.append(name))
        answer = await ask(app, "admin.vm.Start", "work")
        assert answer.content == "work is not started: only 1 MB are free in /data, and the qubes that run need them"
        assert heard == ["domain-pre-start", "domain-start-failed"] and app.system.qube("work").is_halted
        await close_app(app)

    asyncio.run(run())


# -- the reserve -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    def be(size: int, free: int) -> None:
        monkeypatch.setattr(reserve, "_space", lambda _folder: (size, free))

    yield be


def test_a_reserve_is_made_where_there_is_space_and_given_up_where_there_is_none(
    tmp_path: Path, free: Callable[[int, int], None],
) -> None:
    reserves, file = Reserves(str(tmp_path)), tmp_path / "reserve"
    free(100 * GIB, 96 * MIB - 1)
    reserves.keep()
    assert not file.exists(), "what is left is for others"
    free(100 * GIB, 96 * MIB)
    reserves.keep()
    assert file.stat().st_size == 32 * MIB == file.stat().st_blocks * 512 and file.stat().st_mode & 0o777 == 0o600
    assert not reserves.spend(str(tmp_path)), "there is space"
    assert file.exists()
    free(100 * GIB, MIB - 1)
    assert reserves.spend(str(tmp_path)) and not file.exists()
    assert not reserves.spend(str(tmp_path)), "only once"
    free(100 * MIB, 30 * MIB)
    reserves.keep()
    assert file.stat().st_size == 5 * MIB, "of a small one a twentieth"
    assert os.listdir(tmp_path) == ["reserve"]


def test_a_pool_on_a_file_system_of_its_own_has_one_of_its_own(tmp_path: Path, free: Callable[[int, int], None],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    data, near, far = (tmp_path / name for name in ("data", "near", "far"))
    for folder in (data, near, far):
        folder.mkdir()
    monkeypatch.setattr(reserve, "_device", lambda path: 2 if path.startswith(str(far)) else 1)
    reserves = Reserves(str(data))
    free(100 * GIB, 50 * GIB)
    twin = tmp_path / "far-too"
    twin.mkdir()
    reserves.keep([str(near), str(far)])
    reserves.keep([str(twin)])
    reserves.keep([str(far)])
    assert not (twin / ".reserve").exists(), "one a file system"
    assert [path for path in (data / "reserve", near / ".reserve", far / ".reserve") if path.exists()] == [
        data / "reserve", far / ".reserve"]
    free(100 * GIB, 0)
    assert reserves.spend(str(far)) and not (far / ".reserve").exists() and (data / "reserve").exists()
    free(100 * GIB, 50 * GIB)
    reserves.keep([str(near), str(far)])
    reserves.drop(str(near))
    reserves.drop(str(far))
    assert not (far / ".reserve").exists() and (data / "reserve").exists()


def test_a_pool_that_was_just_added_has_one(tmp_path: Path, free: Callable[[int, int], None],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    monkeypatch.setattr(reserve, "_device", lambda path: 2 if path.startswith(str(small)) else 1)
    free(100 * GIB, 50 * GIB)

    async def run() -> None:
        app = await fake_app(str(tmp_path / "root"))
        answer = await ask(app, "admin.pool.Add", "dom0", "qcow2", f"name=small\ndir_path={small}")
        assert not answer.failure, answer.content
        assert (small / ".reserve").exists(), "a qube may fill that disk before the next look"
        await close_app(app)

    asyncio.run(run())


def test_only_what_failed_for_want_of_space_is_tried_again_and_once(tmp_path: Path, free: Callable[[int, int], None]) -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise StorageError("no space")

    reserves = Reserves(str(tmp_path))
    free(100 * GIB, 50 * GIB)
    reserves.keep()
    with pytest.raises(StorageError):
        reserves.helps(str(tmp_path), fail, StorageError)
    assert len(tries) == 1 and (tmp_path / "reserve").exists()
    free(100 * GIB, 0)
    with pytest.raises(StorageError):
        reserves.helps(str(tmp_path), fail, StorageError)
    assert len(tries) == 3 and not (tmp_path / "reserve").exists()
    with pytest.raises(StorageError):
        reserves.helps(str(tmp_path), fail, StorageError)
    assert len(tries) == 4
    assert reserves.helps(str(tmp_path), lambda: 7, StorageError) == 7


def test_a_reserve_that_can_not_be_made_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    reserves = Reserves(str(tmp_path))
    reserves.keep([str(tmp_path / "gone")])
    assert os.listdir(tmp_path) == []
    assert not Reserves(str(tmp_path / "gone")).spend(str(tmp_path / "gone"))


def test_qubesd_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
    where = tmp_path / "full"
    where.mkdir()
    argv = ["bwrap", "--unshare-user", "--dev-bind", "/", "/", "--size", str(SIZE), "--tmpfs", str(where), "--",
            sys.executable, full_disk.__file__, str(where)]
    environment = {**os.environ, "PYTHONPATH": str(Path(full_disk.__file__).parents[2])}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [*full_disk.HELPS, "without"]
