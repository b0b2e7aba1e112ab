"""cloison kernel: the kernels that qubes can start with. Adds one from Debian or from files, lists them, removes one nobody uses.

Adding touches nothing but a work folder until the finished version is renamed into the pool; so Ctrl-C or a kill leaves the pool
as it was. A version is removed by one rename too, and comes back if a qube took it up at that very moment.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from cloison.cli import tool
from cloison.cli.building import add_mirror, fresh_log, progress, terminated_like_interrupted
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, get_property, list_qubes, parse_property
from cloison.errors import CloisonError, QubeNotFound
from cloison.runtime.files import rename
from cloison.runtime.paths import Paths
from cloison.runtime.programs import find
from cloison.templates import kernel_tree, kernels, sources, suites
from cloison.templates.build import GIB, BuildRequest, require_space
from cloison.templates.complaints import MADE_BY_A_FAILURE
from cloison.templates.contain import Tools
from cloison.templates.work import work_folder

SUITE = suites.chosen(suites.USUAL, None)
NEEDED_SPACE = GIB                       # on the data disk for a package of Debian, with what apt fetches
NO_KERNEL = f"cloison: There is no kernel yet. A template brings one: cloison template build {suites.USUAL}"

Install = Callable[[Tools, str], str]
"""Tools and a work folder; the version that is in the pool then."""


class KernelInUse(CloisonError):
    """Some qube would not start without it."""

    hint = "Give them another one first: qvm-prefs QUBE kernel VERSION; the default: qubes-prefs default_kernel VERSION."


class NoSuchKernel(CloisonError):
    """No version of the pool has that name."""

    hint = "cloison kernel list shows the versions there are."


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "kernel", help="add, list and remove kernels", description="Kernels that qubes start with (qvm-prefs QUBE kernel VERSION).")
    verbs = parser.add_subparsers(dest="kernel_verb", metavar="VERB", required=True)
    adding = verbs.add_parser("add", help="add a kernel", description=(
        "Add a kernel to the pool, from Debian's archive or from files of yours. Ctrl-C undoes it at any time."), examples=[
            ("cloison kernel add", f"the newest {kernels.PACKAGE} of {suites.described(SUITE)}"),
            ("cloison kernel add linux-image-amd64 --suite bookworm", "Debian 12's, with drivers for real hardware"),
            ("cloison kernel add --vmlinuz arch/x86/boot/bzImage --modules out/lib/modules/6.12.1", "one that you built"),
            ("qvm-prefs work kernel 6.12.1", "then: let a qube start with it"),
        ])
    adding.add_argument("package", metavar="PACKAGE", nargs="?", default=kernels.PACKAGE, help="of Debian (default: %(default)s)")
    adding.add_argument("--suite", default=SUITE, help="Debian release, such as bookworm or 12 (default: %(default)s)")
    add_mirror(adding)
    adding.add_argument("--vmlinuz", metavar="FILE", help="the kernel's image, instead of a package")
    adding.add_argument("--modules", metavar="DIR", help="with --vmlinuz: its modules, a folder that is named after the release")
    verbs.add_parser("list", help="list kernels", description="List the kernels of the pool, and who starts with each.")
    removing = verbs.add_parser("remove", help="remove a kernel", description="Remove a kernel that no qube uses.", examples=[
        ("cloison kernel remove 6.1.0-9-cloud-amd64", "refused while a qube or the default names it")])
    removing.add_argument("version", metavar="KERNEL", help="a version that `cloison kernel list` shows")


def run(args: argparse.Namespace) -> int:
    connection = Connection(Paths.from_environment())
    return {"add": _add, "list": _list, "remove": _remove}[args.kernel_verb](args, connection)


def _add(args: argparse.Namespace, connection: Connection) -> int:
    if bool(args.vmlinuz) != bool(args.modules):
        tool.quit_usage("cloison kernel add", "--vmlinuz and --modules belong together")
    paths = connection.paths
    install = _from_files(args, paths) if args.vmlinuz else _from_debian(args, paths)
    paths.ensure()
    list_qubes(connection)               # before any work: is qubesd there
    with terminated_like_interrupted(), work_folder(paths) as folder:
        version = install(Tools(fresh_log(paths, "kernel-add")), folder)
    if not get_property(connection, None, "default_kernel").text:
        connection.call(DOM0, "admin.property.Set", "default_kernel", version.encode())
    tool.say(f"{version} is there; to start a qube with it: qvm-prefs QUBE kernel {version}")
    return 0


def _from_debian(args: argparse.Namespace, paths: Paths) -> Install:
    suite = suites.of_option(args.suite)
    BuildRequest("kernel", suite, mirror=args.mirror, kernel=args.package)       # checks the words
    print(f"{args.package} of {suites.described(suite)}", flush=True)

    def install(tools: Tools, folder: str) -> str:
        require_space(paths, NEEDED_SPACE)
        lines = sources.build_lines(suite, args.mirror)
        with progress("kernel") as report:
            done = _Steps(report)
            return kernels.install(paths, tools, folder, suite=suite, lines=lines, package=args.package, on_line=done)
    return install


def _from_files(args: argparse.Namespace, paths: Paths) -> Install:
    kernel = kernel_tree.of_files(args.vmlinuz, args.modules, find("busybox"))

    def install(tools: Tools, folder: str) -> str:
        with progress("kernel") as report:
            report(20, f"packing the modules of {kernel.release}")
            return kernels.install_tree(paths, tools, folder, kernel)
    return install


class _Steps:
    """A line of mmdebstrap's as progress: what it says, and that it has come further."""

    def __init__(self, report: Callable[[int, str], None]) -> None:
        self._report, self._percent = report, 0

    def __call__(self, line: str) -> None:
        if line.startswith("I: ") and not line.startswith(MADE_BY_A_FAILURE):
            self._percent = min(self._percent + 15, 90)
            self._report(self._percent, line.removeprefix("I: ").rstrip("."))


