"""Every example of a --help, and every line of the documents that begins with a command of ours, is one that the command takes."""
from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloison import begin
from cloison.cli import main

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_ADVICE = re.compile(r"(?:: |; )(cloison [a-z][a-z0-9 -]*?[a-z0-9])(?=$|[.;,:)\n]| (?:and|makes|adds|shows|lists|tells)\b)")
_BREAKS = {"|", ";", "<", ">", "&&", "2>&1"}


def parser_of(name: str, words: list[str]) -> argparse.ArgumentParser | None:
    """None: the command reads its words by itself."""
    if name == "cloison":
        return main.parser(next((word for word in words if not word.startswith("-")), ""))
    module = importlib.import_module(begin.ELSEWHERE.get(name.replace("-", "_"), "cloison.cli." + name.replace("-", "_")))
    made: argparse.ArgumentParser | None = module.parser() if hasattr(module, "parser") else None
    return made


def commands(line: str) -> Iterator[list[str]]:
    """Those of ours in a shell's line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    command: list[str] = []
    for word in [*lexer, ";"]:
        if word in _BREAKS:
            if command and command[0] in SCRIPTS:
                yield command
            command = []
        else:
            command.append(word)


def command_of(line: str) -> str:
    """What stands before the first wide gap that is outside of quotes."""
    for gap in re.finditer(r"\s{2,}", line):
        with contextlib.suppress(ValueError):
            shlex.split(line[:gap.start()])
            return line[:gap.start()]
    return line


def in_help() -> Iterator[str]:
    """The lines of all examples, verbs' included."""
    verbs = ["", *main.OTHERS]
    parsers: list[argparse.ArgumentParser] = [main.parser(verb) for verb in verbs]
    parsers += [made for name in SCRIPTS if name != "cloison" and (made := parser_of(name, []))]
    while parsers:
        parser = parsers.pop()
        for line in (parser.epilog or "").removeprefix("examples:\n").splitlines():
            if line.startswith("  ") and line.split()[0] in SCRIPTS:
                yield command_of(line.strip())
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()


def in_documents() -> Iterator[str]:
    """Lines of code blocks, and code in the text, without the comment at the end."""
    for document in DOCUMENTS:
        text = document.read_text()
        found = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
        found += re.findall(r"`((?:cloison|qvm-\w+|qubes-\w+) [^`]*)`", text)
        for line in (re.sub(r"\s{2,}#.*| # .*", "", each.replace("\n", " ")) for each in found):
            if line.split()[0] in SCRIPTS and not re.search(r"\.\.\.|…|on\|off", line):
                yield line


def in_advice() -> Iterator[str]:
    """What sentences and hints of the code tell people to type, as far as it holds no placeholder."""
    for path in sorted((ROOT / "src" / "cloison").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from _ADVICE.findall(node.value)


@pytest.mark.parametrize("line", sorted({*in_help(), *in_documents(), *in_advice()}))
def test_an_example_is_taken(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, *words in commands(line):
        parser = parser_of(name, words)
        if parser is not None:
            try:
                parser.parse_args(words)
            except SystemExit as end:
                assert end.code == 0, capsys.readouterr().err


def test_there_are_examples() -> None:
    assert len(set(in_help())) > 100 and len(set(in_documents())) > 20 and len(set(in_advice())) > 5
