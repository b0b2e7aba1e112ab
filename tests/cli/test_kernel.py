"""cloison kernel: from a package or from files into the pool, who uses what, and nothing removed that is used."""
from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, Refused

from cloison.cli import kernel, main
from cloison.errors import HostError
from cloison.runtime.paths import Paths
from cloison.templates import kernel_tree, kernels
from cloison.wire import admin

OLD, NEW = "6.1.0-9-cloud-amd64", "6.12.1-cloud-amd64"


@pytest.fixture
def paths() -> Paths:
    return Paths.from_environment()


@pytest.fixture
def pool(qubesd: FakeQubesd, paths: Paths) -> Path:
    """Two kernels; the older one is the default and a qube's."""
    for version in (OLD, NEW):
        folder = Path(paths.kernels, version)
        folder.mkdir(parents=True)
        for name in kernels.FILES:
            (folder / name).write_bytes(b"x" * 4096)
    qubesd.qubes["dom0"]["default_kernel"] = OLD
    for name, version in (("debian-12", OLD), ("work", OLD), ("sys-net", "")):
        qubesd.qubes[name]["kernel"] = version
    return Path(paths.kernels)


def run(*words: str) -> int:
    return main.main(["kernel", *words])


def test_list_says_who_uses_each(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[3]) for row in rows] == [(OLD, "the default, debian-12, work"), (NEW, "unused")]


def test_an_empty_pool_is_no_failure(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.qubes["dom0"]["default_kernel"] = ""
    for name in ("debian-12", "work", "sys-net"):
        qubesd.qubes[name]["kernel"] = ""
    assert run("list") == 0
    assert capsys.readouterr() == ("", "cloison: There is no kernel yet. A template brings one: cloison template build debian-13\n")


def test_an_unused_one_is_removed(pool: Path, paths: Paths) -> None:
    assert run("remove", NEW) == 0
    assert os.listdir(pool) == [OLD]
    assert [name for name in os.listdir(paths.tmp) if not name.startswith(".")] == []


@pytest.mark.parametrize(("default", "qube"), [(NEW, ""), ("", NEW)])
def test_one_in_use_is_not(
    pool: Path, qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str], default: str, qube: str,
) -> None:
    qubesd.qubes["dom0"]["default_kernel"] = default
    qubesd.qubes["sys-net"]["kernel"] = qube
    assert run("remove", NEW) == 1
    assert ("the default" if default else "sys-net") in capsys.readouterr().err
    assert sorted(os.listdir(pool)) == [OLD, NEW]


def test_one_that_is_taken_up_just_then_comes_back(pool: Path, qubesd: FakeQubesd) -> None:
    def get(fake: FakeQubesd, request: admin.Request) -> bytes:
        gone = not (pool / NEW).exists()
        return admin.ok(f"default=False type=str {NEW if gone and request.dest == 'work' else OLD}".encode())
    qubesd.answers["admin.vm.property.Get"] = get
    assert run("remove", NEW) == 1
    assert sorted(os.listdir(pool)) == [OLD, NEW]
    assert set(os.listdir(pool / NEW)) == set(kernels.FILES)


@pytest.mark.parametrize(("refusal", "status"), [("QubesVMNotFoundError", 0), ("PermissionDenied", 1)])
def test_silence_is_not_unused(pool: Path, qubesd: FakeQubesd, refusal: str, status: int) -> None:
    """A qube that is gone uses nothing; one that can't be asked may."""
    def get(fake: FakeQubesd, request: admin.Request) -> bytes:
        if request.dest == "work":
            raise Refused(refusal, "no")
        return admin.ok(b"default=False type=str ")
    qubesd.answers["admin.vm.property.Get"] = get
    assert (run("remove", NEW) == 0) == (status == 0)
    assert (pool / NEW).exists() == (status == 1)


@pytest.mark.parametrize("version", ["5.0", "../vm-kernels", "", ".", OLD + "/"])
def test_only_a_version_of_the_pool_is_removed(pool: Path, version: str) -> None:
    assert run("remove", version) == 1
    assert sorted(os.listdir(pool)) == [OLD, NEW]


