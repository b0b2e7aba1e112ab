"""Only one qubesd serves an installation: neither its sockets nor its data are another's.

Both have a lock, because they may be combined anew: XDG_RUNTIME_DIR differs between a desktop session, su and cron. The data
folder remembers where the sockets were, since a qubesd that looks elsewhere sees no qube that runs, and would start it twice.
"""
from __future__ import annotations

import json
import os

from cloison.errors import HostError
from cloison.runtime import files, life
from cloison.runtime.paths import Paths

LOCK, NOTE = "qubesd.lock", "last-run-folder"
MAX_NOTE = 1 << 14        # bytes


class OtherRunFolder(HostError):
    """The data folder is in use by way of another folder for sockets."""

    hint = "Set XDG_RUNTIME_DIR (or CLOISON_ROOT) as it was when that was started, or shut it down from there first."


def take_locks(paths: Paths) -> list[int]:
    """The descriptors that hold them. Raises HostError when another daemon lives, or qubes run that this one would not see."""
    taken: list[int] = []
    try:
        for folder, failure in ((paths.run, HostError), (paths.data, OtherRunFolder)):
            fd = files.try_lock(os.path.join(folder, LOCK))
            if fd is None:
                raise failure(f"another qubesd uses {folder} already")
            taken.append(fd)
        _check_run_folder(paths)
    except BaseException:
        for fd in taken:
            os.close(fd)
        raise
    return taken


def _check_run_folder(paths: Paths) -> None:
    note = os.path.join(paths.data, NOTE)
    before = _read(note)
    now = [paths.data, paths.run]
    if before == now:
        return
    if before is not None and before[0] == paths.data and life.any_lives(os.path.join(before[1], "qubes")):
        raise OtherRunFolder(f"qubes run whose sockets are in {before[1]}, not in {paths.run}")
    files.write_atomic(note, json.dumps(now).encode())


def _read(note: str) -> list[str] | None:
    """Data folder (another one if this is a copy) and run folder; None if there is no note that can be read."""
    try:
        with open(note, "rb") as file:
            data, run = json.loads(file.read(MAX_NOTE))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return [str(data), str(run)]
