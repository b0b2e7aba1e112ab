"""Warm images: what their key depends on, whole or not there, and RAM that no machine can change."""
from __future__ import annotations

import dataclasses
import errno
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.errors import MachineError
from cloison.hypervisor.qemu import warm
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer

MEGABYTE = 1 << 20
Change = Callable[[Launch], Launch]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """A launch whose files exist."""
    for name in ("root.1.img", "private.1.img", "vmlinuz", "initramfs", "modules.img"):
        (tmp_path / name).write_text(name)
    disks = (
        DiskSource("root", 10 << 30, (Layer(str(tmp_path / "root.1.img"), "raw"),), commit="c1"),
        DiskSource("private", 2 << 30, (Layer(str(tmp_path / "private.1.img"), "raw"),)),
        DiskSource("volatile", 10 << 30),
        DiskSource("modules", 1 << 20, (Layer(str(tmp_path / "modules.img"), "raw"),), writable=False),
    )
    kernel = Kernel("6.1", *(str(tmp_path / name) for name in ("vmlinuz", "initramfs", "modules.img")))
    return Launch("work", "00000000-0000-4000-8000-000000000001", 1, 32, 2, disks, kernel, identity={"/name": "work"})


def root(launch: Launch, **changes: Any) -> Launch:
    first, *rest = launch.disks
    return dataclasses.replace(launch, disks=(dataclasses.replace(first, **changes), *rest))


