"""qvm-console-dispvm: a qube's serial console, shown by a terminal in a management disposable.

What a qube writes to its console could drive the terminal that shows it, so that terminal is not one of the host: a disposable's
service shows the bytes and sends back the keys, and is gone when the window is closed.
"""
from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Sequence

from cloison.cli import progress, tool
from cloison.client import qrexec
from cloison.client.connection import Connection
from cloison.client.disposables import Disposable
from cloison.client.domains import DOM0, get_property, list_qubes
from cloison.errors import CloisonError, QubeNotRunning

PROG = "qvm-console-dispvm"
SERVICE = "qubes.ShowInTerminal"
NO_SERVICE = 127                         # exit status of a call to a service that a qube doesn't have


class NoManagement(CloisonError):
    """There is no disposable that may show the console."""

    hint = ("Name a disposable template: qvm-prefs VMNAME management_dispvm, or qubes-prefs management_dispvm; "
            "--here shows the console in this terminal.")


class ConsoleInUse(CloisonError):
    """One person at a time."""

    hint = "Close the other window first."


class NoTerminal(CloisonError):
    """The disposable has no terminal to show."""

    hint = "The management disposable's template needs windows and a terminal program; --here shows the console in this terminal."


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="1", description="Show a qube's console in a disposable.", examples=[
        ("qvm-console-dispvm work", "log in where nothing else works any more"),
        ("qvm-console-dispvm --autostart work", "start it first, and see what it says"),
        ("qvm-console-dispvm --here work", "in this terminal, as plain text; Ctrl-] leaves"),
    ])
    result.add_argument("--here", action="store_true", help="in this terminal instead, as plain text without colours or cursor")
    result.add_argument("--autostart", action="store_true", help="start the qube if it does not run")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    name = tool.qube_name(args.name)
    quiet = tool.verbosity(args) < 1
    if not list_qubes(connection, name)[name].running:
        if not args.autostart:
            raise QubeNotRunning(f"{name} does not run, so it has no console")
        call = connection.begin(name, "admin.vm.Start")
        progress.wait(call, f"starting {name}", quiet=quiet)
        call.result()
    if args.here:
        return _here(connection, name, quiet=quiet)
    base = get_property(connection, name, "management_dispvm").value
    if not base:
        raise NoManagement(f"{name} has no management disposable to show its console in")
    console = _open(name, connection.call(name, "admin.vm.Console").decode())
    try:
        with Disposable(connection, base, lambda lease: progress.wait(lease, "disposable", quiet=quiet)) as disposable:
            return _show(connection, disposable.name, console)
    finally:
        os.close(console)


def _here(connection: Connection, name: str, *, quiet: bool) -> int:
    from cloison.cli import console_here  # it loads what the others do without

    console = _open(name, connection.call(name, "admin.vm.Console").decode())
    try:
        if not quiet and tool.is_terminal(sys.stderr):
            print(f"{PROG}: this is the console of {name}; Ctrl-] leaves it", file=sys.stderr)
        console_here.join(console)
    finally:
        os.close(console)
    return 0


def _open(name: str, path: str) -> int:
    """The console's terminal, ours alone. Raises ConsoleInUse."""
    console = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        fcntl.flock(console, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(console)
        raise ConsoleInUse(f"somebody is connected to the console of {name} already") from error
    return console


def _show(connection: Connection, disposable: str, console: int) -> int:
    """Until the window is closed, or the qube is gone."""
    command = f"DEFAULT:QUBESRPC {SERVICE}+ {DOM0}"
    output = os.dup(console)             # each end is polled for what it does
    try:
        status = qrexec.run(connection.paths, disposable, command, qrexec.Ends(stdin=console, stdout=output))
    finally:
        os.close(output)
    if status == NO_SERVICE:
        raise NoTerminal(f"{disposable} has no service {SERVICE}")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
