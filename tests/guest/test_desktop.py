"""Which of a qube's applications are listed, which one is started, and whether what it opens goes to disposables."""
from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from cloison.guest.rpc import desktop


class Qube:
    """Folders of entries, and what the host says in QubesDB. A started program is written down."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.says, self.started = folder, dict[str, str](), list[tuple[list[str], Mapping[str, str], str]]()
        monkeypatch.setattr(desktop.qubesdb, "read", self.says.get)
        monkeypatch.setattr(desktop.os, "execvpe", lambda _name, words, environ: self.started.append((words, environ, os.getcwd())))
        monkeypatch.setenv("XDG_DATA_HOME", str(folder / "own"))
        monkeypatch.setenv("XDG_DATA_DIRS", f"{folder}/system:relative:{folder}/more")
        monkeypatch.setattr(desktop, "DISPOSABLE_DIRS", str(folder / "override"))
        monkeypatch.chdir(folder)

    def add(self, place: str, name: str = "edit.desktop", run: str = "", more: str = "") -> str:
        path = self.folder / place / "applications" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[Desktop Entry]\nName=The {place}\nExec={run or place}\n{more}")
        return str(path)

    def words(self) -> list[list[str]]:
        return [words for words, _, _ in self.started]


@pytest.fixture
def qube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qube:
    return Qube(tmp_path, monkeypatch)


def test_the_persons_own_entry_comes_first_and_no_relative_folder_counts(qube: Qube) -> None:
    assert desktop.data_dirs(os.environ) == [f"{qube.folder}/own", f"{qube.folder}/system", f"{qube.folder}/more"]
    assert desktop.data_dirs({"HOME": "/home/user"})[1:] == ["/usr/local/share", "/usr/share"]
    qube.add("more")
    qube.add("system")
    desktop.main_start(["qubes.StartApp", "edit"])
    qube.add("own")
    desktop.main_start(["qubes.StartApp", "edit"])
    desktop.main_run(["qubes-desktop-run", "edit.desktop"])
    assert qube.words() == [["system"], ["own"], ["own"]]


def test_an_entry_is_run_by_its_path_too(qube: Qube) -> None:
    assert desktop.main_run(["qubes-desktop-run", qube.add("elsewhere")]) is None      # it becomes the program
    assert qube.words() == [["elsewhere"]]
    for words in ([], ["missing.desktop"], ["edit"], ["a", "b"]):
        assert desktop.main_run(["qubes-desktop-run", *words]) == 1
    assert len(qube.started) == 1


def hashed(name: str) -> str:
    return "/hash-app-dispvm/" + base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode().rstrip("=")


@pytest.mark.parametrize(("says", "disposable"), [
    ({}, False), ({"/qubes-service/app-dispvm.edit": "1"}, True), ({"/qubes-service/app-dispvm.edit": ""}, True),
    ({hashed("edit"): "edit"}, True), ({hashed("edit"): "other"}, False), ({hashed("other"): "other"}, False),
    ({"/qubes-service/app-dispvm.other": "1"}, False),
])
def test_what_an_application_opens_goes_to_disposables_if_the_host_says_so(
    qube: Qube, monkeypatch: pytest.MonkeyPatch, says: dict[str, str], disposable: bool,
) -> None:
    monkeypatch.setenv("GNOME_DESKTOP_SESSION_ID", "x")
    qube.says.update(says)
    qube.add("system")
    qube.add("override")
    desktop.main_start(["qubes.StartApp", "edit"])
    [(words, environ, _)] = qube.started
    assert words == (["override"] if disposable else ["system"])
    assert environ["XDG_DATA_DIRS"].endswith("/override") is disposable
    assert ("XDG_DATA_HOME" in environ, "GNOME_DESKTOP_SESSION_ID" in environ) == ((False,) * 2 if disposable else (True,) * 2)


@pytest.mark.parametrize(("length", "asked"), [(37, True), (38, False)])
def test_a_name_too_long_for_a_feature_is_asked_for_by_its_hash_only(qube: Qube, length: int, asked: bool) -> None:
    name = "x" * length
    qube.says[f"/qubes-service/app-dispvm.{name}"] = "1"
    assert desktop._in_disposable(name) is asked
    qube.says[hashed(name)] = name
    assert desktop._in_disposable(name)


def test_one_that_is_to_use_disposables_is_never_started_without(qube: Qube, capsys: pytest.CaptureFixture[str]) -> None:
    qube.add("system")
    qube.says["/qubes-service/app-dispvm.edit"] = "1"
    assert desktop.main_start(["qubes.StartApp", "edit"]) == 1
    assert qube.started == [] and "not found" in capsys.readouterr().err


@pytest.mark.parametrize(("persistence", "listed"), [(None, True), ("full", True), ("none", False), ("rw-only", False)])
def test_what_is_gone_after_a_restart_is_not_listed(
    qube: Qube, capfdbinary: pytest.CaptureFixture[bytes], persistence: str | None, listed: bool,
) -> None:
    if persistence:
        qube.says["/qubes-vm-persistence"] = persistence
    qube.add("system")
    assert desktop.main_list(["qubes.GetAppmenus"]) == 0
    assert (b"edit.desktop:Name=The system" in capfdbinary.readouterr().out) is listed


def test_what_is_on_the_private_volume_stays(
    qube: Qube, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    qube.says["/qubes-vm-persistence"] = "rw-only"
    for place in ("own", "system"):
        qube.add(place)
    monkeypatch.setattr(desktop, "_on_rw", lambda folder: folder.endswith("/own"))
    desktop.main_list(["qubes.GetAppmenus"])
    assert [line for line in capfdbinary.readouterr().out.split(b"\n") if b"Name" in line] == [b"edit.desktop:Name=The own"]


def test_a_program_starts_where_its_entry_says_or_not_at_all(qube: Qube, capsys: pytest.CaptureFixture[str]) -> None:
    (qube.folder / "place").mkdir()
    desktop.launch(qube.add("system", more=f"Path={qube.folder}/place\n", run="edit %U '%c' %k 100%% %z"), {"A": "1"})
    [(words, environ, place)] = qube.started
    assert words == ["edit", "The system", str(qube.folder / "system/applications/edit.desktop"), "100%", "%z"]
    assert (environ, place) == ({"A": "1"}, str(qube.folder / "place"))
    for more, run in (("Path=/nowhere/at/all\n", "edit"), ("", "'unbalanced"), ("", "%U")):
        assert desktop.launch(qube.add("system", more=more, run=run), {}) == 1
        assert capsys.readouterr().err
    assert len(qube.started) == 1


def test_the_first_of_two_values_counts_and_only_in_the_entrys_own_group(qube: Qube) -> None:
    path = qube.add("system", more="Exec=second\n[Desktop Action x]\nExec=third\n[Desktop Entry]\nExec=fourth\n")
    desktop.launch(path, {})
    assert qube.words() == [["system"]]
    assert desktop.read("/nowhere.desktop") == []
