"""qvm-run-vm: a shell command in another qube, if the policy lets us."""
from __future__ import annotations

import os
import sys

from cloison.guest.tools.call import CLIENT

TYPE_CHECKING = False                    # what types need costs a start under emulation
if TYPE_CHECKING:
    from collections.abc import Sequence

_HELP = """\
usage: {prog} [OPTIONS] QUBE COMMAND [ARGUMENT ...]
       {prog} --dispvm [OPTIONS] COMMAND [ARGUMENT ...]

Runs COMMAND, its words joined by spaces, by `bash -c` in another qube, through service qubes.VMShell.
Input, output and errors are connected to here. QUBE can be @dispvm.

    -h, --help      show this message and exit
    -t, --no-gui    do not wait for the disposable's windows
    -d, --dispvm    in a new disposable
"""
_OPTIONS = {"-h": "help", "--help": "help", "-t": "no-gui", "--no-gui": "no-gui", "-d": "dispvm", "--dispvm": "dispvm"}


def main(argv: Sequence[str]) -> int:
    """The program: becomes qrexec-client-vm, whose exit status it has."""
    prog, words, chosen = os.path.basename(argv[0]), list(argv[1:]), set()
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        if word not in _OPTIONS:
            print(f"{prog}: unknown option {word!r}\n{_HELP.format(prog=prog)}", file=sys.stderr)
            return 1
        chosen.add(_OPTIONS[word])
    if "help" in chosen:
        print(_HELP.format(prog=prog), file=sys.stderr)
        return 0
    if "dispvm" in chosen:
        words.insert(0, "@dispvm")
    if len(words) < 2:
        print(_HELP.format(prog=prog), file=sys.stderr)
        return 1
    target = words[0].replace("$dispvm", "@dispvm", 1) if words[0].startswith("$dispvm") else words[0]
    disposable = target == "@dispvm" or target.startswith("@dispvm:")
    service = "qubes.VMShell+WaitForSession" if disposable and "no-gui" not in chosen else "qubes.VMShell"
    line = f"exec bash -c {_quoted(' '.join(words[1:]))} || exit 127\n"
    try:
        os.execvp(CLIENT, [CLIENT, f"--prefix-data={line}", "--", target, service])  # noqa: S606 a list, no shell
    except OSError as error:
        print(f"{prog}: {CLIENT} can't be run: {error.strerror}", file=sys.stderr)
        return 1


def _quoted(command: str) -> str:
    """One word for the shell at the other end."""
    return "'" + command.replace("'", "'\\''") + "'"
