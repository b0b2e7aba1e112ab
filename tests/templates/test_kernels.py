"""The kernels' pool, with a kernel package and tools of our own making in place of the archive's."""
from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cloison.runtime.paths import Paths
from cloison.templates import initramfs, kernels
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
    with pytest.raises(kernels.BadKernelPackage, match="no boot/vmlinuz"):
        install(paths)
    assert kernels.installed(paths) == []


@pytest.mark.parametrize("name", ["evil", "../x", "6.1.0 x"])
def test_release_is_checked(paths: Paths, package: Path, name: str) -> None:
    target = package / "lib/modules" / name.replace("/", "_")
    (package / "lib/modules" / RELEASE).rename(target)
    with pytest.raises(kernels.BadKernelPackage):
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
