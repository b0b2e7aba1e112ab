"""What a QEMU is handed: its own layers to write, all else in a form that nothing done to it gets past."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloison.errors import MachineError
from cloison.hypervisor import readonly, sandbox
from cloison.hypervisor.base import Disk, DiskFile, MachineSpec
from cloison.hypervisor.qemu.argv import Node, Ram
from cloison.hypervisor.qemu.handing import Handed, hand_over

USER = 1_900_000_007
root_only = pytest.mark.skipif(not sandbox.is_host_root(), reason="only the host's root makes mounts without a namespace")


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def spec(tmp_path: Path, opened: contextlib.ExitStack) -> MachineSpec:
    """Root on a commit, encrypted volatile, modules; to be booted."""
    def file(name: str, flags: int) -> int:
        (tmp_path / name).write_text(name)
        fd = os.open(tmp_path / name, flags | os.O_CLOEXEC)
        opened.callback(os.close, fd)
        return fd

    secret, writing = os.pipe()
    os.close(writing)
    opened.callback(os.close, secret)
    for name in ("vmlinuz", "initramfs"):
        (tmp_path / name).write_text(name)
    disks = (
        Disk("root", 1, (DiskFile(file("root.1", os.O_RDONLY), "raw", True, path=str(tmp_path / "root.1")),
                         DiskFile(file("top", os.O_RDWR), "qcow2", False))),
        Disk("volatile", 1, (DiskFile(file("overlay", os.O_RDWR), "qcow2", False, secret),)),
        Disk("modules", 1, (DiskFile(file("modules", os.O_RDONLY), "raw", True, path=str(tmp_path / "modules")),)),
    )
    return MachineSpec("", 32, 1, "tcg", disks, kernel=str(tmp_path / "vmlinuz"), initramfs=str(tmp_path / "initramfs"))


def fds(spec: MachineSpec) -> dict[str, int]:
    return {f"{disk.role}.{level}": file.fd for disk in spec.disks for level, file in enumerate(disk.files)}


def test_an_ordinary_users_box_opens_shared_files_by_names_of_its_own(
    spec: MachineSpec, opened: contextlib.ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "host_user", lambda: None)
    handed = hand_over(spec, opened)
    own = [fds(spec)["root.1"], fds(spec)["volatile.0"]]
    secret = spec.disks[1].files[0].secret_fd
    assert secret is not None
    assert sorted(handed.fds) == sorted([*own, secret]) and sorted(handed.sets) == sorted(own)
    assert handed.files == {"/disks/root.0": str(tmp_path / "root.1"), "/disks/modules.0": str(tmp_path / "modules"),
                            "/boot/vmlinuz": spec.kernel, "/boot/initramfs": spec.initramfs}
    assert (handed.kernel, handed.initramfs, handed.ram) == ("/boot/vmlinuz", "/boot/initramfs", Ram())
    assert [drive.nodes for drive in handed.drives] == [
        (Node("/disks/root.0", "raw", True), Node(own[0], "qcow2", False)),
        (Node(own[1], "qcow2", False, secret),), (Node("/disks/modules.0", "raw", True),)]
    assert [(drive.role, drive.size) for drive in handed.drives] == [("root", 1), ("volatile", 1), ("modules", 1)]


def test_a_read_only_file_without_a_path_is_not_handed_as_it_is(
    spec: MachineSpec, opened: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "host_user", lambda: None)
    bare = MachineSpec("", 32, 1, "tcg", (Disk("root", 1, (DiskFile(fds(spec)["root.0"], "raw", True),)),))
    with pytest.raises(MachineError, match="no path"):
        hand_over(bare, opened)


def as_root(spec: MachineSpec, opened: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> Handed:
    monkeypatch.setattr(sandbox, "host_user", lambda: USER)
    return hand_over(spec, opened)


@root_only
def test_roots_box_gets_shared_files_frozen_and_sealed(
    spec: MachineSpec, opened: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed = as_root(spec, opened, monkeypatch)
    assert handed.files == {}
    shared = [fds(spec)["root.0"], fds(spec)["modules.0"]]
    assert not set(shared) & set(handed.fds), "never the descriptor itself"
    frozen = [drive.nodes[0].file for drive in (handed.drives[0], handed.drives[2])]
    for fd, original in zip(frozen, shared, strict=True):
        assert isinstance(fd, int) and fd in handed.sets and fd in handed.fds
        assert os.path.samestat(os.fstat(fd), os.fstat(original))
        with pytest.raises(OSError, match="Read-only file system"):
            os.fchmod(fd, 0o600)
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    for name, shown in (("vmlinuz", handed.kernel), ("initramfs", handed.initramfs)):
        assert shown is not None and int(shown.removeprefix("/proc/self/fd/")) in handed.fds
        assert Path(shown).read_text() == name
        with pytest.raises(OSError, match="not permitted"):
            Path(shown).write_text("other")


@root_only
def test_what_qemu_opens_again_belongs_to_the_boxs_user(
    spec: MachineSpec, opened: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    ram = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT, 0o600)
    opened.callback(os.close, ram)
    making = MachineSpec("", 32, 1, "tcg", spec.disks, ram_fd=ram, ram_shared=True)
    handed = as_root(making, opened, monkeypatch)
    secret = spec.disks[1].files[0].secret_fd
    assert secret is not None and ram in handed.fds and handed.ram == Ram(f"/proc/self/fd/{ram}", True)
    assert os.fstat(ram).st_uid == os.fstat(secret).st_uid == USER
    assert os.fstat(fds(spec)["root.0"]).st_uid == os.getuid(), "what is shared stays ours"


@pytest.mark.parametrize("user", [None, USER])
def test_a_warm_start_gets_ram_and_state_and_nothing_to_boot(
    spec: MachineSpec, opened: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int | None,
) -> None:
    (tmp_path / "data").write_text("saved")
    ram, state = (readonly.sealed(str(tmp_path / "data"), name) for name in ("ram", "state"))
    for fd in (ram, state):
        opened.callback(os.close, fd)
    monkeypatch.setattr(sandbox, "host_user", lambda: user)
    warm = MachineSpec("", 32, 1, "tcg", (), kernel=spec.kernel, initramfs=spec.initramfs, ram_fd=ram, state_fd=state)
    handed = hand_over(warm, opened)
    assert handed.fds == [ram, state] and handed.ram == Ram(f"/proc/self/fd/{ram}")
    assert (handed.kernel, handed.initramfs, handed.files, handed.sets) == (None, None, {}, [])
    assert os.fstat(ram).st_uid == os.getuid(), "what all share is no box's own"


# -- readonly.py ---------------------------------------------------------------------------------------------------------------


def test_a_sealed_copy_is_whole_and_stays_as_it_is(tmp_path: Path) -> None:
    data = os.urandom((4 << 20) + 17)
    (tmp_path / "state").write_bytes(data)
    fd = readonly.sealed(str(tmp_path / "state"), "warm-state")
    assert os.pread(fd, len(data) + 1, 0) == data
    for attempt in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 1 << 24)):
        with pytest.raises(PermissionError):
            attempt()
    with pytest.raises(PermissionError):
        readonly.seal(fd)
    os.close(fd)


def test_each_start_reads_a_sealed_copy_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"saved")
    fd = readonly.sealed(str(tmp_path / "state"), "warm-state")
    one, other = readonly.again(fd), readonly.again(fd)
    assert os.read(one, 9) == b"saved" and os.read(other, 9) == b"saved"
    assert not os.get_inheritable(one)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(one, b"x")
    for each in (fd, one, other):
        os.close(each)


def test_a_file_that_is_missing_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(MachineError, match=r"none can't be loaded: No such file"):
        readonly.sealed(str(tmp_path / "none"), "x")
    assert sorted(os.listdir("/proc/self/fd")) == before
