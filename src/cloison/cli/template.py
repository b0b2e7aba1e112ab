"""cloison template: build a Debian template and make it a qube; list what there is.

Building touches nothing but a work folder and the kernels' pool; only the finished image is given to qubesd. So Ctrl-C, a failure
or a kill at any time before leaves everything as it was.
"""
from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Sequence
from typing import Any

from cloison.cli import tool
from cloison.cli.building import add_mirror, fresh_log, progress, terminated_like_interrupted
from cloison.client.connection import Connection
from cloison.client.create import Creation, making
from cloison.client.domains import DOM0, feature, get_property, list_qubes, volume_info
from cloison.errors import CloisonError
from cloison.runtime.paths import Paths
from cloison.templates import kernels, suites
from cloison.templates.build import DEFAULT_SIZE, MAX_SIZE, MIN_SIZE, BuildRequest, Built, build
from cloison.templates.contain import Tools
from cloison.templates.work import work_folder
from cloison.values import QubeName

TEMPLATE = "TemplateVM"
LABEL = "black"
INCLUDED = "cloison-include"             # feature of a template: packages that its maker asked for
_SIZE = re.compile(r"([0-9]{1,10})([MGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class NotATemplate(CloisonError):
    """The name belongs to a qube of another class."""

    hint = "Choose another name; qvm-ls lists the ones in use."


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "template", help="build and list templates", description="Templates: the systems that qubes start from.")
    verbs = parser.add_subparsers(dest="template_verb", metavar="VERB", required=True)
    making = verbs.add_parser("build", help="build a Debian template", description=(
        "Build a Debian template, or a new version of one. Qubes see it at their next start. Ctrl-C undoes it at any time."),
        examples=[("cloison template build debian-13", "the usual one; again later: a new version with Debian's updates"),
                  ("cloison template build dev --suite trixie --include git,man-db", "with more packages"),
                  ("cloison template build debian-12 --size 20G", "another release, on a larger disk")])
    making.add_argument("name", metavar="NAME", help="name of the template's qube, such as debian-13")
    making.add_argument("--suite", help="Debian release, such as trixie or 13 (default: what NAME says, or what it was built from)")
    making.add_argument("--include", metavar="PACKAGE,...", action="append",
                        help="more packages (default: those that NAME was built with; '' for none)")
    making.add_argument("--size", type=parse_size,
                        help="of the root disk (default: as NAME has it, or 10G; takes only what is used)")
    add_mirror(making, also=", also in the template")
    making.add_argument("--kernel", metavar="PACKAGE", default=kernels.PACKAGE, help="kernel package (default: %(default)s)")
    verbs.add_parser("list", help="list templates", description="List templates, and kernels in the pool.")


def run(args: argparse.Namespace) -> int:
    connection = Connection(Paths.from_environment())
    return _list(connection) if args.template_verb == "list" else _build(args, connection)


def parse_size(text: str) -> int:
    """`10G`, `10GiB`, `4096M`: bytes. Raises ArgumentTypeError."""
    match = _SIZE.fullmatch(text)
    if not match or not 0 < int(match[1]) * _UNITS[match[2].upper()] <= MAX_SIZE:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size like 10G")
    return int(match[1]) * _UNITS[match[2].upper()]


def _build(args: argparse.Namespace, connection: Connection) -> int:
    name = QubeName(args.name)
    paths = connection.paths
    paths.ensure()
    known = list_qubes(connection)     # before any work: is qubesd there, is the name free
    if name in known and known[name].klass != TEMPLATE:
        raise NotATemplate(f"{name} is a qube of class {known[name].klass}, not a template")
    version = (feature(connection, name, "os-version") or "") if name in known else ""
    before = feature(connection, name, INCLUDED) if args.include is None and name in known else None
    include = _words(args.include or [before or ""])
    size = args.size or (_size_of(connection, name) if name in known else DEFAULT_SIZE)
    request = BuildRequest(name, suites.chosen(name, args.suite, version), include, size, args.mirror, args.kernel)
    more = f", with {', '.join(include)}" if include else ""
    print(f"{name}: {suites.described(request.suite)}{more}", flush=True)     # before any progress, wherever the output goes
    tools = Tools(fresh_log(paths, f"template-{name}"))
    with terminated_like_interrupted(), work_folder(paths) as folder:
        with progress(request.name) as report:
            built = build(request, paths, folder, tools, report)
        register(connection, request.name, built, exists=request.name in known)
    tool.say(f"{request.name} is ready; its kernel is {built.kernel}")
    return 0


def _words(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for text in texts for word in re.split(r"[, ]+", text) if word)


def _size_of(connection: Connection, name: str) -> int:
    """What a template's root has now, if one could be built so."""
    size = int(volume_info(connection, name, "root").get("size", "0"))
    return size if MIN_SIZE <= size <= MAX_SIZE and not size % (1 << 20) else DEFAULT_SIZE


def register(connection: Connection, name: str, built: Built, *, exists: bool) -> None:
    """Make the qube if need be, give it the image, and be the default of what has none yet. Raises CloisonError.

    A qube made here is removed again if it can't be given its image.
    """
    said = "".join(f"{key}={value}\n" for key, value in built.offers.items())
    with contextlib.nullcontext() if exists else making(connection, Creation(name, TEMPLATE, LABEL), "cloison-template-build"):
        connection.call(name, "internal.cloison.SealRoot", payload=built.image.encode(), internal=True)
        connection.call(name, "internal.cloison.FeaturesRequest", payload=said.encode("ascii"), internal=True)
        if built.include or exists:
            connection.call(name, "admin.vm.feature.Set", INCLUDED, ",".join(built.include).encode())
    for key, value in (("default_template", name), ("default_kernel", built.kernel)):
        if not get_property(connection, None, key).text:
            connection.call(DOM0, "admin.property.Set", key, value.encode())


def _list(connection: Connection) -> int:
    default = get_property(connection, None, "default_template").text
    qubes = list_qubes(connection)
    tool.tell_without_template("cloison", qubes)
    for name, qube in sorted(qubes.items()):
        if qube.klass == TEMPLATE:
            used = int(volume_info(connection, name, "root").get("usage", "0"))
            system = feature(connection, name, "os-distribution") or "-"
            tool.say(f"{name:31} {system:10} {used >> 20:6} MiB{'  default' if name == default else ''}")
    for version in kernels.installed(connection.paths):
        tool.say(f"kernel {version}")
    return 0
