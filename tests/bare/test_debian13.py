"""The bare Debian: how it is set up, and that what runs there leaves nothing, with a root of busybox in Debian's place."""
from __future__ import annotations

import configparser
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.bare import debian13

DEB822 = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    busybox = shutil.which("busybox")
    assert busybox
    folder = tmp_path / "bare"
    (folder / "bin").mkdir(parents=True)
    (folder / debian13.CHECKOUT).mkdir(parents=True)
    shutil.copy(busybox, folder / "bin/busybox")
    for name in ("sh", "find", "mkdir", "mount", "umount", "chmod", "ln", "echo", "unshare", "id", "sleep", "cat", "true"):
        (folder / "bin" / name).symlink_to("busybox")
    return folder


def test_apt_uses_this_machines_mirrors_with_the_other_suite(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/other.list").write_text("deb http://other.example/apt stable main\n")
    assert debian13.apt_lines("bookworm", str(tmp_path)) == [
        "deb http://mirror.example/debian trixie main", "deb http://mirror.example/debian trixie-updates main"]


@pytest.mark.parametrize("suite", ["", "noble"])
def test_apt_on_no_debian_uses_the_public_archive(tmp_path: Path, suite: str) -> None:
    assert [line.split()[2] for line in debian13.apt_lines(suite, str(tmp_path))] == ["trixie", "trixie-updates", "trixie-security"]


def test_pip_is_set_up_as_here(tmp_path: Path) -> None:
    wheels, simple, constraint = tmp_path / "wheels", tmp_path / "pypi/simple", tmp_path / "constraints.txt"
    wheels.mkdir()
    simple.mkdir(parents=True)
    constraint.write_text("a<2\n")
    links = f"file://{simple} /nowhere"
    setup = debian13.pip_setup(
        f"global.extra-index-url='{links}'\nglobal.constraint='{constraint}'\ninstall.user='no'\n"
        f":env:.find-links='{wheels}\\n{wheels}'\nnot a setting\n")
    parsed = configparser.ConfigParser()       # as pip reads it
    parsed.read_string(setup.text)
    assert parsed["global"]["extra-index-url"] == links
    assert parsed["global"]["find-links"].split() == [str(wheels), str(wheels)]
    assert parsed["install"]["user"] == "no"
    assert setup.files == (str(constraint),)
    assert set(setup.folders) == {str(wheels), str(simple.parent)}


def test_the_command_runs_there_and_nothing_of_it_stays(root: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "file").write_text("seen")
    before = Path("/proc/self/mounts").read_text()
    script = f"set -e; cat {shown}/file > /seen; ! echo x > {shown}/new; unshare -U -r true; (sleep 1000 &); exit 3"
    assert debian13.run_inside(root, ["sh", "-c", script], [str(shown)]) == 3
    assert (root / "seen").read_text() == "seen"
    assert not (shown / "new").exists()
    assert Path("/proc/self/mounts").read_text() == before
    assert not list((root / "dev").iterdir())       # its nodes were mounts


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ending_the_program_ends_all_that_runs_there(root: Path, how: signal.Signals) -> None:
    fifo = root / "alive"
    os.mkfifo(fifo)
    program = (
        "import signal, sys; from pathlib import Path; from tests.bare import debian13; signal.signal(15, debian13._interrupt)\n"
        "debian13.GRACE = 0; debian13.run_inside(Path(sys.argv[1]), ['sh', '-c', 'exec 5> /alive; echo up >&5; sleep 1000'])")
    process = subprocess.Popen([sys.executable, "-c", program, str(root)], cwd=debian13.PROJECT, stderr=subprocess.DEVNULL)
    try:
        with open(fifo, "rb") as reader:
            assert reader.readline() == b"up\n"
            process.send_signal(how)
            assert reader.read() == b""             # its end: no process holds the other one
        process.wait(20)
    finally:
        process.kill()
        process.wait()
