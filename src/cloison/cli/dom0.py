"""cloison dom0: run a program made for Qubes OS's dom0. It finds our sockets, services and policy where Qubes OS has them.

The program sees the host's files, with Qubes OS's places laid over them (reference/admin-api.md 21), and host name dom0.
"""
from __future__ import annotations

import argparse
import grp
import os
import pwd
import shutil
import sysconfig
from collections.abc import Callable
from typing import Any

from cloison import __version__
from cloison.cli import tool
from cloison.errors import CloisonError
from cloison.runtime.namespace import File, Link, enter
from cloison.runtime.paths import Paths

PROG = "cloison dom0"
RELEASE = f"Qubes release 4.3 (Cloison {__version__})\n"
OWN = sysconfig.get_path("scripts")      # where our programs were installed
INSTEAD = "/usr/lib/cloison/instead"     # programs that stand in for the host's
BESIDES = "/usr/lib/cloison/besides"     # programs for hosts that have none
SERVICES = "/etc/qubes-rpc"
NOT_FOUND, NOT_EXECUTABLE = 127, 126     # as shells have it
SOCKETS = ("qubesd.sock", "qubesd.internal.sock", "qubesd.misc.sock")
# One user stands for all of dom0, and owns all of it: there is nobody else to become.
SUDO = b"""#!/bin/sh
while :; do
    case $1 in
        -u|-g|-h|-p|-C|-D|-R|-T) shift 2 ;;
        --) shift; break ;;
        -*) shift ;;
        *=*) export "$1"; shift ;;
        *) break ;;
    esac
done
exec "$@"
"""
# Qubes OS's qvm-clone does not go on without it. The host has no menu of qubes' programs, so there is nothing to copy.
APPMENUS = b"#!/bin/sh\nexit 0\n"


class CommandNotFound(CloisonError):
    """There is no such program."""

    exit_status = NOT_FOUND


class NotExecutable(CloisonError):
    """There is such a file, but the system can't run it."""

    exit_status = NOT_EXECUTABLE


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "dom0", help="run a program made for Qubes OS's dom0", usage="cloison dom0 [--] COMMAND [ARG ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run a program made for Qubes OS's dom0, unchanged, against Cloison.",
        epilog=(
            "The program finds /var/run/qubesd.sock, /run/qubes, /etc/qubes, /etc/qubes-rpc, /etc/qubes-release,\n"
            "/var/lib/qubes and qrexec-client; everything else is the host's. The host itself does not\n"
            "change, and no root is needed. Folder, terminal, signals and exit status are the program's own.\n\n"
            "examples:\n"
            "  cloison dom0 -- qvm-ls --tree                   Qubes OS's own qvm-ls, if it comes first in $PATH\n"
            "  cloison dom0 -- python3 -c 'import qubesadmin; print(*qubesadmin.Qubes().domains)'\n"
            "  cloison dom0 -- qubes-qube-manager              Qubes OS's Qube Manager\n"
            "  cloison dom0 -- bash                            a shell in which all this holds"))
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        tool.quit_usage(PROG, "COMMAND is missing")
    paths = Paths.from_environment()
    paths.ensure()
    enter("dom0", layout(paths, _program), writable=["/run"], layered=["/usr/bin"])
    os.environ["PATH"] = os.pathsep.join([INSTEAD, os.environ.get("PATH", os.defpath), OWN, BESIDES])
    try:
        os.execvp(command[0], command)  # noqa: S606 the program takes this process's place
    except FileNotFoundError as error:
        raise CommandNotFound(f"no such command: {command[0]!r}") from error
    except OSError as error:
        raise NotExecutable(f"can't run {command[0]!r}: {error.strerror}") from error


def _program(name: str) -> str | None:
    """Where a program of ours is."""
    return shutil.which(name, path=os.pathsep.join([OWN, os.environ.get("PATH", os.defpath)]))


def layout(paths: Paths, program: Callable[[str], str | None]) -> dict[str, File | Link]:
    """What lies where in dom0. `program`: name -> path of a program of ours, or None."""
    entries: dict[str, File | Link] = {f"/run/{name}": Link(paths.socket(name)) for name in SOCKETS}
    entries |= {
        "/run/qubes": Link(paths.qubes),
        "/run/qubes-service": Link(paths.services),
        "/etc/qubes": Link(paths.config),
        "/var/lib/qubes": Link(paths.data),
        "/etc/qubes-release": File(RELEASE.encode()),
        "/etc/hostname": File(b"dom0\n"),
        "/etc/group": File(_groups()),
        f"{INSTEAD}/sudo": File(SUDO, 0o755),
        f"{BESIDES}/qvm-appmenus": File(APPMENUS, 0o755),
    }
    client = program("qrexec-client")
    if client:
        entries |= dict.fromkeys(("/usr/lib/qubes/qrexec-client", "/usr/bin/qrexec-client"), Link(client))
    return entries | _services(paths) | _hardware_names()


def _hardware_names() -> dict[str, File | Link]:
    """Lists of vendors and devices, which dom0 always has; on a host without them nothing has a name."""
    entries: dict[str, File | Link] = {}
    for name in ("pci.ids", "usb.ids"):
        wanted, debian = f"/usr/share/hwdata/{name}", f"/usr/share/misc/{name}"
        if not os.path.exists(wanted):
            entries[wanted] = Link(debian) if os.path.exists(debian) else File(b"")
    return entries


def _services(paths: Paths) -> dict[str, File | Link]:
    """Services of the host, as qrexec finds them: the administrator's come before those that ship with us."""
    from cloison.qrexec.host.host_service import set_folders

    folders: dict[str, str] = {}
    set_folders(folders, paths)
    found: dict[str, File | Link] = {}
    for folder in reversed(folders["QREXEC_SERVICE_PATH"].split(":")):
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        found |= {f"{SERVICES}/{name}": Link(os.path.join(folder, name)) for name in names}
    return found


def _groups() -> bytes:
    """The host's groups, and `qubes`, whose first member is the one that dom0's services run as."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())          # as a container's user often has no name
    lines = [f"{group.gr_name}:{group.gr_passwd}:{group.gr_gid}:{','.join(group.gr_mem)}"
             for group in grp.getgrall() if group.gr_name != "qubes"]
    return "\n".join([*lines, f"qubes:x:{os.getgid()}:{user}", ""]).encode()
