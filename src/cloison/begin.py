"""Where every installed command begins: no command prints a traceback, whatever is closed, full or missing.

`pyproject.toml` names each command as `cloison.begin:NAME`; NAME stands for a module with a `main()`. This module is loaded before
any other of ours and loads nothing itself, so that Ctrl-C during the imports is caught as well. Three things are its own:

- A standard descriptor that is closed gets a stand-in before anything else is opened. Otherwise the next socket would take its
  number, and what is printed would go into it. Reading or writing a stand-in fails, as it would with the closed one.
- Nobody may be there to read an error: writing to standard error never fails.
- Output that can't be written is an error of the command, told in one sentence, also when Python finds it only at the end, and when
  Python is told not to buffer.
"""
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False                    # `typing` would cost each command its import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

INTERRUPTED, PIPE_CLOSED, FAILED = 130, 141, 1
SHOW = "CLOISON_TRACEBACK"               # set: a fault of ours shows where it is
# Commands that are not the module of `cloison.cli` with their name.
ELSEWHERE = {
    "cloison": "cloison.cli.main",
    "qrexec_policy": "cloison.qrexec.policyd.policy_exec",
    "qrexec_policy_exec": "cloison.qrexec.policyd.policy_exec",
    "qrexec_agent": "cloison.qrexec.qube.agent_main",
    "qrexec_fork_server": "cloison.qrexec.qube.fork_server",
    "qrexec_client_vm": "cloison.qrexec.qube.client_vm",
    "qrexec_client": "cloison.qrexec.host.client_main",
    "qrexec_daemon": "cloison.qrexec.host.daemon_main",
}
# They hand their descriptors on to programs, and end at once when one of the three is missing.
_WITHOUT_STAND_IN = ("qrexec_agent", "qrexec_client", "qrexec_client_vm", "qrexec_daemon")

closed: set[int] = set()                 # standard descriptors that have a stand-in


def __getattr__(name: str) -> Callable[[], int]:
    """The command of that name, `-` written as `_`."""
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda: begin(name)


def begin(name: str) -> int:
    """Run a command to its end; the exit status."""
    prog = name.replace("_", "-")
    try:
        if name not in _WITHOUT_STAND_IN:
            stand_in()
        buffer_output()
        sys.stderr = _Complaints(sys.stderr)
        module: Any = __import__(ELSEWHERE.get(name, "cloison.cli." + name), fromlist=["main"])
        status = module.main()
    except SystemExit as end:
        status = _status(end)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = PIPE_CLOSED
    except BaseException as error:
        status = _tell(prog, error)
    return flushed(prog, status or 0)


def _status(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return FAILED


def _tell(prog: str, error: BaseException) -> int:
    """A failure that no handler of the command knows."""
    if os.environ.get(SHOW):
        raise error
    if isinstance(error, OSError):
        sentence = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    elif isinstance(error, ImportError):
        sentence = f"the installation is not whole: {error}"
    else:
        sentence = f"a fault of Cloison's own, {type(error).__name__}: {error}"
    text = "".join(character if character.isprintable() else "_" for character in sentence)
    print(f"{prog}: error: {text}\n{prog}: hint: with {SHOW}=1 it shows where", file=sys.stderr)
    return FAILED


def flushed(prog: str, status: int) -> int:
    """Write out what is still buffered. The status, or that of output that nobody can have."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        failed = PIPE_CLOSED
    except OSError as error:
        print(f"{prog}: error: the output can't be written: {error.strerror}", file=sys.stderr)
        failed = FAILED
    except ValueError:                   # closed by the command itself
        return status
    abandon_output()
    return status or failed


def abandon_output() -> None:
    """So that the interpreter's last flush has somewhere to go."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def stand_in() -> None:
    """Something in the place of each standard descriptor that is closed: what is opened next must not take its number."""
    for fd, flags, mode in ((0, os.O_WRONLY, "r"), (1, os.O_RDONLY, "w"), (2, os.O_WRONLY, "w")):
        try:
            os.fstat(fd)
        except OSError:                  # opened the wrong way round, so that its use fails; but errors may go nowhere
            os.open(os.devnull, flags)   # the lowest number that is free: those before it are open by now
            os.set_inheritable(fd, True)
            closed.add(fd)
            name = ("stdin", "stdout", "stderr")[fd]
            setattr(sys, name, open(fd, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def buffer_output() -> None:
    """Keep what could not be written until `flushed`, in spite of PYTHONUNBUFFERED: argparse swallows the failure of a --help."""
    if getattr(sys.stdout, "write_through", False):
        sys.stdout = open(1, "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors, closefd=False)


class _Complaints:
    """Standard error of a program that goes on when nobody can be told."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except (OSError, ValueError, AttributeError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError, AttributeError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
