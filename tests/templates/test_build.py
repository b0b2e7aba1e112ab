"""What a build is asked for is checked; a failing tool ends it with the tool's words and nothing left."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cloison.runtime.paths import Paths
from cloison.templates.build import GIB, BuildRequest, build
from cloison.templates.contain import ToolFailed, Tools
from cloison.templates.work import work_folder
from cloison.values import InvalidValue


@pytest.mark.parametrize("fields", [
    {"name": "a,b"}, {"name": "../x"}, {"name": 'x"y'}, {"name": ""}, {"name": "x" * 32}, {"suite": "--help"}, {"suite": "a/b"},
    {"suite": ""}, {"suite": "x" * 33}, {"include": ("a b",)}, {"include": ("--x",)}, {"include": ("vim,nano",)},
    {"include": ("x2",) * 201},
    {"size": 0}, {"size": 2 * GIB - (1 << 20)}, {"size": 2 * GIB + 1}, {"size": 1024 * GIB + (1 << 20)}, {"mirror": "/etc/passwd"},
    {"mirror": "-"}, {"mirror": "http://x y"}, {"mirror": "http://" + "x" * 300}, {"kernel": "linux image"},
])
def test_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        BuildRequest(**{"name": "debian-12", "suite": "bookworm", **fields})


def test_accepted_limits() -> None:
    request = BuildRequest("x" * 31, "trixie", size=2 * GIB, include=("libstdc++6",) * 200, mirror="https://mirror.example/debian")
    assert request.size == 2 * GIB
    assert BuildRequest("d", "sid", size=1024 * GIB).size == 1024 * GIB


def test_failure_is_told_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "mmdebstrap").write_text("#!/bin/sh\necho 'E: unable to fetch' >&2\nexit 25\n")
    (programs / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path / "root")})
    paths.ensure()
    seen: list[int] = []
    with pytest.raises(ToolFailed, match="status 25: E: unable to fetch") as caught, work_folder(paths) as folder:
        tools = Tools(os.path.join(paths.log, "d.log"))
        build(BuildRequest("d", "sid"), paths, folder, tools, lambda percent, _: seen.append(percent))
    assert caught.value.hint == f"All that it said: {paths.log}/d.log" and caught.value.lines == ("E: unable to fetch",)
    assert seen == sorted(seen)
    assert [name for name in os.listdir(paths.tmp) if not name.startswith(".")] == []
    assert not os.path.exists(paths.kernels) or os.listdir(paths.kernels) == []
