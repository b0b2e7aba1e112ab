"""Whether KVM works here, found out by running a guest: our own kernel and initramfs must reach user space in a few seconds.

Opening `/dev/kvm` proves nothing: nested set-ups exist where the device opens and every stock kernel hangs. A verdict costs
seconds where KVM hangs, so it is kept for as long as nothing that shapes it changes (host kernel, its boot, QEMU, CPU,
guest kernel). That QEMU ended early is known at once and may have causes mended without any of these changing, a sandbox
that can't be built for one; so that is not kept.
"""
from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from typing import Literal

from cloison.errors import HostError, MachineError
from cloison.hypervisor import sandbox
from cloison.hypervisor.base import MachineSpec
from cloison.hypervisor.qemu.handing import Handed, hand_over
from cloison.runtime.files import write_atomic
from cloison.runtime.paths import Paths
from cloison.runtime.programs import find

QEMU = "qemu-system-x86_64"
DEVICE = "/dev/kvm"
SECONDS = 5.0
MARKER = b"cloison: user space runs"      # printed by templates/init.sh
MAX_OUTPUT = 1 << 16
MAX_CACHE = 4096
_MEMORY = 128                              # MiB


class Kvm(enum.StrEnum):
    """What is known of KVM on this host."""

    WORKS = "works"
    ABSENT = "absent"          # no device
    DENIED = "denied"          # not for this user
    HANGS = "hangs"            # the device opens, the guest gets nowhere
    FAILS = "fails"            # QEMU or the guest ended
    UNPROBED = "unprobed"      # there is no kernel to try it with


@dataclass(frozen=True)
class Verdict:
    """`detail`: one sentence for a person. `seconds`: until user space ran, or until the probe gave up."""

    kvm: Kvm
    detail: str
    seconds: float = 0.0


def accelerator(paths: Paths) -> Literal["kvm", "tcg"]:
    """What machines are to be started with. Probes at most once per boot and kernel."""
    return "kvm" if probe(paths).kvm is Kvm.WORKS else "tcg"


def probe(paths: Paths, *, device: str = DEVICE) -> Verdict:
    """The verdict, from the cache if there is one. Never raises for what is wrong with KVM or QEMU."""
    if not os.path.exists(device):
        return Verdict(Kvm.ABSENT, f"there is no {device}")
    if not os.access(device, os.R_OK | os.W_OK):
        return Verdict(Kvm.DENIED, f"this user may not open {device}")
    if not sandbox.may_open(device):
        return Verdict(Kvm.DENIED, f"qubes of root's have users of their own, and none but root may open {device}")
    folder = _newest_kernel(paths)
    if folder is None:
        return Verdict(Kvm.UNPROBED, f"{device} is there, but not probed yet: there is no kernel to probe it with")
    try:
        key = _key(folder)
        known = _cached(paths, key)
        if known is None:
            known = run_guest(folder, "kvm", SECONDS)
            if known.kvm in (Kvm.WORKS, Kvm.HANGS):
                _remember(paths, key, known)
    except (OSError, HostError, MachineError) as error:
        return Verdict(Kvm.FAILS, f"the probe could not run: {error}")
    return known


def run_guest(folder: str, accel: str, seconds: float) -> Verdict:
    """Boot `folder`/vmlinuz and initramfs boxed until it says that user space runs. Raises OSError, HostError, MachineError."""
    program = os.path.realpath(find(QEMU))
    kernel, initramfs = (os.path.join(folder, name) for name in ("vmlinuz", "initramfs"))
    spec = MachineSpec("", _MEMORY, 1, accel, (), kernel=kernel, initramfs=initramfs)
    begun = time.monotonic()
    with contextlib.ExitStack() as opened:
        handed = hand_over(spec, opened)
        process = opened.enter_context(sandbox.run(
            _command(program, accel, handed), files={program: program, **handed.files}, handed=handed.fds,
            devices=[DEVICE] if accel == "kvm" else [], stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        try:
            untrusted, ended = _read_until_marker(process, begun + seconds)
        finally:
            process.kill()      # bubblewrap; what it holds dies with it
    took = time.monotonic() - begun
    if MARKER in untrusted:
        return Verdict(Kvm.WORKS, f"a guest ran to user space in {took:.1f} s", took)
    if ended:
        return Verdict(Kvm.FAILS, f"QEMU ended before the guest ran: {_last_line(untrusted)}", took)
    return Verdict(Kvm.HANGS, f"{DEVICE} opens, but a guest did not reach user space within {seconds:g} s", took)


def _command(program: str, accel: str, handed: Handed) -> list[str]:
    return [
        program, "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-machine", "q35,usb=off,smbus=off,sata=off",
        "-accel", accel, "-cpu", "host" if accel == "kvm" else "max", "-m", f"{_MEMORY}M", "-smp", "1",
        "-kernel", str(handed.kernel), "-initrd", str(handed.initramfs), "-append", "console=ttyS0 quiet panic=-1 cloison.probe",
        "-chardev", "stdio,id=console,signal=off", "-device", "isa-serial,chardev=console",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]


def _read_until_marker(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """What the guest printed, at most MAX_OUTPUT bytes; and whether QEMU ended by itself."""
    if process.stdout is None:
        raise OSError("no output to read")
    fd = process.stdout.fileno()
    untrusted = b""
    while MARKER not in untrusted and len(untrusted) < MAX_OUTPUT:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return untrusted, False
        data = os.read(fd, 4096)
        if not data:
            return untrusted, True
        untrusted += data
    return untrusted, False


def _last_line(untrusted: bytes) -> str:
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in untrusted.decode(errors="replace")).strip()
    return text.rsplit("\n", 1)[-1][-200:] or "it said nothing"


def _newest_kernel(paths: Paths) -> str | None:
    """Folder of the kernel that came last into the pool, if there is any."""
    if not os.path.isdir(paths.kernels):
        return None
    folders = [os.path.join(paths.kernels, name) for name in os.listdir(paths.kernels)]
    whole = [folder for folder in folders if all(os.path.isfile(os.path.join(folder, name)) for name in ("vmlinuz", "initramfs"))]
    return max(whole, key=os.path.getmtime, default=None)


def _key(folder: str) -> str:
    """Names everything a verdict depends on. Raises OSError, HostError."""
    qemu = os.path.realpath(find(QEMU))
    kernel = os.stat(os.path.join(folder, "vmlinuz"))
    facts = [
        os.uname().release, _first("/proc/sys/kernel/random/boot_id", ""), _first("/proc/cpuinfo", "model name"),
        qemu, str(os.stat(qemu).st_mtime_ns), folder, str(kernel.st_mtime_ns), str(os.getuid()),
    ]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _first(path: str, prefix: str) -> str:
    """The first line of a file that begins so; empty if none does."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return next((line.strip() for line in file if line.startswith(prefix)), "")


def _cache(paths: Paths) -> str:
    return os.path.join(paths.data, "kvm-probe.json")


def _cached(paths: Paths, key: str) -> Verdict | None:
    """None for no cache, another key's, or a file that is not ours: then it is probed again."""
    try:
        with open(_cache(paths), "rb") as file:
            data = json.loads(file.read(MAX_CACHE))
        if data["key"] != key:
            return None
        return Verdict(Kvm(data["kvm"]), str(data["detail"]), float(data["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(paths: Paths, key: str, verdict: Verdict) -> None:
    data = {"key": key, "kvm": verdict.kvm.value, "detail": verdict.detail, "seconds": verdict.seconds}
    write_atomic(_cache(paths), json.dumps(data).encode())