def test_no_qubesd_nothing_happens(root: Path, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add") == 1
    assert "cloison up" in capsys.readouterr().err
    assert not os.path.exists(paths.kernels)


@pytest.mark.parametrize(("words", "suite", "package"), [
    ([], "trixie", "linux-image-cloud-amd64"), (["linux-image-amd64", "--suite", "debian-12"], "bookworm", "linux-image-amd64"),
])
@pytest.mark.parametrize("default", ["", OLD])
def test_from_debian(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], suite: str,
    package: str, default: str,
) -> None:
    qubesd.qubes["dom0"]["default_kernel"] = default
    asked = []

    def install(*_: object, suite: str, lines: list[str], package: str, **__: object) -> str:
        asked.append((suite, package))
        assert all(f" {suite}" in line for line in lines)
        return NEW
    monkeypatch.setattr(kernels, "install", install)
    assert run("add", *words) == 0
    assert asked == [(suite, package)]
    out = capsys.readouterr().out.splitlines()
    assert package in out[0] and suite in out[0]
    assert NEW in out[-1]
    assert qubesd.qubes["dom0"]["default_kernel"] == (default or NEW)     # a default that is set stays


@pytest.mark.parametrize("words", [
    ["linux image"], ["--suite", "a b"], ["--mirror", "/etc"], ["--vmlinuz", "/x"], ["--modules", "/x"],
])
def test_refused_before_any_work(qubesd: FakeQubesd, paths: Paths, words: list[str]) -> None:
    assert run("add", *words) in (1, 2)
    assert qubesd.calls == []
    assert not os.path.exists(paths.kernels)


def test_from_files(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    modules = tmp_path / "6.12.1-mine"
    (modules / "kernel").mkdir(parents=True)
    (tmp_path / "bzImage").write_bytes(b"kernel")
    qubesd.qubes["dom0"]["default_kernel"] = OLD
    seen: list[kernel_tree.KernelTree] = []
    monkeypatch.setattr(kernel, "find", lambda _: "/bin/sh")
    monkeypatch.setattr(kernel_tree, "_LOADER", b"no program has this")
    monkeypatch.setattr(kernels, "install_tree", lambda paths, tools, folder, tree: seen.append(tree) or tree.release)
    assert run("add", "--vmlinuz", str(tmp_path / "bzImage"), "--modules", str(modules)) == 0
    assert seen == [kernel_tree.KernelTree(str(tmp_path / "bzImage"), str(modules), "/bin/sh")]
    assert "qvm-prefs QUBE kernel 6.12.1-mine" in capsys.readouterr().out


@pytest.mark.parametrize(("vmlinuz", "modules", "sentence"), [
    ("bzImage", "modules", "is not named after a kernel's release"), ("bzImage", "6.1.0-x", "has no folder kernel/"),
    ("nosuch", "6.12.1-mine", "nosuch is not a file"),
])
def test_files_that_are_no_kernel(
    qubesd: FakeQubesd, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmlinuz: str, modules: str, sentence: str,
) -> None:
    """Whoever gave files is not told to name a package."""
    for folder in ("6.12.1-mine/kernel", "6.1.0-x", "modules/kernel"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bzImage").write_bytes(b"kernel")
    assert run("add", "--vmlinuz", str(tmp_path / vmlinuz), "--modules", str(tmp_path / modules)) == 1
    said = capsys.readouterr().err
    assert sentence in said and "hint: Give --vmlinuz the image of a kernel, and --modules the folder" in said


def test_no_space_is_told_before_any_work(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kernel, "NEEDED_SPACE", 1 << 60)
    monkeypatch.setattr(kernels, "install", lambda *_, **__: pytest.fail("it began"))
    assert run("add") == 1
    assert "a build needs 1073741824 GiB free" in capsys.readouterr().err


def test_a_busybox_with_libraries_is_refused(tmp_path: Path) -> None:
    (tmp_path / "6.1/kernel").mkdir(parents=True)
    (tmp_path / "busybox").write_bytes(b"\x7fELF.../lib64/ld-linux-x86-64.so.2\0")
    with pytest.raises(HostError, match="busybox-static"):
        kernel_tree.of_files("/bin/sh", str(tmp_path / "6.1"), str(tmp_path / "busybox"))


def test_what_mmdebstrap_tells_itself_is_no_progress() -> None:
    seen: list[str] = []
    steps = kernel._Steps(lambda _, words: seen.append(words))
    for line in ("I: running apt-get update...", "Get:1 http://x", "I: main() received signal PIPE: waiting for setup..."):
        steps(line)
    assert seen == ["running apt-get update"]