def _list(_: argparse.Namespace, connection: Connection) -> int:
    users = _users(connection)
    rows = []
    for version in kernels.installed(connection.paths):
        folder = os.path.join(connection.paths.kernels, version)
        size = sum(os.stat(os.path.join(folder, name)).st_blocks * 512 for name in kernels.FILES)
        rows.append((version, f"{size >> 20} MiB", ", ".join(users.get(version, [])) or "unused"))
    if rows:
        tool.say(tool.table(rows))
    else:
        print(NO_KERNEL, file=sys.stderr)
    return 0


def _remove(args: argparse.Namespace, connection: Connection) -> int:
    version, paths = args.version, connection.paths
    if version not in kernels.installed(paths):
        raise NoSuchKernel(f"there is no kernel {version} in the pool")
    _refuse_if_used(connection, version)
    with work_folder(paths) as folder:
        there, away = os.path.join(paths.kernels, version), os.path.join(folder, "removed")
        rename(there, away)
        try:                             # from here on no qube can be given it; one may just have been
            _refuse_if_used(connection, version)
        except BaseException:
            rename(away, there)
            raise
    tool.say(f"{version} is removed")
    return 0


def _refuse_if_used(connection: Connection, version: str) -> None:
    users = _users(connection).get(version)
    if users:
        more = f" and {len(users) - 3} more" if len(users) > 3 else ""
        raise KernelInUse(f"kernel {version} is in use by {', '.join(users[:3])}{more}")


def _users(connection: Connection) -> dict[str, list[str]]:
    """By version: `the default`, and the qubes that start with it. Raises CloisonError: who can't be asked may use any."""
    found: dict[str, list[str]] = {}
    default = get_property(connection, None, "default_kernel").text
    if default:
        found[default] = ["the default"]
    names = [qube.name for qube in list_qubes(connection).values() if qube.klass not in ("AdminVM", "RemoteVM")]
    replies = list(connection.gather((name, "admin.vm.property.Get", "kernel") for name in names))
    for name, reply in zip(names, replies, strict=True):
        if isinstance(reply, QubeNotFound):
            continue                     # a disposable that has just gone
        if isinstance(reply, CloisonError):
            raise reply
        if version := parse_property(reply).text:
            found.setdefault(version, []).append(name)
    return found
