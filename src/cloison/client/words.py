"""What is to run in a qube, as a qrexec command line (reference/qrexec.md 10.1, 20.3). Words and environments meet no shell."""
from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from cloison.client.domains import DOM0
from cloison.client.failures import BadCommand

Command = str | Sequence[str]
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+,.-]{0,63}")
_SERVICE = re.compile(r"[A-Za-z0-9_.-]{1,255}(\+[A-Za-z0-9_.+-]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOTHING: Mapping[str, str] = {}


def program(command: Command, *, user: str = "DEFAULT", env: Mapping[str, str] = _NOTHING, cwd: str = "") -> str:
    """A text is a line for the user's shell; words are a program and its arguments, and meet no shell.

    `env` (added to the session's) and `cwd` are given by `env` in the qube, a line goes to `sh` then. Raises BadCommand.
    """
    words = [command] if isinstance(command, str) else list(command)
    if not words or not words[0]:
        raise BadCommand("a command has at least one word")
    if any("\0" in word for word in (*words, cwd, *env.values())):
        raise BadCommand("a command, its folder and its environment hold no NUL")
    if not (env or cwd):
        if isinstance(command, str):
            return f"{_user(user)}:{harmless(command)}"
        return service(f"qubes.VMExec+{encode_words(words)}", user=user)
    if isinstance(command, str):
        words = ["/bin/sh", "-c", command]
    elif "=" in words[0]:
        raise BadCommand("with env or cwd, the program's name holds no '='")
    folder = ["-C", cwd] if cwd else []
    return service(f"qubes.VMExec+{encode_words(['env', *folder, '--', *map(_variable, env.items()), *words])}", user=user)


def _variable(pair: tuple[str, str]) -> str:
    if not _VARIABLE.fullmatch(pair[0]):
        raise BadCommand(f"{pair[0][:60]!r} is no name of a variable: letters, digits and '_', no digit first")
    return "=".join(pair)


def harmless(line: str) -> str:
    """A space keeps the agent from reading a command as a service call or an option."""
    return f" {line}" if line.startswith(("QUBESRPC ", "nogui:")) else line


def service(name: str, *, user: str = "DEFAULT") -> str:
    """A call of `NAME` or `NAME+ARGUMENT`. Raises BadCommand."""
    if not _SERVICE.fullmatch(name):
        raise BadCommand(f"service {name[:60]!r} may only hold letters, digits and '_.-', and '+ARGUMENT'")
    return f"{_user(user)}:QUBESRPC {name}{'' if '+' in name else '+'} {DOM0}"


def _user(name: str) -> str:
    if not _USER.fullmatch(name):
        raise BadCommand(f"user name {name[:60]!r} may only hold letters, digits, '_', '+', ',', '.', '-'")
    return name


def encode_words(words: Sequence[str]) -> str:
    """The argument of qubes.VMExec."""
    def escaped(match: re.Match[bytes]) -> bytes:
        return b"--" if match[0] == b"-" else b"-%02X" % match[0][0]

    return b"+".join(re.sub(rb"[^A-Za-z0-9._]", escaped, os.fsencode(word)) for word in words).decode("ascii")
