"""Where things are, from the environment alone; and a folder for sockets that is ours or refused."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloison.runtime.paths import NoFolder, Paths, UnsafeRunDirectory, larger_disk, leave_folder


@pytest.mark.parametrize(("environ", "run", "data", "config"), [
    ({"CLOISON_ROOT": "/r"}, "/r/run", "/r/data", "/r/config"),
    ({"CLOISON_ROOT": "/r/", "XDG_RUNTIME_DIR": "/x"}, "/r/run", "/r/data", "/r/config"),
    ({"HOME": "/h", "XDG_RUNTIME_DIR": "/x"}, "/x/cloison", "/h/.local/share/cloison", "/h/.config/cloison"),
    ({"HOME": "/h", "XDG_RUNTIME_DIR": "/x", "XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/c"},
     "/x/cloison", "/d/cloison", "/c/cloison"),
    ({"HOME": "/h"}, f"/tmp/cloison-{os.getuid()}", "/h/.local/share/cloison", "/h/.config/cloison"),
])
def test_from_environment(environ: dict[str, str], run: str, data: str, config: str) -> None:
    paths = Paths.from_environment(environ)
    assert (paths.run, paths.data, paths.config) == (run, data, config)


def test_names_below() -> None:
    paths = Paths("/run", "/data", "/config")
    assert paths.socket("qubesd.sock") == "/run/qubesd.sock" and paths.qubes == "/run/qubes"
    assert (paths.store, paths.pool, paths.kernels) == ("/data/store.sqlite", "/data/pools/qcow2", "/data/vm-kernels")
    assert (paths.warm, paths.tmp, paths.log) == ("/data/warm", "/data/tmp", "/data/log")


def test_ensure_makes_private_folders_twice(tmp_path: Path) -> None:
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path / "root")})
    paths.ensure()
    paths.ensure()
    assert os.stat(paths.run).st_mode & 0o777 == 0o700 and os.path.isdir(paths.qubes) and os.path.isdir(paths.log)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_run_folder_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
    os.mkdir(paths.run)
    os.chmod(paths.run, mode)
    with pytest.raises(UnsafeRunDirectory, match="this user alone"):
        paths.ensure()


def test_a_run_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", paths.run)
    with pytest.raises(UnsafeRunDirectory):
        paths.ensure()


@pytest.mark.parametrize("whose", ["open to all", "another user's"])
def test_nothing_is_put_into_a_run_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    """As somebody made it who was first."""
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
    os.mkdir(paths.run, 0o700)
    if whose == "open to all":
        os.chmod(paths.run, 0o777)                   # noqa: S103 what is tested
    else:
        user = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: user)
    with pytest.raises(UnsafeRunDirectory):
        paths.ensure()
    assert os.listdir(paths.run) == [] and os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("root", ["/proc/no-such-folder", "/dev/null", "/dev/null/below"])
def test_a_folder_that_can_not_be_made_is_told_with_what_to_do(root: str) -> None:
    with pytest.raises(NoFolder, match=f"the folder {root}/run can't be used: ") as caught:
        Paths.from_environment({"CLOISON_ROOT": root}).ensure()
    assert "CLOISON_ROOT" in caught.value.hint


def test_a_daemon_leaves_the_folder_it_was_started_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else that folder could not be unmounted; and a relative root must not become another one for the daemon's children."""
    started = tmp_path / "started-here"
    started.mkdir()
    monkeypatch.chdir(started)
    monkeypatch.setenv("CLOISON_ROOT", "own")
    before = Paths.from_environment()
    leave_folder()
    assert os.getcwd() == "/" and Paths.from_environment().run == before.run == str(started / "own/run")
    started.rmdir()
    monkeypatch.delenv("CLOISON_ROOT")
    leave_folder()
    assert "CLOISON_ROOT" not in os.environ


def test_what_helps_on_a_full_disk_names_the_variable_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISON_ROOT", "/somewhere")
    assert larger_disk() == "Free some space, or set CLOISON_ROOT to a folder on a larger disk."
    monkeypatch.setenv("CLOISON_ROOT", "")
    assert larger_disk() == "Free some space, or set XDG_DATA_HOME to a folder on a larger disk."
