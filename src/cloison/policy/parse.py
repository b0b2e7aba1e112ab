"""Text of policy files -> rules, all or nothing (reference/qrexec.md 12).

A `Reader` hands over files; whoever implements it decides what a folder is. One error anywhere means there is no policy at
all, and so every call is denied. Number of files, rules, bytes and depth of inclusion are bounded: two lines can include
each other without end.
"""
from __future__ import annotations

import enum
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cloison.errors import CloisonError
from cloison.policy.rules import Rule, Rules
from cloison.policy.syntax import LEGACY_DIRECTIVE, Fault, Service, modernised, parse_action, parse_directive, parse_rule_line
from cloison.policy.tokens import Column, parse_token

MAX_FILE = 1 << 20      # bytes
MAX_READS = 16_384      # files read, the same one counted each time
MAX_RULES = 65_536
MAX_DEPTH = 64
SUFFIX = ".policy"
UNREADABLE = (OSError, ValueError)      # the latter is what Python makes of a NUL in a path
LINE_END = re.compile(r"\r\n|\r|\n")

_FILE_NAME = re.compile(r"[a-z0-9_.-]+")
_LEGACY_NAME = re.compile(r"[A-Za-z0-9+._-]+")
_LEGACY_IGNORED = (".rpmsave", ".rpmnew", ".swp")
class Root(enum.StrEnum):
    """Where paths begin; the value is how a place is written before the path."""

    MAIN = ""
    RUNTIME = "run/"
    LEGACY = "legacy/"


class Reader(Protocol):
    """Policy files, wherever they are. Paths are as written in directives, relative to the root unless they begin with `/`."""

    def names(self, root: Root, folder: str) -> Sequence[str]:
        """Names of the regular files directly in the folder, `.` being the root. Raises OSError if it's no folder."""

    def content(self, root: Root, path: str) -> bytes:
        """Raises OSError for anything but a regular file."""


@dataclass(eq=False)
class PolicySyntaxError(CloisonError):
    """The policy is invalid as a whole. `file` and `line` are None for what no line is to blame for."""

    kind: str
    text: str
    file: str | None = None
    line: int | None = None
    hint = "Every call is refused until this is corrected."

    def __str__(self) -> str:
        if self.file is None:
            return self.text
        return f"{self.file}:{self.line}: {self.text}"


class _Place(NamedTuple):
    root: Root
    path: str
    line: int | None

    @property
    def file(self) -> str:
        """One spelling of it, whatever an include wrote. What is read is the path as it was written, which may go through links."""
        return f"{self.root.value}{posixpath.normpath(self.path)}"


def parse(reader: Reader) -> Rules:
    """The whole policy: main and runtime folder, in order of file name; the runtime one wins over one of the same name.

    Raises PolicySyntaxError and nothing else: what can't be read makes the policy as invalid as what can't be understood.
    """
    parser = _Parser(reader)
    files: dict[str, Root] = {}
    for root in (Root.MAIN, Root.RUNTIME):
        try:
            names = reader.names(root, ".")
        except OSError as error:
            raise PolicySyntaxError("folder", f"the {root.name.lower()} policy folder can't be read: {error}") from error
        files |= dict.fromkeys(_policy_files(names), root)
    for name in sorted(files):
        try:
            parser.read_file(files[name], name)
        except OSError as error:
            raise PolicySyntaxError("file", f"{files[name].value}{name} can't be read: {error}") from error
    return Rules(parser.rules)


def parse_rule(line: str, file: str) -> Rule:
    """A line that is a rule, on its own; `file` is what its place shall be called. Raises PolicySyntaxError."""
    try:
        return parse_rule_line(line, None, file, None)
    except Fault as fault:
        raise PolicySyntaxError(fault.kind, str(fault), file) from None


def lint(content: bytes, file: str, service_format: bool = False) -> list[PolicySyntaxError]:
    """Every fault of one file, each line on its own, includes not followed."""
    service = Service("*", "*") if service_format else None
    try:
        lines = LINE_END.split(content.decode())
    except UnicodeDecodeError:
        return [PolicySyntaxError("encoding", f"{file} is not UTF-8 text")]
    faults = []
    for number, line in enumerate(lines, 1):
        try:
            _check(_meaning(line, service), service)
        except Fault as fault:
            faults.append(PolicySyntaxError(fault.kind, str(fault), file, number))
    return faults


def _check(line: str, service: Service | None) -> None:
    if line.startswith("!"):
        parse_directive(line, service)
    elif line:
        parse_rule_line(line, service, "", None)


def _meaning(line: str, service: Service | None) -> str:
    """The line without what means nothing. In service format a line is one of the old format still; a comment is told before."""
    line = line.strip()
    if line.startswith("#"):
        return ""
    return line if service is None else modernised(line)


def _policy_files(names: Sequence[str]) -> list[str]:
    """Those that count as policy, in order. A name that looks like policy but is misspelt makes the policy invalid."""
    considered = sorted(name for name in names if name.endswith(SUFFIX) and not name.startswith("."))
    for name in considered:
        if not _FILE_NAME.fullmatch(name):
            raise PolicySyntaxError("filename", f"the file name {name!r} may only hold a-z, 0-9, '_', '.', '-'")
    return considered


