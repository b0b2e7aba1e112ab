"""`cloison complete`: what may stand at the cursor of a command line; the shells' completion code calls it (completion.py).

The tools' own parsers say what is expected there, and an argument's metavar says where its values come from
(complete_values.py), so that completion can't differ from the tools. One candidate a line, with its meaning after a TAB; exit
status 3: names of files are wanted. Nothing is printed that a shell would read as more than a word.
"""
from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from cloison.cli import complete_values
from cloison.cli.complete_values import Asked, Candidate, FilesWanted
from cloison.client.connection import Connection
from cloison.errors import CloisonError
from cloison.values import InvalidValue

FILES = 3
_WORD = re.compile(r"[A-Za-z0-9_.,:=@+/*-]+")
_SEVERAL = ("*", "+")
_REST = (argparse.REMAINDER, argparse.PARSER)

ParserOf = Callable[[Sequence[str]], argparse.ArgumentParser]


def parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the tool whose command line begins like this. Raises ModuleNotFoundError for none of ours."""
    prog = words[0].rpartition("/")[2]
    if prog == "cloison":
        from cloison.cli.main import parser

        return parser(next((word for word in words[1:] if not word.startswith("-")), ""))
    module = importlib.import_module("cloison.cli." + prog.replace("-", "_"))
    result: argparse.ArgumentParser = module.parser()
    return result


class Reader:
    """Reads the words before the cursor as argparse would, and knows then what is expected."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._said: dict[str, list[str]] = {}
        self._option: argparse.Action | None = None      # that waits for a value, or may take another
        self._only_values = False                        # "--" was said, or all the rest is the argument of one
        self._enter(parser)

    def _enter(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._waiting = [action for action in parser._actions if not action.option_strings]

    def take(self, word: str) -> None:
        if not self._only_values and word == "--":
            self._only_values, self._option = True, None
        elif not self._only_values and word.startswith("-") and word != "-":
            self._take_option(word)
        elif self._option is not None:
            self._note(self._option, word)
            if self._option.nargs not in _SEVERAL:
                self._option = None
        elif self._waiting:
            self._take_positional(self._waiting[0], word)

    def _note(self, action: argparse.Action, word: str) -> None:
        self._said.setdefault(action.dest, []).append(word)

    def _take_option(self, word: str) -> None:
        name, equals, value = word.partition("=")
        action = self.option(name)
        if action is None and not word.startswith("--"):
            name, value = self._last_of_cluster(word)
            action, equals = self.option(name), value
        self._option = None
        if action is not None and action.nargs != 0:
            if equals:
                self._note(action, value)
            else:
                self._option = action

    def option(self, name: str) -> argparse.Action | None:
        """By its name or, as argparse has it, by the beginning of one."""
        known = self._parser._option_string_actions
        if name in known or not name.startswith("--"):
            return known.get(name)
        found = {id(action): action for text, action in known.items() if text.startswith(name)}
        return found.popitem()[1] if len(found) == 1 else None

    def _last_of_cluster(self, word: str) -> tuple[str, str]:
        """Of `-pu` the option -u; of `-uroot` -u and its value."""
        for place, letter in enumerate(word[1:], start=2):
            action = self.option("-" + letter)
            if action is None or action.nargs != 0 or place == len(word):
                return "-" + letter, word[place:]
        return word, ""

    def _take_positional(self, action: argparse.Action, word: str) -> None:
        self._note(action, word)
        if isinstance(action, argparse._SubParsersAction):
            if word in action.choices:
                self._enter(action.choices[word])
            else:
                self._waiting = []
        elif action.nargs == argparse.REMAINDER:
            self._only_values = True
        elif action.nargs not in _SEVERAL:
            del self._waiting[0]

    def candidates(self, word: str, connection: Connection) -> Iterator[Candidate]:
        """For the word at the cursor, as far as it is typed. Raises FilesWanted, or CloisonError if qubesd can't be asked."""
        if not self._only_values and word.startswith("-"):
            name, equals, value = word.partition("=")
            action = self.option(name) if equals else None
            if action is None:
                yield from options(self._parser)
            else:
                for found in self._values([action], value, connection):
                    yield Candidate(f"{name}={found.word}", found.meaning)
            return
        expected = self._waiting[:1]
        if self._option is not None:
            more = self._option.nargs == "?" or (self._option.nargs in _SEVERAL and self._option.dest in self._said)
            expected = [self._option, *(expected if more else [])]
        yield from self._values(expected, word, connection)

    def _values(self, actions: Iterable[argparse.Action], word: str, connection: Connection) -> Iterator[Candidate]:
        for action in actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from verbs(action)
            elif action.choices is not None:
                yield from (Candidate(str(choice)) for choice in action.choices)
            elif action.nargs not in _REST or action.dest not in self._said:
                asked = Asked(connection, self._parser.prog.split(" ")[0], action, self._said, word)
                yield from complete_values.values(asked)


def options(parser: argparse.ArgumentParser) -> Iterator[Candidate]:
    """Options and their meanings."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            meaning = (action.help or "") % {"default": action.default, "prog": parser.prog}
            yield from (Candidate(option, meaning) for option in action.option_strings)


def verbs(action: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[Candidate]:
    """Commands below a tool, by their full names."""
    described = {choice.dest: choice.help or "" for choice in action._choices_actions}
    seen = set()
    for name, parser in action.choices.items():
        if id(parser) not in seen:       # what follows are its short names
            seen.add(id(parser))
            yield Candidate(name, next((text for dest, text in described.items() if dest.split(" ")[0] == name), ""))


def complete(words: Sequence[str], connection: Connection) -> list[Candidate]:
    """What may stand for the last word, which is not yet whole. Raises FilesWanted, CloisonError, ModuleNotFoundError."""
    *before, word = words
    reader = Reader(parser_of(before))
    for each in before[1:]:
        reader.take(each)
    found = {candidate.word: candidate for candidate in reader.candidates(word, connection)}
    return [candidate for text, candidate in found.items() if text.startswith(word) and _WORD.fullmatch(text)]


def split(line: str) -> list[str]:
    """The words of a line that ends at the cursor; the last one is empty after a space. An open quote holds to the end."""
    import shlex

    for quote in ("", "'", '"'):
        try:
            words = shlex.split(line + quote)
        except ValueError:
            continue
        return [*words, ""] if not quote and line[-1:].isspace() else words
    return line.split(" ")


def _without(candidate: str, word: str, breaks: str) -> str:
    """What bash puts in place of the word: for it, each of these characters begins another."""
    last = max((word.rfind(character) for character in breaks), default=-1)
    return candidate[last + 1:]


def main(argv: Sequence[str]) -> int:
    """`WORD ...` up to the cursor, or as bash has it `--line LINE --breaks CHARACTERS`."""
    line = argv[1] if len(argv) == 4 and argv[0] == "--line" else None
    words = split(line) if line is not None else list(argv[1:] if argv[:1] == ["--"] else argv)
    breaks = "".join(set(argv[3]) & set(":=")) if line is not None else ""
    if len(words) < 2:
        return 0
    try:
        found = complete(words, Connection())
    except FilesWanted:
        return FILES
    except (CloisonError, InvalidValue, ModuleNotFoundError, OSError):
        return 1                         # no qubesd, no such qube: nothing to offer, and no place to say why
    for candidate in found:
        meaning = "".join(each if each.isprintable() else "_" for each in candidate.meaning)
        sys.stdout.write(f"{_without(candidate.word, words[-1], breaks)}\t{meaning}\n")
    return 0
