"""What all command-line tools share: the parser, the run, and how failures are told.

A tool is a parser and one function; `main` connects them, prints one sentence and a hint for what went wrong, and makes the
exit status: 0 done, 1 failed, 2 wrong usage or no such qube, 130 interrupted, 141 nobody reads the output; tools add their own.
What is printed on a terminal here can't drive it: control characters become `_`.
"""
from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from cloison import __version__
from cloison.begin import FAILED, INTERRUPTED, PIPE_CLOSED, flushed
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, Qube, list_qubes
from cloison.errors import CloisonError, QubeNotFound, advice
from cloison.values import InvalidValue, QubeName

USAGE = 2
_PATTERN = re.compile(r"[A-Za-z0-9_.\]!-]*[*?\[][A-Za-z0-9_.*?\[\]!-]*")   # what names may hold, and a wildcard

_WHOLE = (argparse.PARSER, argparse.REMAINDER)   # an argument that takes all that follows, options too
NO_TEMPLATE = "There is no template yet, so no qube. Make one: cloison template build debian-13"

Run = Callable[[argparse.Namespace, Connection], int | None]


class NoSuchQube(CloisonError):
    """A well-formed name that no qube has."""

    hint = "qvm-ls lists the qubes."
    exit_status = USAGE


class NoMachine(CloisonError):
    """A RemoteVM: it runs on another machine."""

    hint = "Calls go to it from qubes, as the policy says, through its relayvm."

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is a RemoteVM: there is nothing of it on this machine")


class NoName(CloisonError):
    """A text that no qube can have as its name."""

    exit_status = USAGE


