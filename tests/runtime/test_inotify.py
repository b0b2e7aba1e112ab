"""Waiting for a file to appear."""
from __future__ import annotations

import os
import select
import threading
from pathlib import Path

import pytest

from cloison.runtime import inotify


def test_what_is_there_already_is_not_waited_for(tmp_path: Path) -> None:
    assert inotify.wait_for(str(tmp_path / ".." / tmp_path.name))


def test_a_name_that_appears_in_whatever_way_is_noticed_and_others_are_not(tmp_path: Path) -> None:
    def move_there(path: Path) -> None:
        (tmp_path / "other").rename(path)

    for make in (Path.touch, Path.mkdir, move_there):
        wanted = tmp_path / make.__name__
        found: list[bool] = []
        waiter = threading.Thread(target=lambda path=wanted, found=found: found.append(inotify.wait_for(str(path))))
        waiter.start()
        (tmp_path / "other").touch()
        make(wanted)
        waiter.join(30)
        assert found == [True]


def test_it_ends_when_who_should_make_it_has_ended(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    process = os.pidfd_open(child)
    assert not inotify.wait_for(str(tmp_path / "never"), process)
    os.waitpid(child, 0)
    os.close(process)


def test_what_is_not_there_can_not_be_watched_and_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        inotify.Watch(str(tmp_path / "none"), inotify.CREATE)
    assert len(os.listdir("/proc/self/fd")) == before


def test_news_is_news_until_it_is_cleared_whatever_is_watched(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    watch = inotify.Watch(str(tmp_path), inotify.CREATE)

    def readable() -> bool:
        return bool(select.select([watch], [], [], 0)[0])

    assert not readable() and not watch.clear()
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "file").touch()
    assert readable() and watch.clear() and not readable() and not watch.clear()
    watch.add(str(tmp_path / "folder"), inotify.CREATE)
    watch.add(str(tmp_path / "folder"), inotify.CREATE)
    (tmp_path / "folder" / "another").touch()
    assert watch.clear() and not watch.clear()
    with pytest.raises(FileNotFoundError):
        watch.add(str(tmp_path / "none"), inotify.CREATE)
    (tmp_path / "last").touch()
    assert watch.clear(), "what was watched before still is"
    watch.close()