class _Parser:
    """Reads files recursively into `rules`."""

    def __init__(self, reader: Reader) -> None:
        self.rules: list[Rule] = []
        self._reader = reader
        self._open: list[str] = []
        self._reads = 0
        self._lines: dict[tuple[Root, str], list[str]] = {}
        self._directives: dict[str, Callable[[_Place, Service | None, list[str]], None]] = {
            "!include": self._include,
            "!include-dir": self._include_dir,
            "!include-service": self._include_service,
            LEGACY_DIRECTIVE: self._include_legacy,
        }

    def read_file(self, root: Root, path: str, service: Service | None = None) -> None:
        """`service` is set for a file in service format. An OSError is the caller's to explain."""
        lines = self._load(root, path)
        with self._opened(_Place(root, path, None).file):
            for number, line in enumerate(lines, 1):
                place = _Place(root, path, number)
                try:
                    self._line(place, _meaning(line, service), service)
                except Fault as fault:
                    raise PolicySyntaxError(fault.kind, str(fault), place.file, number) from None

    def _load(self, root: Root, path: str) -> list[str]:
        self._reads += 1
        if self._reads > MAX_READS:
            raise PolicySyntaxError("too-large", f"the policy reads more than {MAX_READS} files")
        if (root, path) not in self._lines:
            content = self._reader.content(root, path)
            if len(content) > MAX_FILE:
                raise PolicySyntaxError("too-large", f"{root.value}{path} is larger than {MAX_FILE} bytes")
            try:
                self._lines[root, path] = LINE_END.split(content.decode())
            except UnicodeDecodeError as error:
                raise PolicySyntaxError("encoding", f"{root.value}{path} is not UTF-8 text") from error
        return self._lines[root, path]

    @contextmanager
    def _opened(self, file: str) -> Iterator[None]:
        if file in self._open:
            raise PolicySyntaxError("include-loop", f"files include each other in a circle: {' -> '.join([*self._open, file])}")
        if len(self._open) >= MAX_DEPTH:
            raise PolicySyntaxError("include-loop", f"files include each other more than {MAX_DEPTH} deep, the last one {file}")
        self._open.append(file)
        yield
        self._open.pop()

    def _line(self, place: _Place, line: str, service: Service | None) -> None:
        if not line:
            return
        if line.startswith("!"):
            name, words = parse_directive(line, service)
            self._directives[name](place, service, words)
            return
        if len(self.rules) >= MAX_RULES:
            raise Fault("too-large", f"the policy has more than {MAX_RULES} rules")
        self.rules.append(parse_rule_line(line, service, place.file, place.line))

    def _include(self, place: _Place, service: Service | None, words: list[str]) -> None:
        try:
            self.read_file(place.root, words[0], service)
        except UNREADABLE as error:
            raise Fault("include-missing", f"{words[0]} can't be read: {error}") from error

    def _include_service(self, place: _Place, _: Service | None, words: list[str]) -> None:
        name, argument, path = words
        self._include(place, Service(name, argument), [path])

    def _include_dir(self, place: _Place, _: Service | None, words: list[str]) -> None:
        folder = words[0]
        try:
            names = self._reader.names(place.root, folder)
        except UNREADABLE as error:
            raise Fault("include-dir-missing", f"the folder {folder} can't be read: {error}") from error
        for name in _policy_files(names):
            self._include(place, None, [f"{folder.rstrip('/')}/{name}"])

    def _include_legacy(self, place: _Place, _: Service | None, __: list[str]) -> None:
        """The 4.0 folder: a file a service, or a service with an argument; the latter ends in a refusal of the rest (14)."""
        try:
            names = self._reader.names(Root.LEGACY, ".")
        except OSError as error:
            raise Fault("include-dir-missing", f"the folder of the 4.0 policy can't be read: {error}") from error
        for name in sorted(filter(_is_legacy_file, names), key=_legacy_order):
            service, plus, argument = name.partition("+")
            self._include(_Place(Root.LEGACY, name, None), Service(service, f"+{argument}" if plus else "*"), [name])
            if plus:
                self.rules += _legacy_end(service, f"+{argument}", _Place(Root.LEGACY, name, None))


# -- the format of Qubes OS 4.0 ------------------------------------------------------------------------------------------


def _is_legacy_file(name: str) -> bool:
    return bool(_LEGACY_NAME.fullmatch(name)) and not name.startswith(".") and not name.endswith(_LEGACY_IGNORED)


def _legacy_order(name: str) -> tuple[str, bool, str]:
    service, plus, argument = name.partition("+")
    return service, not plus, argument


def _legacy_end(service: str, argument: str, place: _Place) -> list[Rule]:
    deny = parse_action("deny", [])
    anyone = parse_token("@anyvm", Column.SOURCE)
    targets = (parse_token("@anyvm", Column.TARGET), parse_token("@adminvm", Column.TARGET))
    return [Rule(service, argument, anyone, target, deny, place.file, place.line) for target in targets]
