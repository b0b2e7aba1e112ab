"""cloison doctor: what this machine has and lacks for running qubes, each with what to do about it.

Things are tried, not guessed: a namespace is made, a guest is run. A check that can't be made counts as failed.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cloison.cli import tool
from cloison.cli.ask_agent import has_windows
from cloison.client.connection import Connection, NoDaemon
from cloison.client.domains import DOM0
from cloison.errors import CloisonError
from cloison.hypervisor import probe, sandbox
from cloison.policy.parse import PolicySyntaxError, Root
from cloison.qrexec.policyd.policy_files import folders, load
from cloison.runtime.paths import Paths, larger_disk
from cloison.runtime.programs import ProgramMissing, find
from cloison.templates import sources, suites
from cloison.templates.contain import contained

Status = Literal["ok", "warn", "fail"]
GIB = 1 << 30
SUBORDINATE_IDS = 65536
OLDEST_QEMU = (7, 2)
FAST_QEMU = (10, 0)       # before 8, a program is translated anew in each process
OLDEST_MKE2FS = (1, 47)
NO_BOUNDARY = "qubes run under TCG emulation, which works but is slow and is NO security boundary"
# Program, Debian package, what it is for.
PROGRAMS = (
    ("bwrap", "bubblewrap", "QEMU's sandbox"),
    ("qemu-img", "qemu-utils", "disk images"),
    ("mmdebstrap", "mmdebstrap", "building templates"),
    ("mksquashfs", "squashfs-tools", "kernel modules images"),
    ("depmod", "kmod", "kernel modules images"),
    ("dpkg-deb", "dpkg", "the guest agent's package"),
    ("unshare", "util-linux", "building templates"),
    ("setpriv", "util-linux", "building templates"),
)


@dataclass(frozen=True)
class Check:
    """`said`: one sentence. `advice`: what to do about it; empty when all is well."""

    name: str
    status: Status
    said: str
    advice: str = ""


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser("doctor", help="what this machine has and lacks for running qubes",
                                   description="Look at this machine, and say what to do about what it lacks.")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """0 if nothing failed, else 1."""
    paths = Paths.from_environment()
    paths.ensure()
    checks = examine(paths)
    if args.json:
        tool.say(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            tool.say(f"{check.status:4}  {check.name}: {check.said}")
            for line in check.advice.splitlines():
                tool.say(f"      -> {line}")
    return 1 if any(check.status == "fail" for check in checks) else 0


def examine(paths: Paths, root: str = "/", user: str | None = None) -> list[Check]:
    """All checks, in the order in which to mend. `root`: where /proc, /sys and /etc are found; `user`: None for this one."""
    name = _user_name() if user is None else user
    makers: list[tuple[str, Callable[[], Check]]] = [
        ("qemu", _qemu),
        *((row[0], functools.partial(_program, *row)) for row in PROGRAMS),
        ("mke2fs", _mke2fs),
        ("sandbox", _sandbox),
        ("root", lambda: _root(sandbox.host_user())),
        ("subordinate ids", lambda: _subordinate_ids(root, name)),
        ("kvm", lambda: _kvm(probe.probe(paths))),
        ("emulation", lambda: _emulation(root, probe.probe(paths))),
        ("policy", lambda: _policy(paths)),
        ("templates", lambda: _templates(Connection(paths))),
        ("questions", _questions),
        ("disk", lambda: _disk(shutil.disk_usage(paths.data).free)),
        ("memory", lambda: _memory(root)),
        ("cpu", lambda: _cpu(root)),
        ("ksm", lambda: _ksm(root)),
    ]
    return [_made(name, maker) for name, maker in makers]


def _made(name: str, maker: Callable[[], Check]) -> Check:
    try:
        return maker()
    except ProgramMissing as error:
        return Check(name, "fail", f"can't be tried: {error}.", "Install what is named above, then run cloison doctor again.")
    except CloisonError as error:
        return Check(name, "fail", f"{error}.", error.hint)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Check(name, "fail", f"could not be looked at: {error}.", "See the reason given.")


# -- programs ------------------------------------------------------------------------------------------------------------


def _install(package: str) -> str:
    return f"sudo apt install {package}"


def _version(argv: list[str], pattern: str) -> tuple[int, int] | None:
    """Two numbers found in what the program prints."""
    result = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    match = re.search(pattern, result.stdout + result.stderr)
    return (int(match[1]), int(match[2])) if match else None


def _present(program: str) -> str | None:
    try:
        return find(program)
    except CloisonError:
        return None


def _program(program: str, package: str, purpose: str) -> Check:
    if _present(program) is None:
        return Check(program, "fail", f"{program} is not installed; it is needed for {purpose}.", _install(package))
    return Check(program, "ok", "installed.")


def _qemu() -> Check:
    return _recent("qemu", probe.QEMU, "qemu-system-x86", oldest=OLDEST_QEMU, option="--version",
                   pattern=r"version (\d+)\.(\d+)")


def _mke2fs() -> Check:
    return _recent("mke2fs", "mke2fs", "e2fsprogs", oldest=OLDEST_MKE2FS, option="-V", pattern=r"mke2fs (\d+)\.(\d+)")


def _recent(name: str, program: str, package: str, *, oldest: tuple[int, int], option: str, pattern: str) -> Check:
    path = _present(program)
    if path is None:
        return Check(name, "fail", f"{program} is not installed.", _install(package))
    version = _version([path, option], pattern)
    wanted = ".".join(map(str, oldest))
    if version is None:
        return Check(name, "fail", f"{program} does not tell its version.", f"Reinstall it: {_install('--reinstall ' + package)}")
    found = ".".join(map(str, version))
    if version < oldest:
        return Check(name, "fail", f"{program} {found} is too old; {wanted} is the oldest that works.",
                     "Use a newer release of your distribution (Debian 12 or later).")
    return Check(name, "ok", f"{program} {found}.")


# -- namespaces ----------------------------------------------------------------------------------------------------------

_NAMESPACES_ADVICE = """\
Allow user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1 (Debian), user.max_user_namespaces above 0,
or kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu). In a container, run it with user namespaces allowed and an
unmasked /proc (podman: --security-opt unmask=ALL)."""


def _try(argv: list[str], user: int | None = None) -> str | None:
    """None if it ends well; else the last it said. `user`: as that one, who has one group of that number."""
    result = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=20, check=False, user=user,
        group=user, extra_groups=None if user is None else [], cwd="/")
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1][:200]


def _sandbox() -> Check:
    # With a /proc of its own, as each qube's box has: in a container whose /proc is masked, namespaces work and this doesn't.
    failure = _try([
        find("bwrap"), "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev",
        "--cap-drop", "ALL", find("true"),
    ], sandbox.host_user())
    if failure:
        return Check("sandbox", "fail", f"this user can't make the namespaces a qube runs in: {failure}.", _NAMESPACES_ADVICE)
    return Check("sandbox", "ok", "this user can make the namespaces a qube runs in.")


def _subordinate_ids(root: str, user: str) -> Check:
    name = "subordinate ids"
    if user != "root":
        if _present("newuidmap") is None:
            return Check(name, "fail", "newuidmap is not installed; it is needed for building templates.", _install("uidmap"))
        missing = [file for file in ("subuid", "subgid") if _range(os.path.join(root, "etc", file), user) < SUBORDINATE_IDS]
        if missing:
            files = " and ".join(f"/etc/{file}" for file in missing)
            return Check(name, "fail", f"{user} has no {SUBORDINATE_IDS} subordinate ids in {files}.",
                         f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}")
    failure = _try([*contained(), find("true")])
    if failure:
        return Check(name, "fail", f"this user can't become root in a namespace of its own: {failure}.", _NAMESPACES_ADVICE)
    return Check(name, "ok", "templates can be built by this user.")


def _range(path: str, user: str) -> int:
    """Length of the user's longest range; 0 for no file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            rows = [line.strip().split(":") for line in file]
    except OSError:
        return 0
    names = (user, _user_id(user))
    return max((int(row[2]) for row in rows if len(row) == 3 and row[0] in names and row[2].isdecimal()), default=0)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _user_id(user: str) -> str:
    try:
        return str(pwd.getpwnam(user).pw_uid)
    except KeyError:
        return user


