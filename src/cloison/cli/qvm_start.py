"""qvm-start: start qubes."""
from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from cloison.cli import progress, tool
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, Qube
from cloison.errors import CloisonError
from cloison.values import InvalidValue

PROG = "qvm-start"
_WINDOWS_TOOLS = "cdrom:dom0:/usr/lib/qubes/qubes-windows-tools.iso"
TCG_WARNING = "warning: this machine runs qubes without KVM (TCG): a qube is NOT a security boundary here; see cloison doctor"


class AlreadyRunning(CloisonError):
    """Asked to start what runs."""

    hint = "--skip-if-running makes this no error."


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="+", description="Start qubes. Several are started at once.", examples=[
        ("qvm-start work", "start the qube work, and what it needs"),
        ("qvm-start --skip-if-running work mail", "no error if one runs already"),
        ("qvm-start --all --exclude vault", "start all qubes but vault"),
    ])
    result.add_argument("--skip-if-running", action="store_true", help="do not fail if the qube is already running")
    drive = result.add_mutually_exclusive_group()
    drive.add_argument("--drive", metavar="DRIVE", help="with this block device, BACKEND:PORT, until it stops; "
                       "hd: before it makes it a disk, cdrom: a CD (default)")
    drive.add_argument("--hddisk", metavar="DRIVE", dest="drive", type="hd:{}".format, help="the same as --drive hd:DRIVE")
    drive.add_argument("--cdrom", metavar="DRIVE", dest="drive", type="cdrom:{}".format, help="the same as --drive cdrom:DRIVE")
    drive.add_argument("--install-windows-tools", dest="drive", action="store_const", const=_WINDOWS_TOOLS,
                       help=f"the same as --drive {_WINDOWS_TOOLS}")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    status = 0
    halted = []
    for qube in tool.chosen(args, connection):
        if not qube.running or qube.state == "Transient":        # its start is waited for; one that nobody knows of is refused
            halted.append(qube)
        elif not args.skip_if_running:
            error = tool.NoMachine(qube.name) if qube.klass == "RemoteVM" else AlreadyRunning("domain is already running")
            status = tool.report(PROG, error, f"starting qube failed: {qube.name}")
    if halted:
        warn_if_emulated(connection)
    return _start(args, connection, halted) or status


def _start(args: argparse.Namespace, connection: Connection, qubes: Sequence[Qube]) -> int:
    """All at once. The last failure's exit status, 0 if there was none."""
    status, started = 0, []
    with contextlib.ExitStack() as stack:
        ready = []
        for qube in qubes:
            try:
                if args.drive:
                    stack.enter_context(_with_drive(connection, qube.name, args.drive))
                ready.append(qube)
            except (CloisonError, InvalidValue) as error:
                status = tool.report(PROG, error, f"starting qube failed: {qube.name}")
        pending = [(qube, connection.begin(qube.name, "admin.vm.Start")) for qube in ready]
        for qube, call in pending:
            progress.wait(call, f"starting {qube.name}", klass=qube.klass, quiet=tool.verbosity(args) < 1)
            try:
                call.result()
                started.append(qube.name)
            except CloisonError as error:
                status = tool.report(PROG, error, f"starting qube failed: {qube.name}")
        if started and tool.verbosity(args) > 0:
            tool.tell_problems(PROG, connection, started, started=True)
    return status


def _with_drive(connection: Connection, name: str, text: str) -> contextlib.AbstractContextManager[None]:
    from cloison.cli import drives

    return drives.assigned(connection, name, drives.find(connection, text))


def warn_if_emulated(connection: Connection) -> None:
    """One line on standard error if qubes are not isolated by the processor here, and one for each disk that is nearly full."""
    try:
        facts = json.loads(connection.call(DOM0, "internal.cloison.Status", internal=True))
    except (CloisonError, ValueError):   # another qubesd: it knows no such call
        return
    if not isinstance(facts, dict):
        return
    if facts.get("accelerator") == "tcg":
        print(f"{PROG}: {TCG_WARNING}", file=sys.stderr)
    for sentence in facts.get("space", ()):
        print(f"{PROG}: {tool.printable(sentence)}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