SAME: dict[str, Change] = {
    "name": lambda launch: dataclasses.replace(launch, name="other"),
    "uuid": lambda launch: dataclasses.replace(launch, uuid="00000000-0000-4000-8000-000000000002"),
    "xid": lambda launch: dataclasses.replace(launch, xid=99),
    "identity": lambda launch: dataclasses.replace(launch, identity={"/name": "other", "/qubes-ip": "10.0.0.1"}),
    "default user": lambda launch: dataclasses.replace(launch, default_user="root"),
    "start timeout": lambda launch: dataclasses.replace(launch, start_timeout=5),
    "an image it has": lambda launch: dataclasses.replace(launch, warm="/somewhere"),
    "private's content": lambda launch: dataclasses.replace(launch, disks=(
        launch.disks[0], dataclasses.replace(launch.disks[1], layers=(Layer("/gone", "qcow2"),)), *launch.disks[2:])),
    "private's size": lambda launch: dataclasses.replace(launch, disks=(
        launch.disks[0], dataclasses.replace(launch.disks[1], size=5 << 30), *launch.disks[2:])),
}
OTHER: dict[str, Change] = {
    "memory": lambda launch: dataclasses.replace(launch, memory=33),
    "vcpus": lambda launch: dataclasses.replace(launch, vcpus=1),
    "accelerator": lambda launch: dataclasses.replace(launch, accelerator="kvm"),
    "kernelopts": lambda launch: dataclasses.replace(launch, kernelopts="quiet"),
    "commit": lambda launch: root(launch, commit="c2"),
    "root's file": lambda launch: root(launch, layers=(Layer(launch.kernel.vmlinuz, "raw"),)),
    "one more root layer": lambda launch: root(launch, layers=(*launch.disks[0].layers, Layer(launch.kernel.vmlinuz, "qcow2"))),
    "kernel": lambda launch: dataclasses.replace(launch, kernel=dataclasses.replace(launch.kernel, vmlinuz=launch.kernel.modules)),
    "initramfs": lambda launch: dataclasses.replace(
        launch, kernel=dataclasses.replace(launch.kernel, initramfs=launch.kernel.modules)),
    "modules": lambda launch: dataclasses.replace(launch, kernel=dataclasses.replace(launch.kernel, modules=launch.kernel.vmlinuz)),
    "no private": lambda launch: dataclasses.replace(launch, disks=(launch.disks[0], *launch.disks[2:])),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_key_does_not_depend_on(launch: Launch, change: Change) -> None:
    assert warm.key(change(launch)) == warm.key(launch)


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_key_depends_on(launch: Launch, change: Change) -> None:
    assert warm.key(change(launch)) != warm.key(launch)


@pytest.mark.parametrize("name", ["root.1.img", "vmlinuz", "initramfs", "modules.img"])
def test_another_file_under_the_same_name_is_another_key(launch: Launch, tmp_path: Path, name: str) -> None:
    before = warm.key(launch)
    (tmp_path / "new").write_text(name)
    os.rename(tmp_path / "new", tmp_path / name)
    assert warm.key(launch) != before


def test_file_that_is_gone_is_an_error(launch: Launch) -> None:
    os.unlink(launch.kernel.initramfs)
    with pytest.raises(MachineError, match="initramfs can't be read"):
        warm.key(launch)


def test_key_is_a_file_name(launch: Launch) -> None:
    assert len(warm.key(launch)) == 32 and int(warm.key(launch), 16) >= 0


# -- on disk -------------------------------------------------------------------------------------------------------------------


def make_work(base: Path, name: str = "making-1") -> Path:
    work = base / name
    work.mkdir(parents=True)
    for part in (warm.RAM, warm.STATE, warm.DISK):
        (work / part).write_text(part)
    return work


def finish(base: Path, launch: Launch) -> Path:
    return Path(warm.finish(str(make_work(base)), str(base), launch))


def test_finished_image_is_whole_and_read_only(launch: Launch, tmp_path: Path) -> None:
    base = tmp_path / "warm"
    image = finish(base, launch)
    assert os.listdir(base) == [warm.key(launch)] == warm.names(str(base)) and warm.folder(str(base), image.name) == str(image)
    assert sorted(os.listdir(image)) == [warm.DISK, warm.MANIFEST, warm.RAM, warm.STATE]
    assert [(image / name).stat().st_mode & 0o777 for name in (warm.RAM, warm.STATE, warm.DISK)] == [0o400] * 3
    assert warm.commit(str(base), image.name) == "c1" and warm.layer(str(image)) == Layer(str(image / warm.DISK), "qcow2")
    assert json.loads((image / warm.MANIFEST).read_text())["shape"]


def test_second_maker_keeps_the_first_image(launch: Launch, tmp_path: Path) -> None:
    base = tmp_path / "warm"
    first = finish(base, launch)
    before = (first / warm.RAM).stat().st_ino
    assert finish(base, launch) == first
    assert (first / warm.RAM).stat().st_ino == before and os.listdir(base) == [first.name]


def test_half_dropped_image_gives_way_to_a_new_one(launch: Launch, tmp_path: Path) -> None:
    base = tmp_path / "warm"
    image = finish(base, launch)
    (image / warm.MANIFEST).unlink()
    assert warm.folder(str(base), image.name) is None
    assert finish(base, launch) == image and warm.names(str(base)) == [image.name]
    assert len(os.listdir(image)) == 4


@pytest.mark.parametrize("missing", [warm.RAM, warm.STATE, warm.DISK])
def test_unfilled_work_folder_is_no_image(launch: Launch, tmp_path: Path, missing: str) -> None:
    base = tmp_path / "warm"
    work = make_work(base)
    (work / missing).unlink()
    with pytest.raises(FileNotFoundError):
        warm.finish(str(work), str(base), launch)
    assert warm.names(str(base)) == []


FINISH = """
import sys
sys.path[:0] = sys.argv[4:]
from cloison.hypervisor.qemu import warm
from cloison.wire.warden import Lines, launch_from_json
launch = launch_from_json(Lines().feed(sys.argv[3].encode() + b"\\n")[0])
warm.finish(sys.argv[1], sys.argv[2], launch)
"""


@pytest.mark.parametrize(("fault", "status"), [("warm:synced", -signal.SIGKILL), ("warm:synced=enospc", 1), ("warm:synced=eio", 1)])
def test_fault_while_finishing_leaves_no_half_image(launch: Launch, tmp_path: Path, fault: str, status: int) -> None:
    base = tmp_path / "warm"
    work = make_work(base)
    text = json.dumps(dataclasses.asdict(launch))
    done = subprocess.run([sys.executable, "-c", FINISH, str(work), str(base), text, *sys.path],
                          env={**os.environ, "CLOISON_FAULT": fault}, capture_output=True, check=False)
    assert done.returncode == status
    assert warm.names(str(base)) == [] and warm.folder(str(base), warm.key(launch)) is None
    warm.sweep(str(base))
    assert os.listdir(base) == []


def test_drop_twice(launch: Launch, tmp_path: Path) -> None:
    base = tmp_path / "warm"
    image = finish(base, launch)
    for _ in range(2):
        warm.drop(str(base), image.name)
        assert os.listdir(base) == []


def test_sweep_keeps_what_is_true_and_what_is_asked_for(launch: Launch, tmp_path: Path) -> None:
    base = tmp_path / "warm"
    image = finish(base, launch)
    make_work(base, "making-2")
    make_work(base, "making-3")
    warm.sweep(str(base), keep=["making-3"])
    assert sorted(os.listdir(base)) == sorted([image.name, "making-3"])


@pytest.mark.parametrize("damage", [
    "", "{}", "[]", "null", '{"format": 1}', '{"format": 1, "root": 5, "boot": []}', "\xff", "kernel", "version",
])
def test_sweep_drops_images_whose_origin_is_gone_or_unknown(launch: Launch, tmp_path: Path, damage: str) -> None:
    base = tmp_path / "warm"
    image = finish(base, launch)
    if damage == "kernel":
        Path(launch.kernel.vmlinuz).write_text("another kernel")
    elif damage == "version":                            # made by another version of ours, whole and true
        manifest = image / warm.MANIFEST
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": warm.FORMAT + 1}))
    else:
        (image / warm.MANIFEST).write_bytes(damage.encode("latin-1"))
        assert warm.commit(str(base), image.name) == ""
    warm.sweep(str(base))
    assert os.listdir(base) == []


# -- in memory -------------------------------------------------------------------------------------------------------------------


def ram(folder: Path, *pieces: tuple[int, bytes], size: int = 32 * MEGABYTE) -> str:
    """A sparse `ram` with these bytes at these places."""
    with open(folder / warm.RAM, "wb") as file:
        file.truncate(size)
        for position, data in pieces:
            file.seek(position)
            file.write(data)
    return str(folder)


def test_loaded_ram_is_the_file_and_its_holes_stay_holes(tmp_path: Path) -> None:
    zeros = bytes(MEGABYTE)
    folder = ram(tmp_path, (0, b"first"), (5 * MEGABYTE + 17, b"x" * 100_000), (10 * MEGABYTE, zeros), (32 * MEGABYTE - 4, b"last"))
    fd = warm.load_ram(folder)
    try:
        status = os.fstat(fd)
        assert status.st_size == 32 * MEGABYTE and status.st_blocks * 512 < MEGABYTE
        assert os.pread(fd, 32 * MEGABYTE, 0) == (tmp_path / warm.RAM).read_bytes()
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 4096, MEGABYTE + 1])
def test_loaded_ram_of_any_size(tmp_path: Path, size: int) -> None:
    folder = ram(tmp_path, *[(size - 1, b"!")] if size else [], size=size)
    fd = warm.load_ram(folder)
    assert os.pread(fd, size + 1, 0) == (tmp_path / warm.RAM).read_bytes()
    os.close(fd)


