"""From a launch's disks to open files: which file, how opened, in which order, and nothing left open by a failure."""
from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloison.errors import MachineError
from cloison.hypervisor.base import Disk
from cloison.hypervisor.qemu import warm
from cloison.warden import disks
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer, launch_to_json

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
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / warm.DISK).write_text("")
    found = shown(disks.open_all(dataclasses.replace(launch, warm=str(tmp_path / "image")), str(tmp_path / "tmp")))
    assert found["root"][1:] == [("root.2", "qcow2", False), (warm.DISK, "qcow2", False), ("nameless", "qcow2", True)]
    assert found["private"] == [("private.1", "qcow2", False), ("private.dirty", "qcow2", True)]


def secret(fd: int) -> bytes:
    """All that the pipe gives, until its end."""
    with open(fd, "rb") as pipe:
        return pipe.read()


def test_ephemeral_overlays_are_encrypted_each_with_a_secret_that_is_read_once(launch: Launch, tmp_path: Path) -> None:
    sources = tuple(dataclasses.replace(source, ephemeral=source.role in ("root", "volatile")) for source in launch.disks)
    found = {disk.role: disk for disk in disks.open_all(dataclasses.replace(launch, disks=sources), str(tmp_path / "tmp"))}
    secrets = {role: [file.secret_fd for file in disk.files if file.secret_fd is not None] for role, disk in found.items()}
    assert {role: len(fds) for role, fds in secrets.items()} == {"root": 1, "private": 0, "volatile": 1, "modules": 0}
    texts = [secret(*secrets[role]) for role in ("root", "volatile")]
    assert texts[0] != texts[1] and all(len(bytes.fromhex(text.decode())) == 32 for text in texts)
    for role in ("root", "volatile"):
        header = os.pread(found[role].files[-1].fd, 36, 0)
        assert header[:4] == b"QFI\xfb" and header[32:] == b"\0\0\0\2", "LUKS, says the header"
    shown(tuple(found.values()))


def test_no_secret_stays_open_when_a_later_disk_fails(launch: Launch, tmp_path: Path) -> None:
    sources = tuple(dataclasses.replace(source, ephemeral=source.role == "root") for source in launch.disks)
    os.unlink(tmp_path / "modules")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(MachineError, match="modules"):
        disks.open_all(dataclasses.replace(launch, disks=sources), str(tmp_path / "tmp"))
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("ephemeral", [True, False])
def test_the_cipher_is_loaded_only_where_it_is_needed(launch: Launch, ephemeral: bool) -> None:
    """By the process that forks wardens, before it does."""
    program = (
        "import json, sys; from cloison.warden import disks; from cloison.wire.warden import launch_from_json; "
        "disks.prepare(launch_from_json(json.load(sys.stdin))); print('cryptography' in sys.modules)")
    sources = tuple(dataclasses.replace(source, ephemeral=ephemeral and source.role == "volatile") for source in launch.disks)
    text = json.dumps(launch_to_json(dataclasses.replace(launch, disks=sources)))
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ephemeral)


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
