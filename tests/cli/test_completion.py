"""Completion, by the shells themselves: bash completes words, zsh and fish read the script."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cloison.cli.completion import TOOLS, options, parsers, script

# Loads the script, asks for the completions of one line as readline would, prints them one a line.
COMPLETE = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
function=$(complete -p "$1")
function=${function##* -F }
${function%% *} "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "cloison.bash"
    path.write_text(script("bash"))
    return path


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for $PATH with a qvm-ls that lists two qubes."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "qvm-ls").write_text('#!/bin/sh\n[ "$*" = --raw-list ] && printf "work\\nuntrusted\\n"\n')
    (folder / "qvm-ls").chmod(0o755)
    return folder


def complete(bash_script: Path, tools: Path, *words: str, cwd: Path | None = None) -> list[str]:
    path = f"{tools}:{os.environ['PATH']}"
    result = subprocess.run(["bash", "--norc", "-c", COMPLETE, "bash", str(bash_script), *words], env={"PATH": path}, cwd=cwd,
                            capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize(("line", "found"), [
    ("qvm-start wo", ["work"]),
    ("qvm-start --skip", ["--skip-if-running"]),
    ("qvm-start --all --exc", ["--exclude"]),
    ("qvm-prefs unt", ["untrusted"]),
    ("qvm-prefs --help-p", ["--help-properties"]),
    ("qvm-ls --fo", ["--format"]),
    ("qvm-ls --tre", ["--tree"]),
    ("qvm-pool dri", ["drivers"]),
    ("qvm-run --filter", ["--filter-escape-chars"]),
    ("cloison stat", ["status"]),
    ("cloison do", ["doctor", "down", "dom0"]),
    ("qvm-start zzz", []),
])
def test_bash_completes(bash_script: Path, tools: Path, tmp_path: Path, line: str, found: list[str]) -> None:
    assert sorted(complete(bash_script, tools, *line.split(), cwd=tmp_path)) == sorted(found)


def test_every_tool_completes_its_options(bash_script: Path, tools: Path, tmp_path: Path) -> None:
    for parser in parsers():
        words = [option for option, _ in options(parser) if option.startswith("--")]
        assert sorted(complete(bash_script, tools, parser.prog, "--", cwd=tmp_path)) == sorted(words), parser.prog


def test_names_that_a_shell_would_read_are_not_run(bash_script: Path, tmp_path: Path) -> None:
    """A qube's name can't hold such characters; the listing is quoted all the same."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "qvm-ls").write_text(f"#!/bin/sh\nprintf '%s\\n' 'w$(touch {tmp_path}/ran)' 'w`touch {tmp_path}/ran`'\n")
    (folder / "qvm-ls").chmod(0o755)
    complete(bash_script, folder, "qvm-start", "w", cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_theirs(shell: str, tmp_path: Path) -> None:
    text = script(shell)
    for tool in TOOLS:
        assert tool in text
    program = shutil.which(shell)
    if program is not None:              # the package is suggested, not required
        path = tmp_path / "completion"
        path.write_text(text)
        assert subprocess.run([program, "-n", str(path)], capture_output=True, text=True, check=False).stderr == ""