def test_warm_ram_cannot_be_changed_by_a_machine(tmp_path: Path) -> None:
    """Not by writing, not by a shared mapping, not by another size, not by a new seal; a private mapping is what QEMU needs."""
    fd = warm.load_ram(ram(tmp_path, (0, b"secret"), size=MEGABYTE))
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    for each in (fd, again):
        for change in (
            lambda fd=each: os.pwrite(fd, b"x", 0), lambda fd=each: os.ftruncate(fd, 0),
            lambda fd=each: os.ftruncate(fd, 2 * MEGABYTE),
            lambda fd=each: mmap.mmap(fd, MEGABYTE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EPERM
    with mmap.mmap(fd, MEGABYTE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as private:
        private[:6] = b"mine!!"
        assert private[:6] == b"mine!!"
    assert os.pread(fd, 6, 0) == b"secret"
    os.close(again)
    os.close(fd)


def test_image_without_ram_is_an_error(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MachineError, match="can't be read"):
        warm.load_ram(str(tmp_path))
    (tmp_path / warm.RAM).mkdir()
    with pytest.raises(MachineError, match="can't be loaded"):
        warm.load_ram(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == len(before)


# -- whole images ----------------------------------------------------------------------------------------------------------------


def test_a_loaded_image_is_what_was_saved_and_stays_so(launch: Launch, tmp_path: Path) -> None:
    image = finish(tmp_path / "warm", launch)
    memory = warm.load(str(image))
    for fd, name in ((memory.ram, warm.RAM), (memory.state, warm.STATE)):
        content = (image / name).read_bytes()
        assert os.pread(fd, len(content) + 1, 0) == content
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        os.close(fd)


@pytest.mark.parametrize("name", [warm.RAM, warm.STATE, warm.DISK])
@pytest.mark.parametrize("missing", [True, False])
def test_a_damaged_image_is_not_loaded_and_nothing_stays_open(launch: Launch, tmp_path: Path, name: str, missing: bool) -> None:
    image = finish(tmp_path / "warm", launch)
    os.chmod(image / name, 0o600)
    if missing:
        os.unlink(image / name)
    else:
        data = (image / name).read_bytes() or b"x"
        (image / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(warm.DamagedImage, match=name):
        warm.load(str(image))
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has boxes of other users")
def test_a_finished_image_belongs_to_us_and_not_to_the_box_it_was_made_in(launch: Launch, tmp_path: Path) -> None:
    base = tmp_path / "warm"
    base.mkdir()
    work = make_work(base, "making-1")
    os.chown(work / warm.RAM, 1_900_000_001, 1_900_000_001)
    image = Path(warm.finish(str(work), str(base), launch))
    for name in (warm.RAM, warm.STATE, warm.DISK):
        status = (image / name).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (os.geteuid(), os.getegid(), 0o400)
