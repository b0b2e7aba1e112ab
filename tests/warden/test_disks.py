"""From a launch's disks to open files: which file, how opened, in which order, and nothing left open by a failure."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloison.errors import MachineError
from cloison.hypervisor.base import Disk
from cloison.hypervisor.qemu import warm
from cloison.warden import disks
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer

SIZE = 1 << 20


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    for name in ("root.1", "root.2", "private.1", "private.dirty", "modules"):
        (tmp_path / name).write_text(name)
    (tmp_path / "tmp").mkdir()

    def layer(name: str, format: str = "qcow2") -> Layer:
        return Layer(str(tmp_path / name), format)

    sources = (
        DiskSource("root", SIZE, (layer("root.1", "raw"), layer("root.2"))),
        DiskSource("private", SIZE, (layer("private.1"),), top=layer("private.dirty")),
        DiskSource("volatile", SIZE), DiskSource("modules", SIZE, (layer("modules", "raw"),), writable=False),
    )
    return Launch("work", "00000000-0000-4000-8000-000000000001", 1, 400, 2, sources, Kernel("6.1", "/k", "/i", "/m"))


def shown(found: tuple[Disk, ...]) -> dict[str, list[tuple[str, str, bool]]]:
    """(file, format, writable) of each disk's files, bottom first; the descriptors are closed. Their access is what is said."""
    result: dict[str, list[tuple[str, str, bool]]] = {}
    for disk in found:
        result[disk.role] = []
        for file in disk.files:
            with open(f"/proc/self/fdinfo/{file.fd}", encoding="ascii") as info:
                flags = int(next(line for line in info if line.startswith("flags")).split()[1], 8)
            path = os.readlink(f"/proc/self/fd/{file.fd}")
            name = "nameless" if path.endswith("(deleted)") else os.path.basename(path)
            assert (flags & os.O_ACCMODE == os.O_RDWR) is not file.read_only
            result[disk.role].append((name, file.format, not file.read_only))
            os.close(file.fd)
    return result


def test_cold(launch: Launch, tmp_path: Path) -> None:
    assert shown(disks.open_all(launch, str(tmp_path / "tmp"))) == {
        "root": [("root.1", "raw", False), ("root.2", "qcow2", False), ("nameless", "qcow2", True)],
        "private": [("private.1", "qcow2", False), ("private.dirty", "qcow2", True)],
        "volatile": [("nameless", "qcow2", True)], "modules": [("modules", "raw", False)],
    }
    assert os.listdir(tmp_path / "tmp") == []


def test_warm_puts_the_images_overlay_below_the_qubes_own(launch: Launch, tmp_path: Path) -> None:
    import dataclasses

    (tmp_path / "image").mkdir()
    (tmp_path / "image" / warm.DISK).write_text("")
    found = shown(disks.open_all(dataclasses.replace(launch, warm=str(tmp_path / "image")), str(tmp_path / "tmp")))
    assert found["root"][1:] == [("root.2", "qcow2", False), (warm.DISK, "qcow2", False), ("nameless", "qcow2", True)]
    assert found["private"] == [("private.1", "qcow2", False), ("private.dirty", "qcow2", True)]


def test_making_opens_nothing_of_the_qube(launch: Launch, tmp_path: Path) -> None:
    opened = disks.open_for_making(launch, str(tmp_path / "overlay"))
    assert {disk.role: disk.size for disk in opened} == {"root": SIZE, "modules": SIZE, **warm.MADE_SIZES}
    assert shown(opened) == {
        "root": [("root.1", "raw", False), ("root.2", "qcow2", False), ("overlay", "qcow2", True)],
        "private": [], "volatile": [], "modules": [("modules", "raw", False)],
    }


@pytest.mark.parametrize("missing", ["root.2", "private.dirty", "modules", "tmp"])
def test_missing_file_is_named_and_nothing_stays_open(launch: Launch, tmp_path: Path, missing: str) -> None:
    os.rename(tmp_path / missing, tmp_path / "elsewhere")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(MachineError, match=f"a disk can't be opened: .*{missing}: No such file"):
        disks.open_all(launch, str(tmp_path / "tmp"))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_link_in_a_files_place_is_refused(launch: Launch, tmp_path: Path) -> None:
    os.rename(tmp_path / "root.1", tmp_path / "elsewhere")
    (tmp_path / "root.1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MachineError, match="symbolic links"):
        disks.open_all(launch, str(tmp_path / "tmp"))


def test_making_over_an_overlay_that_exists_is_refused(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "overlay").write_text("another maker's")
    with pytest.raises(MachineError, match="File exists"):
        disks.open_for_making(launch, str(tmp_path / "overlay"))
    assert (tmp_path / "overlay").read_text() == "another maker's"
