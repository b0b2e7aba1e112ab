"""qvm-ls: list qubes."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from cloison.cli import tool
from cloison.cli.ls_columns import COLUMNS, FORMATS, Facts, column, needs_properties, sort_key
from cloison.client.connection import Connection
from cloison.client.domains import Property, Qube, feature, get_all_properties, list_qubes, tags

PROG = "qvm-ls"
_YES = ("1", "true", "True")
_STATES = ("running", "paused", "halted")


def parser() -> tool.Parser:
    columns = ", ".join(sorted(COLUMNS))
    result = tool.Parser(prog=PROG, qubes="*", description="List qubes and their settings.", examples=[
        ("qvm-ls", "all qubes, a line each"),
        ("qvm-ls --running --format network", "those that run, with their addresses"),
        ("qvm-ls -O name,memory,vcpus work", "columns of your choice, one qube"),
        ("qvm-ls --raw-list --tags personal", "only names, for scripts"),
    ])
    result.epilog = f"{result.epilog}\n\nformats: {', '.join(FORMATS)}\ncolumns: {columns}, and every property of qvm-prefs"
    _add_format(result)
    _add_filters(result)
    result.add_argument("--sort", metavar="COLUMN", default="NAME", help="sort by this column instead of NAME")
    result.add_argument("--reverse", action="store_true", help="sort the other way round")
    result.add_argument("--ignore-case", action="store_true", help="sort A like a")
    result.add_argument("--spinner", nargs="?", help="ignored: nothing spins here")
    result.add_argument("--no-spinner", action="store_true", help="ignored: nothing spins here")
    return result


def _add_format(parser: tool.Parser) -> None:
    group = parser.add_argument_group("what to show")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--format", "-o", metavar="FORMAT", choices=FORMATS, default="simple", help="preset format")
    one.add_argument("--fields", "-O", metavar="FIELD,...", help="columns of your choice")
    for name in ("disk", "network", "kernel"):
        one.add_argument(f"--{name}", f"-{name[0]}", dest="format", action="store_const", const=name, help=f"--format {name}")
    group.add_argument("--tree", "-t", action="store_true", help="as a tree of who gives network to whom")
    group.add_argument("--raw-data", action="store_true", help="fields with | between them and no head, for scripts")
    group.add_argument("--raw-list", action="store_true", help="only the names, for scripts")
    group.add_argument("--help-formats", action="store_true", help="list the formats with their columns and exit")
    group.add_argument("--help-columns", action="store_true", help="list the columns with their meanings and exit")


def _add_filters(parser: tool.Parser) -> None:
    group = parser.add_argument_group("which qubes to show")
    for option, dest, metavar, text in (
        ("--class", "klass", "CLASS", "qubes of these classes"),
        ("--label", "label", "LABEL", "qubes with these labels"),
        ("--tags", "tags", "TAG", "qubes with any of these tags"),
        ("--exclude-tags", "exclude_tags", "TAG", "qubes with none of these tags"),
        ("--template-source", "template_source", "TEMPLATE", "qubes on these templates"),
        ("--netvm-is", "netvm_is", "NETVM", "qubes that get network from these"),
        ("--features", "features", "FEATURE=VALUE", "qubes with all of these; empty VALUE: not set, '\"\"': empty"),
        ("--prefs", "prefs", "PROPERTY=VALUE", "qubes with all of these; empty VALUE: nothing, '\"\"': empty"),
    ):
        group.add_argument(option, dest=dest, metavar=metavar, nargs="+", help=text)
    for state in _STATES:
        group.add_argument(f"--{state}", action="store_true", help=f"{state} qubes")
    for name in ("internal", "servicevm"):
        meaning = f"only, or no, qubes with feature {name}"
        group.add_argument(f"--{name}", choices=("y", "yes", "n", "no"), metavar="y|n", help=meaning)
    group.add_argument("--pending-update", action="store_true", help="qubes with updates available")


def run(args: argparse.Namespace, connection: Connection) -> int:
    if args.help_formats:
        formats = "\n".join(f"  {name:8} {','.join(columns).upper()}" for name, columns in sorted(FORMATS.items()))
        tool.say(f"Available formats:\n{formats}\n")
        return 0
    if args.help_columns:
        tool.say("Available columns:\n" + tool.table([("  " + name, column(name).meaning) for name in sorted(COLUMNS)]))
        tool.say("\nEvery property is a column too: qvm-prefs --help-properties lists them.\n")
        return 0
    if args.raw_list:
        args.raw_data, args.fields = True, "name"
    names = [name.strip().lower() for name in args.fields.split(",")] if args.fields else list(FORMATS[args.format])
    args.tree = args.tree and not args.raw_data          # lines for scripts have no depth
    everything = not args.names and not args.all_qubes
    qubes = list(list_qubes(connection).values()) if everything else tool.chosen(args, connection, with_dom0=True)
    facts = _facts(args, connection, names, qubes)
    tests = _filters(args, facts)
    shown = [qube for qube in sorted(qubes) if all(test(qube) for test in tests)]
    rows = _tree(shown, facts) if args.tree else [(0, qube) for qube in shown]
    cells = [_row(qube, names, facts, depth) for depth, qube in rows]
    if args.raw_data:
        lines = ["|".join(row) for row in cells]
    else:
        lines = [tool.table([[name.upper().replace("_", "-") for name in names], *_sorted(args, names, cells)])]
    if lines:
        tool.say("\n".join(lines))
    if not args.raw_data and any(qube.state != "Halted" and qube.klass != "AdminVM" for qube in shown):
        tool.tell_problems(PROG, connection)
    return 0


def _facts(args: argparse.Namespace, connection: Connection, names: list[str], qubes: list[Qube]) -> Facts:
    """What the columns and filters will ask for, fetched with as few calls as they need."""
    properties: dict[str, dict[str, Property]] = {}
    filtering = args.label or args.template_source or args.netvm_is or args.prefs or args.tree
    if filtering or needs_properties(names):
        properties = get_all_properties(connection, (qube.name for qube in qubes))
    return Facts(connection, properties)


def _row(qube: Qube, names: Sequence[str], facts: Facts, depth: int) -> list[str]:
    row = [(column(name).value(facts, qube) or "-") for name in names]
    if depth and "name" in names:
        row[names.index("name")] = "  " * (depth - 1) + "└─" + qube.name
    return row


def _sorted(args: argparse.Namespace, names: Sequence[str], rows: list[list[str]]) -> list[list[str]]:
    wanted = args.sort.lower().replace("-", "_")
    known = [name.lower().replace("-", "_") for name in names]
    if args.tree or wanted not in known:   # sorting by what is not shown does nothing
        return rows
    index = known.index(wanted)
    return sorted(rows, key=lambda row: sort_key(wanted, row[index], fold=args.ignore_case), reverse=args.reverse)


# -- filters -------------------------------------------------------------------------------------------------------------

Test = Callable[[Qube], bool]


def _filters(args: argparse.Namespace, facts: Facts) -> list[Test]:
    """A qube is shown if all of these hold. The cheap ones come first."""
    tests: list[Test] = []
    states = [state.capitalize() for state in _STATES if getattr(args, state)]
    if states:
        tests.append(lambda qube: qube.state in states)
    if args.klass:
        tests.append(lambda qube: qube.klass in args.klass)
    for wanted, prop in ((args.label, "label"), (args.template_source, "template"), (args.netvm_is, "netvm")):
        if wanted:
            tests.append(_any_of(facts, prop, wanted))
    for key, value in _pairs(args.prefs, "--prefs"):
        tests.append(_is(lambda qube, key: facts.property(qube.name, key), key, value))
    if args.tags:
        tests.append(lambda qube: not set(args.tags).isdisjoint(tags(facts.connection, qube.name)))
    if args.exclude_tags:
        tests.append(lambda qube: set(args.exclude_tags).isdisjoint(tags(facts.connection, qube.name)))
    return tests + _feature_filters(args, facts.connection)


def _feature_filters(args: argparse.Namespace, connection: Connection) -> list[Test]:
    tests: list[Test] = []
    for key, value in _pairs(args.features, "--features"):
        tests.append(_is(lambda qube, key: feature(connection, qube.name, key), key, value))
    for name in ("internal", "servicevm"):
        if wanted := getattr(args, name):
            tests.append(_has(connection, name, present=wanted.startswith("y")))
    if args.pending_update:
        tests.append(lambda qube: bool(feature(connection, qube.name, "updates-available")))
    return tests


def _any_of(facts: Facts, prop: str, wanted: Sequence[str]) -> Test:
    return lambda qube: (facts.property(qube.name, prop) or "") in wanted


def _is(value_of: Callable[[Qube, str], str | None], key: str, wanted: str | None) -> Test:
    return lambda qube: value_of(qube, key) == wanted


def _has(connection: Connection, name: str, *, present: bool) -> Test:
    return lambda qube: (feature(connection, qube.name, name) in _YES) == present


def _pairs(texts: Sequence[str] | None, option: str) -> list[tuple[str, str | None]]:
    """KEY=VALUE words. Nothing after `=` is None, a pair of quotes is the empty text."""
    pairs: list[tuple[str, str | None]] = []
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            tool.quit_usage(PROG, f"{option} {text!r} is not of the form NAME=VALUE")
        pairs.append((key, "" if value in ("''", '""') else value or None))
    return pairs


# -- tree ----------------------------------------------------------------------------------------------------------------


def _tree(qubes: Sequence[Qube], facts: Facts) -> list[tuple[int, Qube]]:
    """Depth and qube; clients follow their netvm. What has neither netvm nor clients comes first."""
    netvm = {qube.name: facts.property(qube.name, "netvm") for qube in qubes}
    roots = [qube for qube in qubes if netvm[qube.name] not in netvm]
    roots.sort(key=lambda qube: (facts.property(qube.name, "provides_network") == "True", qube.name))

    def under(parent: Qube, depth: int) -> list[tuple[int, Qube]]:
        rows = [(depth, parent)]
        for qube in qubes:
            if netvm[qube.name] == parent.name:
                rows += under(qube, depth + 1)
        return rows

    return [row for root in roots for row in under(root, 0)]


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
