"""The private volume: made, mended or done without, never a reason not to start; what custom-persist keeps of the root."""
from __future__ import annotations

import errno
import os
import subprocess
from io import FileIO
from pathlib import Path

import pytest
from tests.guest.inside import inside

from cloison.guest import private_volume

MIB = 1 << 20

# Mounting a disk takes a kernel's leave that no test has: `mount` fails as often as told, and what is run is written down.
WITH_DISK = """
import errno
ran, mounts, answers, ends = [], [], [], {}
def fake_mount(source, target, kind="", flags=0, options=""):
    if kind != "ext4":
        real_mount(source, target, kind, flags, options)
        return
    mounts.append([source, target, flags, options])
    if answers and (number := answers.pop(0)):
        raise OSError(number, os.strerror(number))
class Done:
    def __init__(self, status):
        self.returncode, self.stderr, self.stdout = status, b"\\n/dev/disk: too bad\\n", b""
def fake_run(argv, **_):
    ran.append(argv)
    return Done(ends.get(argv[0], 0))
real_mount, libc.mount = libc.mount, fake_mount
private_volume.subprocess.run = fake_run
volumes.device = lambda role: "/tmp/disk"
volumes.await_size = lambda path, fits: True
volumes.grow = lambda disk: None
volumes.first_use = lambda: ran.append("first use")
def disk(size, at=None, data=b"x"):
    with open("/tmp/disk", "wb") as file:
        file.truncate(size)
        if at is not None:
            file.seek(at)
            file.write(data)
def mount(persistence="full", **qubesdb):
    return private_volume.mount(persistence, 1, {"/name": "work", **{"/" + k.replace("__", "/"): v for k, v in qubesdb.items()}})
disk(1 << 20)
"""


def test_a_sound_volume_starts_no_program() -> None:
    problems, ran, mounts = inside(f"{WITH_DISK}\nresult = [mount(), ran, mounts]")
    assert (problems, ran) == ([], ["first use"])
    nosuid, nodev = 2, 4                 # what a qube keeps makes nobody root, and opens no device
    assert mounts == [["/tmp/disk", "/rw", nosuid | nodev, "discard"]]


def test_a_volume_of_zeros_is_formatted() -> None:
    problems, ran, mounts = inside(f"{WITH_DISK}\nanswers += [errno.EINVAL]\nresult = [mount(), ran, mounts]")
    assert problems == []
    assert [command[0] for command in ran if command != "first use"] == ["mkfs.ext4"]
    assert ran[0][-1] == "/tmp/disk"
    assert len(mounts) == 2
    assert ran[1:] == ["first use"]


def test_a_damaged_volume_is_mended_and_never_formatted() -> None:
    problems, ran, mounts = inside(f"""{WITH_DISK}
disk(1 << 20, 5000)
answers += [errno.EUCLEAN]
ends["fsck.ext4"] = 1
result = [mount(), ran, mounts]""")
    assert (problems, len(mounts)) == ([], 2)
    assert ran == [["fsck.ext4", "-p", "/tmp/disk"], "first use"]


@pytest.mark.parametrize(("setup", "said"), [
    ("ends['fsck.ext4'] = 4", "too bad"), ("answers.append(errno.EIO)", "Input/output error"), ("ends['fsck.ext4'] = 8", "too bad"),
])
@pytest.mark.parametrize("persistence", ["rw-only", "full", "none"])
def test_what_cant_be_mended_is_done_without_and_said(setup: str, said: str, persistence: str) -> None:
    problems, ran = inside(f"""{WITH_DISK}
disk(1 << 20, 5000)
answers += [errno.EUCLEAN]
{setup}
result = [mount({persistence!r}), ran]""")
    assert len(problems) == 1
    assert said in problems[0]
    assert "qvm-run -p -u root work e2fsck -fy /tmp/disk" in problems[0] and "qvm-volume revert work:private" in problems[0]
    assert ran == [["fsck.ext4", "-p", "/tmp/disk"]]          # nothing is laid out where /rw is not


def test_a_blank_volume_that_cant_be_formatted_is_done_without() -> None:
    assert "too bad" in inside(f"{WITH_DISK}\nanswers += [errno.EINVAL]\nends['mkfs.ext4'] = 1\nresult = mount()")[0]


@pytest.mark.parametrize("step", ["first_use", "grow"])
def test_no_step_after_the_mount_keeps_it_from_starting(step: str) -> None:
    problems = inside(f"""{WITH_DISK}
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
volumes.{step} = full
put("/rw/home/user/mine", "1")
result = [mount("rw-only"), os.listdir("/home")]""")
    assert "No space left on device" in problems[0][0]
    assert problems[1] == ["user"]                            # and what can be kept is


def test_a_disposables_untouched_volume_is_not_laid_out() -> None:
    assert inside(f"{WITH_DISK}\nresult = [mount('none'), ran]") == [[], []]


def test_a_disposables_volume_that_somebody_has_laid_out_is_used() -> None:
    _, ran = inside(f"{WITH_DISK}\nos.makedirs('/rw/config')\nresult = [mount('none'), ran]")
    assert ran == ["first use"]


# -- is it blank? ----------------------------------------------------------------------------------------------------------


class Disk(FileIO):
    """A file that is as long as a disk: none can be sought beyond its end."""

    def seek(self, at: int, whence: int = 0, /) -> int:
        if whence == 0 and at > os.fstat(self.fileno()).st_size:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().seek(at, whence)


