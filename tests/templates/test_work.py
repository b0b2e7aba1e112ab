"""Work folders and contained tools: nothing stays, whatever dies."""
from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.runtime.paths import Paths
from cloison.runtime.programs import ProgramMissing
from cloison.templates.contain import ToolFailed, Tools, contained
from cloison.templates.work import remove_tree, sweep, work_folder


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    result = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
    result.ensure()
    return result


def folders(paths: Paths) -> list[str]:
    return [name for name in os.listdir(paths.tmp) if name.startswith("template-")]


def test_removed_at_the_end_and_on_failure(paths: Paths) -> None:
    with pytest.raises(RuntimeError), work_folder(paths) as folder:
        Path(folder, "file").write_text("x")
        raise RuntimeError
    assert folders(paths) == []


def test_living_owners_folder_is_left_alone(paths: Paths) -> None:
    with work_folder(paths) as first:
        with work_folder(paths):
            assert os.path.isdir(first)
        assert os.path.isdir(first)
    assert folders(paths) == []


def test_other_peoples_work_is_left_alone(paths: Paths) -> None:
    Path(paths.tmp, "import-1").mkdir()
    with work_folder(paths):
        pass
    assert os.path.isdir(os.path.join(paths.tmp, "import-1"))


SCRIPT = """
import sys
from cloison.runtime.paths import Paths
from cloison.templates.contain import Tools
from cloison.templates.work import work_folder
with work_folder(Paths.from_environment()) as folder:
    tools = Tools(folder + "/log")
    hold = ["sh", "-c", "mkfifo held; echo started; exec tail -f /dev/null > held"]
    tools.run(hold, folder=folder, on_line=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("sweeper", ["next build", "qubesd"])
def test_kill_9_ends_the_tools_and_what_is_left_is_swept(paths: Paths, tmp_path: Path, sweeper: str) -> None:
    environment = {**os.environ, "CLOISON_ROOT": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        left = folders(paths)
        assert len(left) == 1
        fifo = os.open(os.path.join(paths.tmp, left[0], "held"), os.O_RDONLY)    # returns when the tool holds its end
        process.kill()
    with open(fifo, "rb") as held:
        assert select.select([held], [], [], PATIENCE)[0]
        assert held.read() == b""            # end of file: the tool, which alone held the other end, is gone
    if sweeper == "next build":
        with work_folder(paths) as folder:
            assert folders(paths) == [os.path.basename(folder)]
    else:
        sweep(paths)
        assert folders(paths) == []


def test_stop_ends_a_running_tool_and_starts_no_other(tmp_path: Path) -> None:
    tools = Tools(str(tmp_path / "log"))
    stopper: list[threading.Thread] = []

    def stop(_: str) -> None:
        stopper.append(threading.Thread(target=tools.stop))
        stopper[0].start()

    with pytest.raises(ToolFailed):
        tools.run(["sh", "-c", "echo started; mkfifo held; exec cat held"], folder=str(tmp_path), on_line=stop)
    stopper[0].join()
    with pytest.raises(ToolFailed):
        tools.run(["true"], folder=str(tmp_path))


def test_failure_tells_the_last_lines_without_control_characters(tmp_path: Path) -> None:
    tools = Tools(str(tmp_path / "log"))
    with pytest.raises(ToolFailed, match="sh failed with status 3") as caught:
        tools.run(["sh", "-c", "printf 'E: no \\033[2Jsuch\\n'; exit 3"], folder=str(tmp_path))
    assert caught.value.lines == ("E: no  [2Jsuch",)
    assert str(tmp_path / "log") in caught.value.hint
    assert b"\033" in (tmp_path / "log").read_bytes()


def test_the_last_lines_are_kept_each_is_heard_and_all_are_in_the_log(tmp_path: Path) -> None:
    tools, heard = Tools(str(tmp_path / "log")), list[str]()
    with pytest.raises(ToolFailed) as caught:
        tools.run(["sh", "-c", "seq 1 50; echo to errors >&2; exit 1"], folder=str(tmp_path), on_line=heard.append)
    assert heard == [*map(str, range(1, 51)), "to errors"]
    assert caught.value.lines == (*map(str, range(12, 51)), "to errors")
    tools.run(["sh", "-c", "echo more"], folder=str(tmp_path))
    assert (tmp_path / "log").read_text().split("\n")[-3:] == ["to errors", "more", ""]


def test_a_tool_has_a_folder_of_its_own_and_nothing_of_our_environment_but_proxies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("https_proxy", "http://proxy.example:1")
    heard: list[str] = []
    Tools(str(tmp_path / "log")).run(["env"], folder=str(tmp_path), on_line=heard.append)
    said = dict(line.split("=", 1) for line in heard if "=" in line)
    assert "SECRET" not in said and said["https_proxy"] == "http://proxy.example:1" and said["LC_ALL"] == "C.UTF-8"
    assert said["TMPDIR"] == said["HOME"] == str(tmp_path) and said["PATH"].endswith(":/usr/sbin:/sbin")


def test_missing_program(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissing, match="no-such-program is not installed"):
        Tools(str(tmp_path / "log")).run(["no-such-program"], folder=str(tmp_path))


def test_tools_are_root_in_a_pid_namespace_of_their_own(tmp_path: Path) -> None:
    command = [*contained(), "sh", "-c", "id -u; echo $$; ls /proc"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    uid, pid, *processes = output.split()
    assert (uid, pid) == ("0", "1")
    assert len([name for name in processes if name.isdecimal()]) <= 2


def test_remove_tree_of_nothing(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()
