"""The kernels' pool, with a kernel package and tools of our own making in place of the archive's."""
from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cloison.runtime.paths import Paths
from cloison.templates import initramfs, kernel_tree, kernels
from cloison.templates.contain import ToolFailed, Tools

RELEASE = "6.1.0-9-cloud-amd64"
# Puts a prepared tree where mmdebstrap would put Debian's.
FAKE_MMDEBSTRAP = """#!/bin/sh
for last in "$@"; do case $last in */kernel-tree) target=$last;; esac; done
exec cp -r "$(dirname "$0")/../package" "$target"
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    result = Paths.from_environment({"CLOISON_ROOT": str(tmp_path / "root")})
    result.ensure()
    return result


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tree = tmp_path / "package"
    modules = tree / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in initramfs.NEEDED))
    (modules / "modules.order").write_text("")
    (tree / "boot").mkdir()
    (tree / f"boot/vmlinuz-{RELEASE}").write_bytes(b"kernel")
    (tree / "bin").mkdir()
    (tree / "bin/busybox").write_bytes(b"busybox")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "mmdebstrap").write_text(FAKE_MMDEBSTRAP)
    (programs / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tree


def install(paths: Paths) -> str:
    folder = Path(paths.tmp, "work")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return kernels.install(paths, Tools(str(folder / "log")), str(folder), suite="bookworm", lines=[])


def content(paths: Paths, version: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(paths.kernels, version).iterdir()}


def test_installed_whole_and_once(paths: Paths, package: Path) -> None:
    assert install(paths) == RELEASE
    first = content(paths, RELEASE)
    assert set(first) == {"vmlinuz", "initramfs", "modules.img"}
    assert first["vmlinuz"] == b"kernel"
    assert first["modules.img"][:4] == b"hsqs"
    assert install(paths) == RELEASE
    assert content(paths, RELEASE) == first
    assert kernels.installed(paths) == [RELEASE]


def test_another_build_of_the_same_release_gets_a_number(paths: Paths, package: Path) -> None:
    install(paths)
    (package / f"boot/vmlinuz-{RELEASE}").write_bytes(b"rebuilt")
    assert install(paths) == f"{RELEASE}.1"
    assert install(paths) == f"{RELEASE}.1"
    assert content(paths, RELEASE)["vmlinuz"] == b"kernel"


def test_changed_recipe_renews_the_initramfs_only(paths: Paths, package: Path) -> None:
    install(paths)
    before = content(paths, RELEASE)
    (package / "bin/busybox").write_bytes(b"newer busybox")
    assert install(paths) == RELEASE
    after = content(paths, RELEASE)
    assert b"newer busybox" in after["initramfs"]
    assert {name: after[name] for name in ("vmlinuz", "modules.img")} == {name: before[name] for name in ("vmlinuz", "modules.img")}


def test_package_without_a_kernel_is_refused(paths: Paths, package: Path) -> None:
    (package / f"boot/vmlinuz-{RELEASE}").unlink()
    with pytest.raises(kernel_tree.BadKernelPackage, match="no boot/vmlinuz"):
        install(paths)
    assert kernels.installed(paths) == []


@pytest.mark.parametrize("name", ["evil", "../x", "6.1.0 x"])
def test_release_is_checked(paths: Paths, package: Path, name: str) -> None:
    target = package / "lib/modules" / name.replace("/", "_")
    (package / "lib/modules" / RELEASE).rename(target)
    with pytest.raises(kernel_tree.BadKernelPackage):
        install(paths)


def test_failed_download_changes_nothing(paths: Paths, package: Path) -> None:
    shutil.rmtree(package)
    with pytest.raises(ToolFailed, match="mmdebstrap failed"):
        install(paths)
    assert kernels.installed(paths) == []


def test_versions_sort_as_numbers(paths: Paths) -> None:
    for version in ("6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64", "6.12.1-cloud-amd64", "half"):
        folder = Path(paths.kernels, version)
        folder.mkdir(parents=True)
        for name in kernels.FILES if version != "half" else ("vmlinuz",):
            (folder / name).write_bytes(b"")
    assert kernels.installed(paths) == ["6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.1-cloud-amd64"]


def listed(paths: Paths, version: str, file: str = "modules.img") -> set[str]:
    image = os.path.join(paths.kernels, version, file)
    command = ["unsquashfs", "-l", "-dest", "", image]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines())


def test_debian_13s_places_and_packing(paths: Paths, package: Path) -> None:
    """Everything below usr, modules compressed: what is made has none compressed, and depmod has seen them."""
    (package / "usr").mkdir()
    for name in ("lib", "bin"):
        (package / name).rename(package / "usr" / name)
    modules = package / "usr/lib/modules" / RELEASE
    (modules / "kernel").mkdir()
    (modules / "kernel/plain.ko").write_bytes(b"plain")
    (modules / "kernel/packed.ko.xz").write_bytes(lzma.compress(b"packed"))
    (modules / "kernel/zipped.ko.gz").write_bytes(gzip.compress(b"zipped"))
    (modules / "build").symlink_to("/usr/src")
    assert install(paths) == RELEASE
    found = listed(paths, RELEASE)
    assert {"/kernel/plain.ko", "/kernel/packed.ko", "/kernel/zipped.ko", "/modules.dep"} <= found
    assert not any(name.endswith((".xz", ".gz", "build")) for name in found)
    assert content(paths, RELEASE)["vmlinuz"] == b"kernel"


@pytest.mark.parametrize(("name", "data"), [("x.ko.xz", b"no"), ("x.ko.zst", b""), ("x.ko.xz", lzma.compress(b"long")[:-9])])
def test_a_module_that_cant_be_unpacked_is_named(paths: Paths, package: Path, name: str, data: bytes) -> None:
    (package / "lib/modules" / RELEASE / name).write_bytes(data)
    with pytest.raises(kernel_tree.BadKernelPackage, match=r"x\.ko"):
        install(paths)
    assert kernels.installed(paths) == []


def test_an_unpacked_module_has_a_limit(paths: Paths, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_tree, "MAX_MODULE", 3)
    (package / "lib/modules" / RELEASE / "x.ko.xz").write_bytes(lzma.compress(b"abc"))
    install(paths)
    (package / "lib/modules" / RELEASE / "x.ko.xz").write_bytes(lzma.compress(b"abcd"))
    with pytest.raises(kernel_tree.BadKernelPackage, match="larger"):
        install(paths)


def own(tmp_path: Path) -> tuple[str, str]:
    modules = tmp_path / "own" / RELEASE
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in initramfs.NEEDED))
    (modules / "modules.order").write_text("")
    (tmp_path / "own/bzImage").write_bytes(b"my kernel, and busybox")
    return str(tmp_path / "own/bzImage"), str(modules)


def install_own(paths: Paths, vmlinuz: str, modules: str) -> str:
    folder = Path(paths.tmp, "work")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    kernel = kernel_tree.of_files(vmlinuz, modules, vmlinuz)
    return kernels.install_tree(paths, Tools(str(folder / "log")), str(folder), kernel)


def test_a_persons_own_kernel(paths: Paths, tmp_path: Path) -> None:
    vmlinuz, modules = own(tmp_path)
    assert install_own(paths, vmlinuz, modules + "/") == RELEASE
    assert install_own(paths, vmlinuz, modules) == RELEASE
    assert content(paths, RELEASE)["vmlinuz"] == b"my kernel, and busybox"
    assert os.listdir(modules)                                # theirs is as it was
    Path(modules, "kernel/new.ko").write_bytes(b"new")        # another folder of modules is another version
    assert install_own(paths, vmlinuz, modules) == f"{RELEASE}.1"


@pytest.mark.parametrize("broken", ["vmlinuz", "modules", "name"])
def test_what_is_no_kernel_is_refused(paths: Paths, tmp_path: Path, broken: str) -> None:
    vmlinuz, modules = own(tmp_path)
    if broken == "vmlinuz":
        os.unlink(vmlinuz)
    elif broken == "modules":
        os.rmdir(os.path.join(modules, "kernel"))
    else:
        modules = shutil.move(modules, str(tmp_path / "own/modules"))
    with pytest.raises(kernel_tree.BadKernelFiles):
        install_own(paths, vmlinuz, modules)
    assert kernels.installed(paths) == []