def image(folder: Path, size: int, at: int | None = None, data: bytes = b"\1") -> str:
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(size)
        if at is not None:
            file.seek(at)
            file.write(data)
    return str(path)


def blank(path: str) -> bool:
    with Disk(path) as disk:
        return private_volume.is_blank(disk)


@pytest.mark.parametrize(("size", "at", "expected"), [
    (2048 * MIB, None, True), (MIB, None, True), (512, None, True), (2048 * MIB, 0, False), (2048 * MIB, 10 * MIB - 1, False),
    (2048 * MIB, 10 * MIB, True), (MIB, MIB - 1, False), (128 * MIB, None, True), (128 * MIB + 512, None, True),
    (8192 * MIB, None, True),
])
def test_blank(tmp_path: Path, size: int, at: int | None, expected: bool) -> None:
    path = image(tmp_path, size, at)
    assert blank(path) is private_volume.is_blank_disk(path) is expected


def test_a_file_system_whose_head_is_gone_is_not_blank(tmp_path: Path) -> None:
    path = image(tmp_path, 512 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", path], check=True)
    with open(path, "r+b") as file:
        file.write(bytes(10 * MIB))
    assert not blank(path)


def test_a_disk_that_cant_be_read_is_not_blank(tmp_path: Path) -> None:
    assert not private_volume.is_blank_disk(str(tmp_path / "none"))
    assert not private_volume.is_blank_disk(str(tmp_path))


# -- what is kept ------------------------------------------------------------------------------------------------------------

BIND = """
put("/etc/app/settings", "template's")
put("/rw/config/qubes-bind-dirs.d/1.conf", "binds+=( '/etc/app' )")
put("/rw/home/user/mine", "1")
os.makedirs("/rw/usrlocal")
"""


def test_usually_home_and_bind_dirs_are_kept() -> None:
    assert inside(f"{WITH_DISK}{BIND}\nresult = [mount('rw-only'), os.listdir('/home/user'), os.listdir('/rw/bind-dirs/etc')]") == [
        [], ["mine"], ["app"]]


def test_with_custom_persist_only_what_is_listed_is() -> None:
    assert inside(f"""{WITH_DISK}{BIND}
put("/etc/qubes-bind-dirs.d/1.conf", "binds+=( '/etc/of-template' )")
put("/etc/of-template/x")
put("/etc/listed/x")
problems = mount("rw-only", **{{"qubes-service__custom-persist": "1", "persist__a": "/etc/listed"}})
result = [problems, os.listdir("/home"), sorted(os.listdir("/rw/bind-dirs/etc"))]""") == [[], [], ["listed", "of-template"]]


def test_a_list_without_the_service_is_not_used() -> None:
    assert inside(f"""{WITH_DISK}{BIND}
put("/etc/listed/x")
problems = mount("rw-only", **{{"qubes-service__custom-persist": "0", "persist__a": "/etc/listed"}})
result = [problems, os.listdir("/home"), sorted(os.listdir("/rw/bind-dirs/etc"))]""") == [[], ["user"], ["app"]]


def test_home_in_the_list_is_the_home_it_always_had() -> None:
    assert inside(f"""{WITH_DISK}{BIND}
mount("rw-only", **{{"qubes-service__custom-persist": "1", "persist__h": "/home"}})
result = os.listdir("/home/user")""") == ["mine"]


@pytest.mark.parametrize(("entry", "path", "kind", "mode"), [
    ("dir:0:0:0750:/var/lib/new", "/var/lib/new", "dir", "0o750"), ("file:root:root:600:/etc/new", "/etc/new", "file", "0o600"),
    ("dir:0:0:1777:/home/user/x", "/home/user/x", "dir", "0o1777"),
])
def test_a_listed_path_that_is_nowhere_is_made(entry: str, path: str, kind: str, mode: str) -> None:
    kept = "/rw" + path if path.startswith("/home") else "/rw/bind-dirs" + path
    assert inside(f"""{WITH_DISK}
put("/etc/passwd", "root:x:0:0::/root:/bin/sh\\n")
put("/etc/group", "root:x:0:\\n")
problems = mount("rw-only", **{{"qubes-service__custom-persist": "1", "persist__a": {entry!r}}})
kind = "dir" if os.path.isdir({path!r}) else "file"
result = [problems, kind, oct(os.stat({path!r}).st_mode & 0o7777), os.path.samestat(os.stat({path!r}), os.stat({kept!r}))]
""") == [[], kind, mode, True]


def test_a_listed_path_that_is_kept_already_stays() -> None:
    assert inside(f"""{WITH_DISK}
put("/rw/bind-dirs/etc/new", "mine", 0o640)
mount("rw-only", **{{"qubes-service__custom-persist": "1", "persist__a": "file:0:0:600:/etc/new"}})
result = [get("/etc/new"), oct(os.stat("/etc/new").st_mode & 0o777)]""") == ["mine", "0o640"]


@pytest.mark.parametrize("entry", [
    "relative", "/etc/../up", "file:nobody-here:0:600:/etc/x", "dir:0:0:999:/etc/x", "file:0:0:600:x", "",
])
def test_an_entry_that_cant_be_kept_is_told_and_costs_no_other(entry: str) -> None:
    problems, names = inside(f"""{WITH_DISK}
put("/etc/fine/x")
problems = mount("rw-only", **{{"qubes-service__custom-persist": "1", "persist__a": {entry!r}, "persist__b": "/etc/fine"}})
result = [problems, os.listdir("/rw/bind-dirs/etc")]""")
    assert len(problems) == 1 and "is not kept" in problems[0]
    assert names == ["fine"]