_BACKPORTS = "bookworm-backports"

def _root(user: int | None) -> Check:
    """`user`: whom qubes belong to, if that is somebody else; then we are root."""
    if user is None:
        return Check("root", "ok", "Cloison runs as an ordinary user.")
    return Check("root", "warn", "Cloison runs as root: each qube's QEMU gets a user of its own, but wardens, qubesd and programs "
                 "that calls start on the host are root's, so a fault in one of them costs the machine, not an account.",
                 "Run it as an ordinary user; nothing needs root.")


# -- the machine ---------------------------------------------------------------------------------------------------------

_KVM_ADVICE = {
    probe.Kvm.ABSENT: "Switch virtualisation on in the firmware (VT-x, AMD-V), or in the outer machine's settings, and load kvm.",
    probe.Kvm.DENIED: "Join the group kvm (sudo usermod -aG kvm USER) and log in again.\n"
                      "As root, give the device to that group: chgrp kvm /dev/kvm && chmod 660 /dev/kvm",
    probe.Kvm.HANGS: "This is a known fault of nested virtualisation: use a host of its own, or another outer hypervisor.",
    probe.Kvm.FAILS: "If this machine is itself virtual, nested virtualisation is broken or off: use another outer hypervisor.",
    probe.Kvm.UNPROBED: f"Build a template first (cloison template build {suites.USUAL}), then run cloison doctor again.",
}


def _kvm(verdict: probe.Verdict) -> Check:
    if verdict.kvm is probe.Kvm.WORKS:
        return Check("kvm", "ok", f"{verdict.detail}; every qube is a virtual machine.")
    return Check("kvm", "warn", f"{verdict.detail}; {NO_BOUNDARY}.", _KVM_ADVICE[verdict.kvm])


