"""cloison qubes-xml: take a system over from Qubes OS's store, and write ours in the same form.

The import is made by qubesd, which reads the files itself: it says line by line what could not be taken over as it was.
"""
from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, list_qubes
from cloison.errors import CloisonError


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "qubes-xml", help="take over or write a qubes.xml of Qubes OS",
        description="Take over the qubes of a qubes.xml, which Qubes OS keeps in /var/lib/qubes, or write one.")
    verbs = parser.add_subparsers(dest="xml_verb", metavar="VERB", required=True)
    taking = verbs.add_parser("import", help="take over a qubes.xml", description=(
        "Make the qubes of a qubes.xml, with their settings and empty disks. Only for a system that has no qubes yet. "
        "What lies beside it, such as appvms/QUBE/firewall.xml and notes.txt, is taken along. "
        "What can't be taken over as it is, is listed."))
    taking.add_argument("file", metavar="FILE", help="the qubes.xml")
    writing = verbs.add_parser("export", help="write a qubes.xml", description=(
        "Write all qubes and settings as a qubes.xml, and what Qubes OS keeps beside that: appvms/QUBE/firewall.xml, "
        "appvms/QUBE/notes.txt, the same below vm-templates."))
    writing.add_argument("file", metavar="FILE", nargs="?", help="a file that does not exist yet (default: "
                         "standard output, without what lies beside it)")


def run(args: argparse.Namespace) -> int:
    connection = Connection()
    return _import(connection, args.file) if args.xml_verb == "import" else _export(connection, args.file)


def _import(connection: Connection, file: str) -> int:
    path = os.path.abspath(file).encode()
    remarks = connection.call(DOM0, "internal.cloison.ImportQubesXml", payload=path, internal=True)
    text = remarks.decode("utf-8", "replace").rstrip("\n")
    tool.say("The system was taken over." + (" But:" if text else ""))
    if text:
        tool.say(text)
    return 0


def _export(connection: Connection, file: str | None) -> int:
    data = connection.call(DOM0, "internal.cloison.ExportQubesXml", internal=True)
    if file is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return 0
    _write_beside(connection, os.path.dirname(os.path.abspath(file)))
    _write(file, data)
    return 0


def _write_beside(connection: Connection, folder: str) -> None:
    """Rules and notes, which Qubes OS keeps in a folder a qube. The qubes.xml comes last: who finds it finds them."""
    for qube in list_qubes(connection).values():
        if qube.klass in ("AdminVM", "RemoteVM"):
            continue
        place = os.path.join(folder, "vm-templates" if qube.klass == "TemplateVM" else "appvms", qube.name)
        for name, method in (("firewall.xml", "internal.cloison.ExportFirewall"), ("notes.txt", "admin.vm.notes.Get")):
            content = connection.call(qube.name, method, internal=method.startswith("internal."))
            if content:
                os.makedirs(place, mode=0o700, exist_ok=True)
                _write(os.path.join(place, name), content)


def _write(file: str, data: bytes) -> None:
    """A file that is new. Raises CloisonError."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CloisonError(f"{file} exists already") from None
    with os.fdopen(fd, "wb") as output:
        output.write(data)
        output.flush()
        os.fsync(output.fileno())
