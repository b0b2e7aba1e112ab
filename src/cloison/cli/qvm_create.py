"""qvm-create: make a new qube."""
from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.create import Creation, copy, create, making
from cloison.client.domains import DOM0, lines
from cloison.client.importing import import_volume
from cloison.errors import BadRequest, CloisonError, LabelNotFound, QubeNotFound, advice

PROG = "qvm-create"
PROPERTY_FAILED = 2                      # not made, since a property could not be set
IMPORT_FAILED = 3                        # not made, since its root volume could not be filled


class NotMade(CloisonError):
    """Something that was asked for with the qube failed, so there is no qube."""

    def __init__(self, name: str, what: str, error: Exception, status: int) -> None:
        super().__init__(name, what)
        self.name, self.what, self.error, self.exit_status = name, what, error, status
        self.hint = advice(error)

    def __str__(self) -> str:
        return f"{self.what}: {self.error}; {self.name} is not made"


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, description="Make a new qube.", examples=[
        ("qvm-create --label blue work", "an AppVM on the default template"),
        ("qvm-create -l red -t debian-13 untrusted", "on that template"),
        ("qvm-create --disp -t dvm burner", "a named disposable"),
        ("qvm-create -C StandaloneVM -t debian-13 -l gray box", "a copy of a template that lives alone"),
    ])
    add = result.add_argument
    add("--class", "-C", dest="klass", metavar="CLASS", default="AppVM", help="class of the new qube (default: %(default)s)")
    add("--standalone", dest="klass", action="store_const", const="StandaloneVM", help="the same as --class StandaloneVM")
    add("--disp", action="store_true", help="the same as --class DispVM --label red")
    add("--property", "--prop", dest="properties", metavar="NAME=VALUE", action="append", default=[], help="set a property")
    add("--pool", "-p", metavar="VOLUME=POOL", action="append", default=[], help="the pool for one volume")
    add("-P", dest="one_pool", metavar="POOL", default="", help="the pool for all volumes")
    add("--template", "-t", metavar="TEMPLATE", help="the template to use")
    add("--label", "-l", metavar="LABEL", help="its colour: red, orange, yellow, green, gray, blue, purple, black")
    add("--help-classes", action="store_true", help="list available classes and exit")
    root = result.add_mutually_exclusive_group()
    root.add_argument("--root-copy-from", "-r", metavar="FILE", help="fill its root volume with a copy of this image")
    root.add_argument("--root-move-from", "-R", metavar="FILE", help="the same, and delete the file afterwards")
    root.add_argument("--no-root", action="store_true", help=argparse.SUPPRESS)
    add("name", metavar="NEWVM", nargs="?", help="name of the new qube")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    if args.help_classes:
        tool.say("\n".join(sorted(lines(connection.call(DOM0, "admin.vmclass.List")))))
        return 0
    wanted, properties = _creation(args)
    image = args.root_copy_from or args.root_move_from
    if image and wanted.klass in ("AppVM", "DispVM"):
        tool.quit_usage(PROG, f"a qube of class {wanted.klass} uses its template's root volume, so it can't be filled")
    if image and not os.path.isfile(image):
        tool.quit_usage(PROG, f"no such file: {image!r}")
    try:
        _make(connection, wanted, properties, image)
    except (BadRequest, LabelNotFound):  # what an unknown label is answered with depends on qubesd
        known = lines(connection.call(DOM0, "admin.label.List"))
        if wanted.label in known:
            raise
        tool.quit_usage(PROG, f"no such label: {wanted.label!r}; there are {', '.join(known)}")
    except QubeNotFound as error:        # the template; exit status 2 is for wrong usage
        tool.report(PROG, error)
        return 1
    if args.root_move_from:
        os.unlink(args.root_move_from)
    return 0


def _make(connection: Connection, wanted: Creation, properties: dict[str, str], image: str | None) -> None:
    """All of it or nothing. One call if that is all it takes."""
    source = wanted.template if wanted.klass == "StandaloneVM" else ""
    if not (source or properties or image):
        create(connection, wanted)
        return
    with making(connection, wanted._replace(template="") if source else wanted, PROG):
        if source:
            copy(connection, source, wanted.name, skip_volumes=("private",))
        for prop, value in properties.items():
            try:
                connection.call(wanted.name, "admin.vm.property.Set", prop, value.encode())
            except CloisonError as error:
                raise NotMade(wanted.name, f"setting property {prop}", error, PROPERTY_FAILED) from error
        if image:
            _fill_root(connection, wanted.name, image)


def _fill_root(connection: Connection, name: str, image: str) -> None:
    try:
        with open(image, "rb") as source:
            import_volume(connection, name, "root", source, os.fstat(source.fileno()).st_size)
    except (CloisonError, OSError) as error:
        raise NotMade(name, "importing the root volume", error, IMPORT_FAILED) from error


def _creation(args: argparse.Namespace) -> tuple[Creation, dict[str, str]]:
    """What to make, and the properties to set then. Ends the tool for a wrong combination."""
    properties = dict(pair_of(text, PROG) for text in args.properties)
    label = args.label or properties.pop("label", "red" if args.disp else None)
    template = args.template or properties.pop("template", None)
    name = args.name or properties.pop("name", None)
    if label is None:
        tool.quit_usage(PROG, "--label option is mandatory")
    if name is None:
        tool.quit_usage(PROG, "VMNAME is mandatory")
    pools = dict(pair_of(text, PROG) for text in args.pool)
    return Creation(name, "DispVM" if args.disp else args.klass, label, template or "", args.one_pool, pools), properties


def pair_of(text: str, prog: str) -> tuple[str, str]:
    """`KEY=VALUE`. Ends the tool for anything else."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        tool.quit_usage(prog, f"{text!r} is not of the form NAME=VALUE")
    return key, value


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
