"""The box of a real qube's QEMU, seen from the host; what a program in its place can do: tests/hypervisor/test_sandbox.py."""
from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
from pathlib import Path

import pytest
from tests.boot.place import TEMPLATE, Place, await_ends, kill

from cloison.hypervisor import sandbox

pytestmark = pytest.mark.boot

OWN = re.compile(r"/.*/data/tmp/#\d+ \(deleted\)|/.*/private\.\d+\.qcow2")
PLAIN = re.compile(r"/dev/(null|urandom|kvm)|(socket|pipe):\[\d+\]|anon_inode:(\[(eventpoll|eventfd|signalfd)\]|kvm-.*)"
                   r"|/memfd:warm-(ram|state) \(deleted\)")


def descriptors(pid: int) -> dict[str, tuple[str, int]]:
    """Of a process: number -> (what it is, how it was opened)."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        flags = next(line for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines() if line.startswith("flags"))
        found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}"), int(flags.split()[1], 8)
    return found


def test_what_reaches_the_box_of_a_warm_start(work: Place) -> None:
    """Every descriptor, by an exact list; what is shared with other qubes is on a read-only mount or sealed."""
    qemu = work.process("qemu-system", "work")
    others = {}
    for fd, (what, flags) in descriptors(qemu).items():
        if OWN.fullmatch(what):
            assert flags & os.O_ACCMODE == os.O_RDWR
        elif not PLAIN.fullmatch(what):
            others[fd] = what
            mount = re.search(r"mnt_id:\s+(\d+)", Path(f"/proc/{qemu}/fdinfo/{fd}").read_text())
            assert mount is not None
            assert flags & os.O_ACCMODE == os.O_RDONLY, what
            shown = re.search(rf"^{mount[1]} \S+ \S+ \S+ \S+ (\S+)", Path(f"/proc/{qemu}/mountinfo").read_text(), re.M)
            assert shown is None or "ro" in shown[1].split(","), what
            with pytest.raises(OSError, match="Read-only file system"):
                # By root, whom no mode or owner stops: only the mount does.
                os.close(os.open(f"/proc/{qemu}/fd/{fd}", os.O_RDWR))
    assert len(others) >= 4, "root's commit, the warm image's disk, private's commit, the modules"
    assert str(work.root) not in Path(f"/proc/{qemu}/environ").read_text()


def test_who_the_box_is(work: Place) -> None:
    qemu = work.process("qemu-system", "work")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{qemu}/status").read_text().splitlines())
    user = int(status["Uid"].split()[0])
    assert user != 0 and len(set(status["Uid"].split())) == 1
    assert (user >= sandbox.FIRST_USER) == (os.getuid() == 0)
    assert int(status["Seccomp_filters"]) >= 2 and status["NSpid"].split()[1:] == ["2"]
    assert {status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
    mounts = {line.split()[4]: line.split()[5].split(",") for line in Path(f"/proc/{qemu}/mountinfo").read_text().splitlines()}
    assert all("ro" in mounts[place] for place in ("/", "/proc", "/dev", *sandbox.LIBRARIES))
    assert not [pid for pid in work.processes() if pid != qemu and user >= sandbox.FIRST_USER and _user(pid) == user
                and "bwrap" not in work.processes()[pid]]


def _user(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


@pytest.mark.parametrize("victim", ["warden", "qemu-system"])
def test_a_killed_part_leaves_nothing_and_the_volume_is_free_for_the_next_start(work: Place, victim: str) -> None:
    warden, qemu = work.process("warden work"), work.process("qemu-system", "work")
    kill(warden if victim == "warden" else qemu)
    await_ends({warden, qemu})
    assert work.sh("work", "echo up") == b"up\n"


PIDFD_GETFD = 438


def test_a_qemu_that_hangs_up_and_lives_on_is_killed_and_its_data_kept(work: Place) -> None:
    """An honest one lives on without its monitor, as one would that a guest owns."""
    warden, qemu = work.process("warden work"), work.process("qemu-system", "work")
    work.sh("work", "echo kept > ~/kept; sync")
    number = re.search(rb"socket,id=monitor,fd=(\d+)", Path(f"/proc/{qemu}/cmdline").read_bytes())
    assert number is not None
    process = os.pidfd_open(qemu)
    fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, process, int(number[1]), 0)
    os.close(process)
    if fd < 0:
        pytest.skip("this user may not take another process's descriptor")
    with socket.socket(fileno=fd) as its_end:
        its_end.shutdown(socket.SHUT_RDWR)
    await_ends({warden, qemu})
    assert work.sh("work", "cat ~/kept") == b"kept\n"          # started for it, so it was Halted
    assert b"closed its monitor and did not end: it was killed" in work.ok(["cloison", "log", "work"])


def test_a_stopped_warden_ends_from_outside_with_all_that_is_its(work: Place) -> None:
    warden, qemu = work.process("warden work"), work.process("qemu-system", "work")
    os.kill(warden, signal.SIGSTOP)
    os.kill(warden, signal.SIGKILL)
    await_ends({warden, qemu})
    assert TEMPLATE in work.qubes()
