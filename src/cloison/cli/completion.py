"""Shell completion, made from the tools' own parsers, so that it can't differ from them.

Names of qubes are asked for when they are completed: `qvm-ls --raw-list`.
"""
from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterator

TOOLS = (
    "qrexec-legacy-convert", "qrexec-policy-graph", "qubes-policy", "qubes-policy-editor", "qubes-policy-lint", "qubes-prefs",
    "qvm-block", "qvm-check", "qvm-clone", "qvm-console-dispvm", "qvm-copy-to-vm", "qvm-create", "qvm-device", "qvm-features",
    "qvm-firewall", "qvm-kill", "qvm-ls", "qvm-move-to-vm", "qvm-notes", "qvm-pause", "qvm-pci", "qvm-pool", "qvm-prefs",
    "qvm-remove", "qvm-run", "qvm-service", "qvm-shutdown", "qvm-start", "qvm-tags", "qvm-unpause", "qvm-usb", "qvm-volume",
)
_QUBES = "qvm-ls --raw-list 2>/dev/null"
# compgen expands the words it is given: nothing but a name's characters may reach it.
_BASH_QUBES = _QUBES + r" | tr -cd 'A-Za-z0-9_.\n-'"


def parsers() -> Iterator[argparse.ArgumentParser]:
    for name in TOOLS:
        yield importlib.import_module("cloison.cli." + name.replace("-", "_")).parser()
    yield importlib.import_module("cloison.cli.main").parser()


def script(shell: str) -> str:
    """Completion code for bash, zsh or fish."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def options(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Option and meaning."""
    return [
        (option, (action.help or "") % {"default": action.default, "prog": parser.prog})
        for action in parser._actions if action.help != argparse.SUPPRESS for option in action.option_strings
    ]


def verbs(parser: argparse.ArgumentParser) -> list[str]:
    return [
        name for action in parser._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices
    ]


def _wants_qubes(parser: argparse.ArgumentParser) -> bool:
    return any("VMNAME" in str(action.metavar) and not action.option_strings for action in parser._actions)


def _words(parser: argparse.ArgumentParser) -> str:
    return " ".join([*verbs(parser), *(option for option, _ in options(parser))])


def _bash() -> str:
    parts = ["# Completion for the tools of Cloison, made by: cloison completion bash\n"]
    for parser in parsers():
        function = "_" + parser.prog.replace("-", "_")
        names = f" $({_BASH_QUBES})" if _wants_qubes(parser) else ""
        parts.append(
            f"{function}() {{\n"
            f"    local word=${{COMP_WORDS[COMP_CWORD]}}\n"
            f"    case $word in\n"
            f"        -*) mapfile -t COMPREPLY < <(compgen -W {shlex.quote(_words(parser))} -- \"$word\") ;;\n"
            f"        *) mapfile -t COMPREPLY < <(compgen -o default -W \"{' '.join(verbs(parser))}{names}\" -- \"$word\") ;;\n"
            f"    esac\n"
            f"}}\n"
            f"complete -F {function} {parser.prog}\n"
        )
    return "\n".join(parts)


def _zsh() -> str:
    lines = [f"#compdef {' '.join(TOOLS)} cloison", "case $service in"]
    for parser in parsers():
        specs = [f"{option}[{_zsh_text(meaning)}]" for option, meaning in options(parser)]
        rest = f"compadd -- $({_QUBES})" if _wants_qubes(parser) else f"compadd -- {' '.join(verbs(parser))}"
        quoted = " ".join(map(shlex.quote, specs))
        lines += [f"    {parser.prog})", f"        _arguments {quoted} '*:word:{{{rest}; _default}}'", "        ;;"]
    return "\n".join([*lines, "esac", ""])


def _zsh_text(text: str) -> str:
    return "".join("\\" + character if character in "[]:\\" else character for character in text)


def _fish() -> str:
    lines = ["# Completion for the tools of Cloison, made by: cloison completion fish"]
    for parser in parsers():
        command = f"complete -c {parser.prog}"
        lines += [f"{command} {_fish_option(option)} -d {_fish_text(meaning)}" for option, meaning in options(parser)]
        lines += [f"{command} -n __fish_use_subcommand -a {name}" for name in verbs(parser)]
        if _wants_qubes(parser):
            lines.append(f"{command} -a '({_QUBES})'")
    return "\n".join(lines) + "\n"


def _fish_option(option: str) -> str:
    return f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"


def _fish_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