class Parser(argparse.ArgumentParser):
    """An argument parser with the options all tools have.

    `qubes`: how many VMNAME arguments the tool takes: "1", "?", "*" or "+"; the last two come with --all and --exclude.
    `examples`: command and meaning, shown at the end of --help.
    """

    def __init__(self, *, qubes: str = "", examples: Sequence[tuple[str, str]] = (), **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        settings.setdefault("epilog", _examples(examples))
        super().__init__(**settings)
        self.add_argument("--verbose", "-v", action="count", default=1, help="say more")
        self.add_argument("--quiet", "-q", action="count", default=0, help="say less")
        self.add_argument("--force-root", action="store_true", help=argparse.SUPPRESS)
        self.add_argument("--version", action="version", version=f"%(prog)s (Cloison) {__version__}")
        if qubes in ("*", "+"):
            self.add_argument("names", metavar="VMNAME", nargs="*", help="a qube, or a pattern with * ? [...] (quote it)")
            self.add_argument("--all", dest="all_qubes", action="store_true", help="all qubes but dom0")
            self.add_argument("--exclude", metavar="VMNAME", action="append", default=[], help="with --all: leave this one out")
        elif qubes:
            self.add_argument("name", metavar="VMNAME", nargs=None if qubes == "1" else qubes, help="a qube")
        self._needs_qubes = qubes == "+"
        self._many = qubes in ("*", "+")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        # Arguments may stand before, after and between options; what stands after "--" is all arguments.
        mixed = "--" not in words and not any(action.nargs in _WHOLE for action in self._actions)
        parsed = self.parse_intermixed_args(words, namespace) if mixed else super().parse_args(words, namespace)
        if getattr(parsed, "exclude", None) and not parsed.all_qubes:
            self.error("--exclude can only be used with --all")
        if self._many and parsed.names and parsed.all_qubes:
            self.error("VMNAME and --all exclude each other")
        if self._needs_qubes and not parsed.names and not parsed.all_qubes:
            self.error("name the qubes, or use --all")
        return parsed

    def error(self, message: str) -> NoReturn:
        """argparse repeats words as they were given."""
        super().error(printable(message))

    def format_help(self) -> str:
        """With the sub-commands' own usage lines."""
        text = super().format_help()
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in dict.fromkeys(action.choices.values()):
                    text += "\n" + parser.format_usage()
        return text


def _examples(examples: Sequence[tuple[str, str]]) -> str | None:
    if not examples:
        return None
    width = max(len(command) for command, _ in examples)
    return "examples:\n" + "\n".join(f"  {command:{width}}  {meaning}" for command, meaning in examples)


def main(parser: argparse.ArgumentParser, run: Run, argv: Sequence[str] | None = None) -> int:
    """Run a tool to its end; the exit status."""
    prog = parser.prog
    try:
        args = parser.parse_args(argv)
        return flushed(prog, run(args, Connection(slow=lambda method, dest: _tell_slow(prog, method, dest))) or 0)
    except SystemExit as end:            # argparse: --help, wrong usage
        return flushed(prog, end.code if isinstance(end.code, int) else FAILED if end.code else 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return flushed(prog, PIPE_CLOSED)
    except OSError as error:
        told = error.strerror or str(error)
        return flushed(prog, 0) or report(prog, CloisonError(f"{error.filename}: {told}" if error.filename else told))
    except (CloisonError, InvalidValue, EOFError) as error:
        return flushed(prog, report(prog, error))


def _tell_slow(prog: str, method: str, dest: str) -> None:
    """Silence is no answer: what hangs is named, and how to go."""
    print(f"{prog}: still waiting for qubesd's answer to {method} of {dest}; Ctrl-C ends the wait, "
          f"`cloison log qubesd` may tell why", file=sys.stderr, flush=True)


def report(prog: str, error: Exception, about: str = "") -> int:
    """Tell a failure; the exit status that goes with it."""
    fail(prog, f"{about}: {error}" if about else str(error) or type(error).__name__)
    if isinstance(error, CloisonError):
        if hint := next_step(error):
            print(f"{prog}: hint: {printable(hint)}", file=sys.stderr)
        return USAGE if isinstance(error, QubeNotFound) else error.exit_status
    return FAILED


def next_step(error: CloisonError) -> str:
    """What helps. Where a qube is missing it may be that there can be none yet."""
    if isinstance(error, (QubeNotFound, NoSuchQube)):
        try:
            if not _any_template(list_qubes(Connection())):
                return NO_TEMPLATE
        except (CloisonError, OSError):
            pass                         # the failure itself is what is told
    return advice(error)


def tell_without_template(prog: str, qubes: Mapping[str, Qube]) -> None:
    """The next step, where there is no template."""
    if not _any_template(qubes):
        print(f"{prog}: {NO_TEMPLATE}", file=sys.stderr)


def _any_template(qubes: Mapping[str, Qube]) -> bool:
    return any(qube.klass == "TemplateVM" for qube in qubes.values())


def fail(prog: str, sentence: str) -> None:
    print(f"{prog}: error: {printable(sentence)}", file=sys.stderr)


def tell_problems(
    prog: str, connection: Connection, names: Container[str] | None = None, told: Container[str] = (), *, started: bool = False,
) -> list[str]:
    """A line on standard error for each running qube (of these names) that is not as it should be, but for what is `told` already.
    `started`: they have just been started, so also what is worth a word then. Returns all that is so.
    """
    import json

    try:
        facts = json.loads(connection.call(DOM0, "internal.cloison.Status", internal=True))
    except (CloisonError, ValueError):   # another qubesd: it knows no such call; or it is away
        return []
    found = [sentence for name, sentence in (facts.get("problems") or {}).items() if names is None or name in names]
    if names is not None and started:
        older = facts.get("old_agents") or {}
        found += dict.fromkeys(sentence for name, sentence in older.items() if name in names)
    for sentence in found:
        if sentence not in told:
            print(f"{prog}: {printable(sentence)}", file=sys.stderr)
    return found


def quit_usage(parser_prog: str, sentence: str) -> NoReturn:
    """A wrong combination of arguments, found after parsing."""
    fail(parser_prog, sentence)
    raise SystemExit(USAGE)


# -- qubes ---------------------------------------------------------------------------------------------------------------


def qube_name(text: str) -> str:
    """A qube's name, fit for a call. Raises NoName for any other text."""
    try:
        return QubeName(text)
    except InvalidValue as error:
        raise NoName(str(error)) from error


def chosen(args: argparse.Namespace, connection: Connection, *, with_dom0: bool = False) -> list[Qube]:
    """The qubes that VMNAME, --all and --exclude stand for. Raises NoName, or NoSuchQube for an unknown one."""
    names = [text if _is_pattern(text) else qube_name(text) for text in [*args.names, *args.exclude]]
    known = list_qubes(connection)
    if args.all_qubes:
        return [qube for qube in known.values() if qube.name not in args.exclude and (with_dom0 or qube.klass != "AdminVM")]
    return [known[name] for name in _expand(names, known)]


def _is_pattern(text: str) -> bool:
    return bool(_PATTERN.fullmatch(text))


def _expand(names: Iterable[str], known: Iterable[str]) -> list[str]:
    known = list(known)
    expanded: dict[str, None] = {}
    for name in names:
        if _is_pattern(name):
            from fnmatch import fnmatchcase

            matching = [candidate for candidate in known if fnmatchcase(candidate, name)]
            if not matching:             # as in Qubes OS, no failure: a script's pattern may mean none today
                print(f"no qube matches {name}", file=sys.stderr)
            expanded.update(dict.fromkeys(matching))
        elif name in known:
            expanded[name] = None
        else:
            raise NoSuchQube(f"there is no qube {name!r}")
    return list(expanded)


def each(
    prog: str, connection: Connection, qubes: Iterable[str], method: str, argument: str = "", *,
    ignore: tuple[type[CloisonError], ...] = (), what: str = "", done: Callable[[str], object] = lambda name: None,
) -> dict[str, CloisonError]:
    """The same call to many qubes at once. Tells each failure unless `what` is empty; the failures by name.

    `done` is called with each name whose call has succeeded.
    """
    names = list(qubes)
    failed = {}
    for name, outcome in zip(names, connection.gather((name, method, argument) for name in names), strict=True):
        if isinstance(outcome, CloisonError) and not isinstance(outcome, ignore):
            failed[name] = outcome
            if what:
                report(prog, outcome, f"{what}: {name}")
        elif not isinstance(outcome, CloisonError):
            done(name)
    return failed


# -- output --------------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """The text with every control character but newline and TAB as `_`, and what the terminal can't show escaped."""
    safe = "".join(character if character.isprintable() or character in "\n\t" else "_" for character in text)
    encoding = sys.stdout.encoding or "utf-8"
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str) -> None:
    """A line on standard output; on a terminal, control characters are replaced."""
    print(printable(text) if is_terminal(sys.stdout) else text)


def is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; the last one is not filled up. As column(1) has it, which Qubes OS's tools print with."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


def confirm(question: str, *answers: str) -> bool:
    """Ask on the terminal. `answers`: what means yes ("y"). End of input is a no, and so is input that can't be read."""
    try:
        return input(question).strip().lower() in [answer.lower() for answer in answers or ("y",)]
    except (EOFError, OSError):
        return False


def verbosity(args: argparse.Namespace) -> int:
    """1 unless asked for more or less."""
    return int(args.verbose - args.quiet)


