"""qvm-prefs and qubes-prefs: show and change properties of a qube, or of the system."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, Property, get_properties, get_property, lines, list_properties, property_prefix
from cloison.errors import NoSuchProperty

PROG = "qvm-prefs"
UNKNOWN = "U"                            # the mark of a property whose value can't be told
# Properties that hold a qube or nothing: "none" means nothing there.
_MAY_BE_NONE = ("default_dispvm", "netvm", "template", "guivm", "audiovm")


def parser(prog: str = PROG) -> tool.Parser:
    of_qube = prog == PROG
    target = "work " if of_qube else ""
    result = tool.Parser(
        prog=prog, qubes="1" if of_qube else "",
        description="Show or change properties of a qube." if of_qube else "Show or change properties of the whole system.",
        examples=[
            (f"{prog} {target}".rstrip(), "all of them; D marks those at their default"),
            (f"{prog} {target}default_dispvm", "one of them"),
            (f"{prog} {target}default_dispvm dvm", "set it"),
            (f"{prog} --default {target}default_dispvm", "back to its default"),
            (f"{prog} --help-properties {target}".rstrip(), "what there is, and what it means"),
        ],
    )
    result.add_argument("--help-properties", action="store_true", help="list all properties with short descriptions")
    result.add_argument("--hide-default", action="store_true", help="leave out properties that are at their default")
    result.add_argument("--get", "-g", action="store_true", help="ignored, for older scripts")
    result.add_argument("--set", "-s", action="store_true", help="ignored, for older scripts")
    result.add_argument("--default", "-D", dest="delete", action="store_true", help="reset the property to its default")
    result.add_argument("property", metavar="PROPERTY", nargs="?", help="its name")
    result.add_argument("value", metavar="VALUE", nargs="?", help="its new value; '' or none for nothing")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    return act(args, connection, tool.qube_name(args.name), PROG)


def act(args: argparse.Namespace, connection: Connection, dest: str | None, prog: str) -> int:
    """What the arguments ask for. `dest`: a qube, or None for the global properties."""
    if args.help_properties:
        return _explain(connection, dest)
    if args.property is None:
        return _list(connection, dest, hide_default=args.hide_default)
    name = args.property.replace("-", "_")
    try:
        return _one(args, connection, dest, name)
    except NoSuchProperty:
        tool.quit_usage(prog, f"no such property: {name!r}")


def _one(args: argparse.Namespace, connection: Connection, dest: str | None, name: str) -> int:
    method = property_prefix(dest)
    if args.value is not None:
        value = "" if args.value.lower() == "none" and name in _MAY_BE_NONE else args.value
        connection.call(dest or DOM0, method + "Set", name, value.encode())
    elif args.delete:
        connection.call(dest or DOM0, method + "Reset", name)
    else:
        found = get_property(connection, dest, name)
        if found.text is not None and not (args.hide_default and found.default):
            tool.say(found.text)
    return 0


def _list(connection: Connection, dest: str | None, *, hide_default: bool) -> int:
    properties = get_properties(connection, dest)
    width = max(map(len, properties), default=0)
    for name in sorted(properties):
        shown = _shown(properties[name])
        if not (hide_default and properties[name].default and shown != UNKNOWN):
            tool.say(f"{name:{width}}  {shown}")
    return 0


def _shown(prop: Property) -> str:
    """A mark and the value: U for one that can't be told, D for a default."""
    if prop.text is None and prop.kind in ("int", "bool"):
        return UNKNOWN
    return f"{'D' if prop.default else '-'}  {prop.text}"


def _explain(connection: Connection, dest: str | None) -> int:
    import textwrap

    names = sorted(list_properties(connection, dest))
    width = max(map(len, names), default=0)
    wrapper = textwrap.TextWrapper(width=80, initial_indent="  ", subsequent_indent=" " * (width + 6))
    method = property_prefix(dest) + "Help"
    for name, outcome in zip(names, connection.gather((dest or DOM0, method, name) for name in names), strict=True):
        text = " ".join(lines(outcome)) if isinstance(outcome, bytes) else str(outcome)
        tool.say(wrapper.fill(f"{name:{width}}  {text}"))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
