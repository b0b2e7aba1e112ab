"""The qube's disks on a made-up machine: found by their serial numbers, waited for, grown, used as swap; real devices let go of."""
from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloison.guest import background, libc, private_volume, volumes
from cloison.guest.rpc import suspend
from cloison.wire.agent import NO_PRIVATE

GROWTH = volumes.GROWTH


@pytest.fixture(autouse=True)
def no_disks_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "_devices", {})


def test_disks_are_found_by_their_serial_numbers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, serial in (("vda", "qubes-root\n"), ("vdb", "qubes-private"), ("vdc", "somebody's"), ("vdd", "xqubes-x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serial").write_text(serial)
    looked: list[str] = []
    opened = open
    places = [f"/sys/block/{name}/serial" for name in ("vda", "vdb", "vdc", "vdd")]
    monkeypatch.setattr(volumes.glob, "glob", lambda pattern: looked.append(pattern) or places)
    monkeypatch.setattr("builtins.open", lambda path, **named: opened(str(path).replace("/sys/block", str(tmp_path)), **named))
    for _ in range(2):
        assert volumes.find_devices() == {"root": "/dev/vda", "private": "/dev/vdb"}
    monkeypatch.undo()
    assert looked == ["/sys/block/vd*/serial"]


def test_a_disk_that_is_not_there_is_an_error() -> None:
    volumes._devices["root"] = "/dev/vda"
    assert volumes.device("root") == "/dev/vda"
    with pytest.raises(FileNotFoundError, match="qubes-private"):
        volumes.device("private")


class News:
    """A kernel's socket: `sizes` the disk has after each announcement; then there is none any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sizes: Sequence[int]) -> None:
        self.sizes, self.heard, self.bound = list(sizes), 0, (0, 0)
        monkeypatch.setattr(volumes, "_size", lambda path: self.sizes[0])
        monkeypatch.setattr(volumes.socket, "socket", lambda *_: self)
        monkeypatch.setattr(volumes.select, "select", lambda *_: ([self] if len(self.sizes) > 1 else [], [], []))

    def __enter__(self) -> News:
        return self

    def __exit__(self, *_: object) -> None:
        self.bound = (0, 0)

    def bind(self, address: tuple[int, int]) -> None:
        self.bound = address

    def recv(self, size: int) -> bytes:
        assert self.bound == (0, 1), "the kernel's own announcements"
        self.heard += 1
        self.sizes.pop(0)
        if self.heard == 1:
            raise OSError(105, "No buffer space available")
        return b"change@"


@pytest.mark.parametrize(("sizes", "fits", "heard"), [((7,), True, 0), ((1, 7), True, 1), ((1, 2, 7), True, 2), ((1, 2), False, 1)])
def test_a_size_is_waited_for_as_long_as_there_is_news(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], fits: bool, heard: int,
) -> None:
    news = News(monkeypatch, sizes)
    assert volumes.await_size("/dev/vdb", lambda now: now == 7) is fits
    assert news.heard == heard


# -- growing -----------------------------------------------------------------------------------------------------------------


def superblock(blocks: int) -> bytes:
    head = bytearray(1024)
    struct.pack_into("<I", head, 4, blocks)
    struct.pack_into("<I", head, 24, 2)                  # blocks of 4 KiB
    head[56:58] = b"\x53\xef"
    return bytes(head)


@pytest.mark.parametrize(("beyond", "runs"), [
    (0, False), (GROWTH - 512, False), (GROWTH, True), (GROWTH * 100, True), (-4096, False),
])
@pytest.mark.parametrize("status", [0, 1])
def test_a_file_system_follows_its_disk_when_there_is_enough_to_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], beyond: int, runs: bool, status: int,
) -> None:
    disk = tmp_path / "vdb"
    disk.write_bytes(bytes(1024) + superblock(1000) + bytes(2048))
    ran: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(argv)
        return subprocess.CompletedProcess(argv, status, b"", b"no room\n")

    monkeypatch.setattr(volumes, "_size", lambda path: 1000 * 4096 + beyond)
    monkeypatch.setattr(volumes.subprocess, "run", run)
    volumes.grow(str(disk))
    assert ran == ([["resize2fs", "-f", str(disk)]] if runs else [])
    assert ("no room" in capsys.readouterr().err) is (runs and status == 1)
    disk.write_bytes(bytes(4096))
    ran.clear()
    volumes.grow(str(disk))
    assert ran == [], "what is no file system is left alone"


def test_the_root_is_grown_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    grown: list[str] = []
    monkeypatch.setattr(volumes, "grow", grown.append)
    volumes._devices["private"] = "/dev/vdb"
    volumes.grow_root()
    volumes._devices["root"] = "/dev/vda"
    volumes.grow_root()
    assert grown == ["/dev/vda"]


def test_the_private_volume_has_the_size_the_host_says_before_it_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    volumes._devices["private"] = "/dev/vdb"
    monkeypatch.setattr(private_volume.os, "makedirs", lambda path, **_: done.append(("folder", path)))
    monkeypatch.setattr(volumes, "await_size", lambda disk, fits: done.append((disk, [fits(size) for size in (99, 100, 101)])))
    monkeypatch.setattr(private_volume, "attach", lambda disk: done.append(("attach", disk)))
    monkeypatch.setattr(volumes, "grow", lambda disk: done.append(("grow", disk)))
    monkeypatch.setattr(volumes, "first_use", lambda: done.append("first use"))
    monkeypatch.setattr(private_volume, "_keep_all", lambda *_: done.append("keep"))
    start = [("folder", "/rw"), ("/dev/vdb", [False, True, False]), ("attach", "/dev/vdb"), ("grow", "/dev/vdb"), "first use"]
    assert private_volume.mount("rw-only", 100, {}) == [] and done == [*start, "keep"]
    done.clear()
    assert private_volume.mount("full", 100, {}) == [] and done == start
    monkeypatch.setattr(private_volume, "attach", lambda disk: "bad disk")
    done.clear()
    [problem] = private_volume.mount("full", 100, {"/name": "work"})
    assert problem.startswith(f"{NO_PRIVATE} (bad disk)") and "revert work:private" in problem and done == start[:2]


def test_the_volatile_disk_is_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "vdc"
    disk.write_bytes(b"x" * 8192)
    volumes._devices["volatile"] = str(disk)
    done: list[tuple[str, bytes]] = []
    monkeypatch.setattr(volumes.os, "fsync", lambda fd: done.append(("fsync", os.readlink(f"/proc/self/fd/{fd}").encode())))
    monkeypatch.setattr(libc, "swapon", lambda path: done.append((path, Path(path).read_bytes())))
    before = len(os.listdir("/proc/self/fd"))
    volumes.enable_swap()
    assert len(os.listdir("/proc/self/fd")) == before
    page = os.sysconf("SC_PAGE_SIZE")
    assert done[0] == ("fsync", str(disk).encode()) and done[1][0] == str(disk)
    header = done[1][1][:page]
    assert header[-10:] == b"SWAPSPACE2" and header[:1024] == bytes(1024)
    assert struct.unpack_from("<III", header, 1024) == (1, (1 << 30) // page - 1, 0)     # version, last page, no bad ones


def test_a_real_mkswap_takes_the_header_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "vdc"
    with open(disk, "wb") as file:
        file.truncate(1 << 30)
    volumes._devices["volatile"] = str(disk)
    monkeypatch.setattr(libc, "swapon", lambda path: None)
    volumes.enable_swap()
    said = subprocess.run(["/sbin/blkid", "-p", "-o", "value", "-s", "TYPE", str(disk)], capture_output=True, text=True, check=True)
    assert said.stdout == "swap\n"


@pytest.mark.parametrize(("mode", "runs"), [(0o755, True), (0o644, False), (None, False)])
def test_the_users_own_script_runs_if_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None, runs: bool) -> None:
    script, started = tmp_path / "rc.local", []
    if mode is not None:
        script.write_text("#!/bin/sh\n")
        script.chmod(mode)
    monkeypatch.setattr(volumes, "RC_LOCAL_PATH", str(script))
    monkeypatch.setattr(background, "spawn", started.append)
    volumes.run_rc_local()
    assert started == ([[str(script)]] if runs else [])


def test_a_copy_is_whose_the_original_is_and_then_gets_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: a change of owner takes set-user-id away. A link's own owner, never that of what it leads to."""
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder/file").write_text("x")
    (source / "link").symlink_to("folder/file")
    os.mkfifo(source / "pipe")
    done: list[tuple[str, str, object]] = []
    relative = len(str(tmp_path / "copy"))
    monkeypatch.setattr(volumes.os, "chown", lambda path, uid, gid, *, follow_symlinks: done.append(
        ("chown", path[relative:], (uid, gid, follow_symlinks))))
    monkeypatch.setattr(volumes.os, "chmod", lambda path, mode: done.append(("chmod", path[relative:], mode)))
    volumes.copy_tree(str(source), str(tmp_path / "copy"))
    owner = (os.getuid(), os.getgid(), False)
    owned = {path: said for what, path, said in done if what == "chown"}
    assert owned == dict.fromkeys(("", "/folder", "/folder/file", "/link"), owner)
    assert {path for what, path, _ in done if what == "chmod"} == owned.keys() - {"/link"}
    assert all(done.index(("chown", path, owner)) < at for at, (what, path, _) in enumerate(done) if what == "chmod")
    assert sorted(os.listdir(tmp_path / "copy")) == ["folder", "link"], "what is no file, folder or link is left out"


# -- real devices, before the machine sleeps ---------------------------------------------------------------------------------


class Bus:
    """A made-up sysfs with devices, their drivers and their network interfaces."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.ran = folder, []
        self.devices, self.record = folder / "devices", folder / "record"
        monkeypatch.setattr(suspend, "DEVICES", str(self.devices))
        monkeypatch.setattr(suspend, "RECORD", str(self.record))
        listed, resolved = os.listdir, os.path.realpath
        monkeypatch.setattr(suspend.os, "listdir", lambda path: listed(self._moved(path)))
        monkeypatch.setattr(suspend.os.path, "realpath", lambda path: resolved(self._moved(path)))
        monkeypatch.setattr(suspend.subprocess, "run", lambda argv, **_: self.ran.append(argv))

    def _moved(self, path: str) -> str:
        return path.replace("/sys/class/net", str(self.folder / "net"))

    def add(self, address: str, driver: str = "", subsystem: str = "0x8086", vendor: str = "0x8086", kind: str = "0x020000",
            interface: str = "") -> None:
        place = self.devices / address
        place.mkdir(parents=True)
        (self.folder / "net").mkdir(exist_ok=True)
        for name, text in (("vendor", vendor), ("class", kind), ("subsystem_vendor", subsystem)):
            (place / name).write_text(text + "\n")
        if driver:
            (self.folder / driver).mkdir(exist_ok=True)
            (place / "driver").symlink_to(self.folder / driver)
        if interface:
            (self.folder / "net" / interface).mkdir()
            (self.folder / "net" / interface / "device").symlink_to(place)

    def said(self, driver: str, what: str) -> str:
        path = self.folder / driver / what
        return path.read_text() if path.exists() else ""


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bus:
    return Bus(tmp_path, monkeypatch)


def test_real_devices_are_let_go_of_and_taken_back(bus: Bus) -> None:
    bus.add("0000:00:05.0", "e1000e", interface="eth1")
    bus.add("0000:00:06.0", "nvme", vendor="0x144d")
    bus.add("0000:00:02.0", "virtio-pci", subsystem="0x1af4", interface="eth0")
    bus.add("0000:00:03.0", "xen", subsystem="0x5853")
    bus.add("0000:00:04.0", "i915", kind="0x030000")
    bus.add("0000:00:07.0", "amdgpu", vendor="0x1002", kind="0x030000")
    bus.add("0000:00:08.0")                              # has no driver
    assert suspend.main_pre([]) == 0
    assert bus.ran == [["ip", "link", "set", "dev", "eth1", "down"]]
    let_go = {driver: bus.said(driver, "unbind") for driver in ("e1000e", "nvme", "virtio-pci", "xen", "i915", "amdgpu")}
    assert let_go == {"e1000e": "0000:00:05.0", "nvme": "0000:00:06.0", "virtio-pci": "", "xen": "", "i915": "",
                      "amdgpu": "0000:00:07.0"}
    assert suspend.main_post([]) == 0
    assert [bus.said(driver, "bind") for driver in ("e1000e", "nvme", "amdgpu", "xen")] == [
        "0000:00:05.0", "0000:00:06.0", "0000:00:07.0", ""]
    assert not bus.record.exists()
    assert suspend.main_post([]) == 0, "there is nothing to take back"


@pytest.mark.parametrize("do", ["unbind", "bind"])
def test_one_device_that_fails_is_told_and_keeps_no_other(bus: Bus, do: str, capsys: pytest.CaptureFixture[str]) -> None:
    bus.add("0000:00:05.0", "bad")
    bus.add("0000:00:06.0", "nvme")
    (bus.folder / "bad" / do).mkdir()
    call: Callable[[list[str]], int] = {"unbind": suspend.main_pre, "bind": suspend.main_post}[do]
    if do == "bind":
        assert suspend.main_pre([]) == 0
    assert call([]) == 1
    assert bus.said("nvme", do) == "0000:00:06.0"
    assert f"bad/{do}: Is a directory" in capsys.readouterr().err


def test_nothing_is_let_go_of_that_could_not_be_taken_back(bus: Bus) -> None:
    bus.add("0000:00:05.0", "e1000e")
    bus.record.mkdir()
    assert suspend.main_pre([]) == 1
    assert bus.said("e1000e", "unbind") == ""
