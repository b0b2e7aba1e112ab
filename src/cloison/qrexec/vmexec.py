"""The argument of qubes.VMExec: a command's words, encoded so that they survive a service argument (reference/qrexec.md 20.3)."""
from __future__ import annotations

import os
import re
import sys

_WORD = re.compile(rb"(?:[A-Za-z0-9._]|--|-[0-9A-F]{2})*")
_ESCAPE = re.compile(rb"-(-|[0-9A-F]{2})")


def decode(argument: str) -> list[bytes]:
    """Words of the command, the program first. Raises ValueError for what no encoder makes."""
    words = []
    for part in argument.encode("ascii", "replace").split(b"+"):
        if not _WORD.fullmatch(part):
            raise ValueError("malformed escape in the argument of qubes.VMExec")
        words.append(_ESCAPE.sub(lambda match: b"-" if match[1] == b"-" else bytes.fromhex(match[1].decode()), part))
    if not words[0] or any(b"\0" in word for word in words):
        raise ValueError("qubes.VMExec without a program, or with a NUL")
    return words


def main() -> None:
    """The service as a program, for an agent that isn't ours."""
    try:
        words = decode(sys.argv[1] if len(sys.argv) == 2 else "")
        os.execvp(words[0], words)  # noqa: S606 that is its whole purpose
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        print(f"{sys.argv[1]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)
