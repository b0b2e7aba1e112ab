"""What the few system calls are given, by a kernel that writes it down; and programs that the agent does not wait for."""
from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.guest import background, libc, placement

ADD_ENTROPY, RESEED = 0x40085203, 0x5207         # linux/random.h


class Calls:
    """A C library: `fails` is what every call answers."""

    def __init__(self) -> None:
        self.made: list[tuple[object, ...]] = []
        self.fails = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*words: object) -> int:
            self.made.append((name, *(word.value if isinstance(word, ctypes.c_ulong) else word for word in words)))
            return self.fails
        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    monkeypatch.setattr(libc, "_libc", made)
    return made


def test_what_is_mounted_where_and_how(calls: Calls) -> None:
    libc.mount("/dev/vdb", "/rw", "ext4", libc.MS_NODEV | libc.MS_NOSUID, "discard")
    libc.mount("/a", "/b", flags=libc.MS_BIND)
    libc.unmount("/b")
    libc.swapon("/dev/vdc")
    libc.sync()
    assert calls.made == [
        ("mount", b"/dev/vdb", b"/rw", b"ext4", 2 | 4, b"discard"), ("mount", b"/a", b"/b", b"", 4096, b""),
        ("umount2", b"/b", 0), ("swapon", b"/dev/vdc", 0), ("sync",)]


def test_a_call_that_fails_is_an_error_that_names_what_it_was_about(calls: Calls, tmp_path: Path) -> None:
    calls.fails = -1
    for call in (lambda: libc.mount("/a", str(tmp_path)), lambda: libc.unmount(str(tmp_path)), lambda: libc.swapon(str(tmp_path)),
                 lambda: libc.sync_filesystem(str(tmp_path))):
        with pytest.raises(OSError, match=str(tmp_path)):
            call()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_whole_file_system_is_written_out(calls: Calls, tmp_path: Path) -> None:
    before = descriptors()
    libc.sync_filesystem(str(tmp_path))
    assert [name for name, *_ in calls.made] == ["syncfs"] and descriptors() == before


@pytest.mark.parametrize("fails", [0, ADD_ENTROPY, RESEED])
def test_entropy_is_credited_and_taken_up_at_once(monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    """Without the credit, or the reseeding after it, two clones would go on drawing the same numbers."""
    asked: list[tuple[object, ...]] = []

    def ioctl(fd: int, number: int, *data: bytes) -> None:
        asked.append((os.readlink(f"/proc/self/fd/{fd}"), number, *data))
        if number == fails:
            raise OSError(1, "no")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before = descriptors()
    both = [("/dev/urandom", ADD_ENTROPY, struct.pack("ii", 64 * 8, 64) + b"\7" * 64), ("/dev/urandom", RESEED)]
    if fails:
        with pytest.raises(OSError, match="no"):
            libc.reseed(b"\7" * 64)
    else:
        libc.reseed(b"\7" * 64)
    assert asked == both[:1 if fails == ADD_ENTROPY else 2] and descriptors() == before


# -- programs of the agent's own ---------------------------------------------------------------------------------------------


def test_a_program_of_the_agents_own_has_its_own_session_and_is_reaped(tmp_path: Path) -> None:
    out = tmp_path / "out"

    async def main() -> None:
        ended = asyncio.Event()
        background.spawn(["/bin/sh", "-c", f"ps -o sid= -p $$ > {out}; echo $$ >> {out}; exit 3"], ended.set)
        async with asyncio.timeout(PATIENCE):
            await ended.wait()

    asyncio.run(main())
    session, pid = (int(word) for word in out.read_text().split())
    assert session == pid != os.getsid(0)
    with pytest.raises(ChildProcessError):               # nobody is left to be waited for
        os.waitpid(pid, os.WNOHANG)


def test_a_program_that_is_not_there_is_told() -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            background.spawn(["/nowhere/program"])

    asyncio.run(main())


def test_the_ports_interrupts_come_to_the_agents_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a made-up /sys and /proc; the order matters: who can't move the interrupts does not move itself."""
    (tmp_path / "sys/class/virtio-ports").mkdir(parents=True)
    (tmp_path / "sys/devices/pci/virtio1").mkdir(parents=True)
    (tmp_path / "sys/devices/pci/msi_irqs").mkdir()
    (tmp_path / "sys/class/virtio-ports/vport1p1").mkdir()
    (tmp_path / "sys/class/virtio-ports/vport1p1/device").symlink_to("../../../devices/pci/virtio1")
    for number in (24, 25):
        (tmp_path / f"sys/devices/pci/msi_irqs/{number}").touch()
        (tmp_path / f"proc/irq/{number}").mkdir(parents=True)
    (tmp_path / "vport1p1").touch()
    real, opened, bound = os.path.realpath, open, []

    def moved(path: str) -> str:
        return path if not path.startswith(("/sys", "/proc")) else f"{tmp_path}{path}"

    monkeypatch.setattr(placement.os.path, "realpath", lambda path: real(moved(path)))
    monkeypatch.setattr("builtins.open", lambda path, *words, **named: opened(moved(path) if isinstance(path, str) else path,
                                                                              *words, **named))
    monkeypatch.setattr(placement.os, "sched_setaffinity", lambda pid, where: bound.append((pid, where)))
    placement.share_processor_with(str(tmp_path / "vport1p1"))
    monkeypatch.undo()
    assert [(tmp_path / f"proc/irq/{number}/smp_affinity_list").read_text() for number in (24, 25)] == ["0", "0"]
    assert bound == [(0, {0})]
