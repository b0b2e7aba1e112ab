"""A build whose tools only say what they were given: what is run, in which order, what is told, and what a failure ends."""
from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import pytest
from tests.patience import PATIENCE

from cloison.errors import HostError
from cloison.runtime.paths import Paths
from cloison.templates import agent_package, build, kernels
from cloison.templates.build import GIB, BuildRequest, Built, NoSpace
from cloison.templates.contain import ToolFailed, Tools

LINES = ("I: running apt-get update...", "I: something else", "I: downloading packages with apt...", "I: extracting archives...",
         "I: installing essential packages...", "I: downloading packages with apt...",
         "I: installing remaining packages inside the chroot...",
         "I: cleaning package lists and apt cache...", "I: success in 9 seconds")


class Used(NamedTuple):
    free: int


class Recorder:
    """In the place of `Tools`. `fails`: the program that fails; `said`: what the packing process says of the template."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.stopped = 0
        self.fails = ""
        self.said: object = {"qrexec": "1", "gui": ""}
        self.sources = ""

    def run(self, argv: Sequence[str], *, folder: str, on_line: Callable[[str], None] | None = None) -> None:
        self.ran.append(list(argv))
        name = "pack" if "cloison.templates.pack" in argv else argv[0]
        if name == self.fails:
            raise ToolFailed(name, 1, "/log", ["E: no"])
        for line in LINES if on_line else ():
            on_line(line)
        if name == "pack":
            self.sources = Path(argv[-2]).read_text()
            Path(argv[-1]).write_text(json.dumps(self.said))

    def stop(self) -> None:
        self.stopped += 1


class Build:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = Paths.from_environment({"CLOISON_ROOT": str(folder / "root")})
        self.paths.ensure()
        self.folder, self.tools, self.told = folder, Recorder(), cast(list[tuple[int, str]], [])
        self.kernel: Callable[..., str] = lambda *_, **__: "6.1.0"
        self.free = 4 * GIB
        monkeypatch.setattr(kernels, "install", self._install)
        monkeypatch.setattr(agent_package, "build", lambda tools, at: f"{at}/repository")
        monkeypatch.setattr(agent_package, "digest", lambda: "d1")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Used(self.free))

    def _install(self, *words: object, **named: object) -> str:
        return self.kernel(*words, **named)

    def __call__(self, request: BuildRequest | None = None) -> Built:
        return build.build(request or BuildRequest("d", "bookworm"), self.paths, str(self.folder), cast(Tools, self.tools),
                           lambda percent, words: self.told.append((percent, words)))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    return Build(tmp_path, monkeypatch)


def test_tree_then_image_of_what_was_asked_for(make: Build) -> None:
    request = BuildRequest("d", "bookworm", include=("vim", "curl", "vim"), size=3 * GIB, mirror="http://mirror.example/debian")
    built = make(request)
    tree, pack = make.tools.ran
    image = f"{make.folder}/root.img"
    include = next(word for word in tree if word.startswith("--include=")).removeprefix("--include=").split(",")
    assert (tree[0], tree[-1]) == ("mmdebstrap", f"deb [trusted=yes] copy:{make.folder}/repository ./")
    assert tree[tree.index("bookworm") + 1] == f"{make.folder}/tree"
    assert {"cloison-agent", "systemd-sysv", "vim", "curl"} <= set(include) and len(include) == len(set(include))
    assert any("http://mirror.example/debian bookworm main" in word for word in tree)
    assert pack[1:] == ["-m", "cloison.templates.pack", f"{make.folder}/tree", image, str(3 * GIB), f"{make.folder}/sources.list",
                        f"{make.folder}/offers.json"]
    assert "deb http://mirror.example/debian bookworm main\n" in make.tools.sources
    assert built == Built(image, "6.1.0", 3 * GIB, {"qrexec": "1", "gui": "", "cloison-agent": "d1"}, ("vim", "curl", "vim"))
    assert make.tools.stopped == 0


def test_the_agents_digest_is_ours_whatever_the_tree_says(make: Build) -> None:
    make.tools.said = {agent_package.FEATURE: "another"}
    assert make().offers == {agent_package.FEATURE: "d1"}


@pytest.mark.parametrize("said", [["gui"], {"gui": 1}, {"gui": None}, "gui"])
def test_a_template_that_says_no_features_is_none(make: Build, said: object) -> None:
    make.tools.said = said
    with pytest.raises(HostError, match="what the template offers"):
        make()


def test_progress_goes_up_by_what_mmdebstrap_says_and_ends_at_all(make: Build) -> None:
    make()
    percents = [percent for percent, _ in make.told]
    assert percents == sorted(percents) and percents[-2:] == [85, 100]
    assert [words for _, words in make.told[-2:]] == ["writing the image", "image written"]
    assert make.told[0] == (3 * 85 // 100, "running apt-get update") and len(make.told) == len(LINES) - 1 + 2


def test_the_kernel_is_told_of_without_going_back(make: Build) -> None:
    def kernel(*_: object, on_line: Callable[[str], None], lines: list[str], suite: str, package: str, **__: object) -> str:
        on_line("I: extracting archives")
        on_line("I: downloading packages")
        assert (suite, package) == ("bookworm", kernels.PACKAGE) and lines
        return "6.1.0"

    make.kernel = kernel
    make()
    assert [words for _, words in make.told].count("downloading the kernel") == 1


@pytest.mark.parametrize(("free", "enough"), [(3 * GIB - 1, False), (3 * GIB, True)])
def test_a_build_begins_only_with_room_for_it(make: Build, free: int, enough: bool) -> None:
    make.free = free
    if enough:
        make()
    else:
        with pytest.raises(NoSpace, match="needs 3 GiB free"):
            make()
    assert bool(make.tools.ran) is enough


@pytest.mark.parametrize("fails", ["mmdebstrap", "pack"])
def test_a_tree_that_fails_ends_the_kernels_tools_too(make: Build, fails: str) -> None:
    """And what is told is that failure, not the one that ending the others caused."""
    ended = threading.Event()
    make.tools.fails = fails
    stop = make.tools.stop
    make.tools.stop = lambda: (stop(), ended.set())[0]           # type: ignore[method-assign]

    def kernel(*_: object, **__: object) -> str:
        assert ended.wait(PATIENCE)
        raise ToolFailed("mmdebstrap", -9, "/log", ["killed"])

    make.kernel = kernel
    with pytest.raises(ToolFailed, match=rf"{fails} failed with status 1"):
        make()
    assert make.tools.stopped


def test_a_kernel_that_fails_is_told(make: Build) -> None:
    def kernel(*_: object, **__: object) -> str:
        raise HostError("no kernel")

    make.kernel = kernel
    with pytest.raises(HostError, match="no kernel"):
        make()
    assert make.tools.stopped


def test_an_interrupt_ends_the_tools(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make()
    assert make.tools.stopped == 1


# -- kernels: what is in the pool is there for good --------------------------------------------------------------------------


def made(folder: Path, **files: bytes) -> str:
    new = folder / "kernel-new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name, data in {"vmlinuz": b"k", "initramfs": b"i", "modules.img": b"m", **files}.items():
        (new / name.replace("_", ".")).write_bytes(data)
    return str(new)


def test_a_version_is_on_disk_before_it_has_its_name(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def synced(fd: int) -> None:
        steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    new = made(make.folder)
    monkeypatch.setattr(kernels.os, "fsync", synced)
    monkeypatch.setattr(kernels, "fsync_dir", lambda path: steps.append(os.path.basename(path)))
    monkeypatch.setattr(kernels, "rename", lambda old, to: (steps.append(f"-> {os.path.basename(to)}"), os.rename(old, to))[0])
    before = len(os.listdir("/proc/self/fd"))
    assert kernels._publish(make.paths, new, "6.1.0") == "6.1.0"
    assert steps == ["vmlinuz", "initramfs", "modules.img", "kernel-new", "-> 6.1.0"]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("number", "fine"), [(39, True), (28, False), (5, False)])
def test_another_build_may_have_been_first_and_nothing_else_is_forgiven(
    make: Build, monkeypatch: pytest.MonkeyPatch, number: int, fine: bool,
) -> None:
    def fails(_old: str, _new: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kernels, "rename", fails)
    if fine:
        assert kernels._publish(make.paths, made(make.folder), "6.1.0") == "6.1.0"
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            kernels._publish(make.paths, made(make.folder), "6.1.0")


def test_a_version_is_never_changed_but_for_its_initramfs(make: Build) -> None:
    def publish(**files: bytes) -> str:
        return kernels._publish(make.paths, made(make.folder, **files), "6.1.0")

    assert [publish(), publish(initramfs=b"j"), publish(vmlinuz=b"l"), publish(modules_img=b"n"), publish(modules_img=b"n"),
            publish()] == ["6.1.0", "6.1.0", "6.1.0.1", "6.1.0.2", "6.1.0.2", "6.1.0"]
    assert Path(make.paths.kernels, "6.1.0", "initramfs").read_bytes() == b"i"
    assert kernels.installed(make.paths) == ["6.1.0", "6.1.0.1", "6.1.0.2"]
    os.unlink(os.path.join(make.paths.kernels, "6.1.0.1", "vmlinuz"))
    assert kernels.installed(make.paths) == ["6.1.0", "6.1.0.2"], "half a version is none"