def _emulation(root: str, verdict: probe.Verdict) -> Check:
    """Where QEMU emulates, its age decides on what a call costs."""
    name = "emulation"
    if verdict.kvm is probe.Kvm.WORKS:
        return Check(name, "ok", "not used: there is KVM.")
    version = _version([find(probe.QEMU), "--version"], r"version (\d+)\.(\d+)")
    if version is not None and version >= FAST_QEMU:
        return Check(name, "ok", f"QEMU {version[0]}.{version[1]} is one of the fast ones.")
    wanted = ".".join(map(str, FAST_QEMU))
    advice = f"Use QEMU {wanted} or later, from a newer release of your distribution or its backports."
    if _codename(root) == "bookworm":
        line = f"deb {sources.PUBLIC} {_BACKPORTS} main"
        advice = (f"echo '{line}' | sudo tee /etc/apt/sources.list.d/backports.list\n"
                  f"sudo apt update && sudo apt install -t {_BACKPORTS} qemu-system-x86 qemu-utils")
    return Check(name, "warn", f"without KVM, a call into a qube costs a third with QEMU {wanted} of what it costs here.", advice)


def _codename(root: str) -> str:
    with contextlib.suppress(OSError), open(os.path.join(root, "etc/os-release"), encoding="utf-8", errors="replace") as file:
        return next((line.partition("=")[2].strip().strip("\"'") for line in file if line.startswith("VERSION_CODENAME=")), "")
    return ""


def _policy(paths: Paths) -> Check:
    try:
        rules = load(paths)
    except PolicySyntaxError as error:
        if not os.path.isdir(folders(paths)[Root.MAIN][0]):
            return Check("policy", "warn", "there is no policy folder yet.", "cloison up makes it.")
        return Check("policy", "fail", f"{error}; every call between qubes is denied.", "cloison policy check names every fault.")
    return Check("policy", "ok", f"{len(rules.all)} rules.")


def _templates(connection: Connection) -> Check:
    """Whether the agents in them are those of this Cloison."""
    name = "templates"
    try:
        facts = json.loads(connection.call(DOM0, "internal.cloison.Status", internal=True))
    except NoDaemon:
        return Check(name, "ok", "not looked at: qubesd does not run (cloison up).")
    older = list(dict.fromkeys((facts.get("old_agents") or {}).values()))
    if not older:
        return Check(name, "ok", "each has the agent of this Cloison.")
    told, commands = zip(*(sentence.split("; to renew it: ") for sentence in older), strict=True)
    return Check(name, "warn", f"{'; '.join(told)}.", "\n".join(commands))


def _questions() -> Check:
    if has_windows():
        return Check("questions", "ok", "a window asks where the policy says so.")
    return Check("questions", "warn", "there is no display with PySide6, so calls that a person must allow are denied.",
                 "Start Cloison in the desktop session with PySide6-Essentials installed, or run: cloison ask-agent --terminal")


def _disk(free: int) -> Check:
    said = f"{free / GIB:.1f} GiB free for qubes."
    status: Status = "ok" if free >= 10 * GIB else "warn" if free >= 4 * GIB else "fail"
    advice = "" if status == "ok" else larger_disk()
    return Check("disk", status, said, advice)


def _memory(root: str) -> Check:
    with open(os.path.join(root, "proc/meminfo"), encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    available = int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else 0
    status: Status = "ok" if available >= 2 * GIB else "warn" if available >= GIB else "fail"
    advice = "" if status == "ok" else "End other programs, or run fewer qubes at once; a qube takes 400 MiB at most by default."
    return Check("memory", status, f"{available / GIB:.1f} GiB of memory available.", advice)


def _cpu(root: str) -> Check:
    """What the kernel says of the CPU's known leaks, at run time: a build option or a microcode may have gone missing."""
    folder = os.path.join(root, "sys/devices/system/cpu/vulnerabilities")
    open_ones = []
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
            if file.read(256).startswith("Vulnerable"):
                open_ones.append(name)
    if open_ones:
        return Check("cpu", "warn", f"the kernel does not stop these leaks between qubes: {', '.join(open_ones)}.",
                     "Install the CPU's microcode (intel-microcode, amd64-microcode), and boot without mitigations=off.")
    return Check("cpu", "ok", "the kernel counters every CPU leak it knows.")


def _ksm(root: str) -> Check:
    path = os.path.join(root, "sys/kernel/mm/ksm/run")
    if os.path.exists(path):
        with open(path, encoding="ascii") as file:
            if file.read(8).strip() == "1":
                return Check("ksm", "warn", "the kernel merges equal memory pages (KSM), which tells a qube what others hold.",
                             "echo 2 | sudo tee /sys/kernel/mm/ksm/run, and switch ksmtuned off.")
    return Check("ksm", "ok", "equal memory pages of qubes are not merged.")
