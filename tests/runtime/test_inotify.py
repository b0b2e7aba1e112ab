"""Waiting for a file to appear."""
from __future__ import annotations

import os
import threading
from pathlib import Path

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
