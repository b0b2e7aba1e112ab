"""Programs of the distribution are found where an ordinary user's PATH ends, and one that is missing is named."""
from __future__ import annotations

from pathlib import Path

import pytest

from cloison.runtime import programs
from cloison.runtime.programs import ProgramMissing, find


def program(folder: Path, name: str, mode: int = 0o755) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("")
    (folder / name).chmod(mode)
    return str(folder / name)


def test_the_users_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = program(tmp_path / "one", "qemu"), program(tmp_path / "two", "qemu")
    monkeypatch.setenv("PATH", f"{tmp_path}/one:{tmp_path}/two")
    assert find("qemu") == first != second
    program(tmp_path / "one", "qemu", mode=0o644)
    assert find("qemu") == second, "what can't be run is no program"


@pytest.mark.parametrize("path", ["/nowhere", "", None])
def test_what_only_root_has_in_his_path_is_found_too(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    asked: list[str] = []

    def which(name: str, *, path: str) -> str:
        asked.append(path)
        return f"/usr/sbin/{name}"

    monkeypatch.setattr(programs.shutil, "which", which)
    monkeypatch.setenv("PATH", path) if path is not None else monkeypatch.delenv("PATH")
    assert find("mkfs") == "/usr/sbin/mkfs"
    folders = asked[0].split(":")
    assert folders[-2:] == ["/usr/sbin", "/sbin"] and (path is not None or {"/usr/bin", "/bin"} <= set(folders))


def test_one_that_is_missing_is_named_with_who_knows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ProgramMissing, match="no-such-program is not installed") as caught:
        find("no-such-program")
    assert "cloison doctor" in caught.value.hint
