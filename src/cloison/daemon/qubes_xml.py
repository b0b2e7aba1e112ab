"""Takes over a qubes.xml into a system without qubes, and what lies beside it: rules and notes (reference/admin-api.md 17).

The model is stored in one transaction, with every qube that has disks marked as being imported; then the disks are made. A
daemon that comes up after a crash in between goes on with that: nothing is half there for long, and nothing is lost.
"""
from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from cloison.admin.calls.features import checked_notes
from cloison.admin.qubesd import Qubesd
from cloison.daemon.volumes import Volumes
from cloison.errors import CloisonError
from cloison.model import firewall, firewall_xml, qubesxml, qubesxml_elements
from cloison.model.domains import IMPORTING, READY, Qube
from cloison.model.resettle import resettle
from cloison.model.volumes import folder
from cloison.runtime import faults
from cloison.values import InvalidValue, QubeName
from cloison.wire.admin import MAX_NOTES

FIREWALL, NOTES = "firewall.xml", "notes.txt"
MAX_BESIDE = 64 << 20           # bytes of all rules and notes together


@dataclass(frozen=True)
class Files:
    """A qubes.xml; `appvms/QUBE/firewall.xml` and its like beside it, by that path; all untrusted."""

    xml: bytes
    beside: Mapping[str, bytes]


def read(path: str) -> Files:
    """Raises CloisonError for what is no file of a bearable size, and for too many of them."""
    xml = _read_file(path, qubesxml_elements.MAX_BYTES)
    beside, room = dict[str, bytes](), MAX_BESIDE
    for place in _places_beside(os.path.dirname(path)):
        name = os.path.join(os.path.dirname(path), place)
        if os.path.lexists(name):
            beside[place] = _read_file(name, MAX_NOTES if place.endswith(NOTES) else firewall_xml.MAX_BYTES)
            room -= len(beside[place])
            if room < 0:
                raise CloisonError(f"the rules and notes beside {path} have more than {MAX_BESIDE} bytes")
    return Files(xml, beside)


def _places_beside(folder: str) -> Iterator[str]:
    """What may be there, going by the names of the folders: each is a qube's, or is not looked into."""
    for group in ("appvms", "vm-templates"):
        try:
            names = os.listdir(os.path.join(folder, group))
        except OSError:
            continue
        for name in sorted(names)[:qubesxml.MAX_QUBES]:
            with suppress(InvalidValue):
                yield from (f"{group}/{QubeName(name)}/{file}" for file in (FIREWALL, NOTES))


def _read_file(path: str, most: int) -> bytes:
    """At most one byte more than `most`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CloisonError(f"{path} is not a file")
            return file.read(most + 1)
    except OSError as error:
        raise CloisonError(f"{path} can't be read: {error.strerror}") from error


def _take_beside(qube: Qube, files: Files) -> None:
    """Raises BadQubesXml."""
    base = folder(qube.klass, qube.name)
    rules, notes = files.beside.get(f"{base}/{FIREWALL}"), files.beside.get(f"{base}/{NOTES}")
    if rules is not None:
        qube.put_text("firewall", firewall.to_text(firewall_xml.load(rules, f"{base}/{FIREWALL}")))
    if notes:
        try:
            qube.put_text("notes", checked_notes(notes))
        except CloisonError as error:
            raise qubesxml_elements.BadQubesXml(f"{base}/{NOTES}: {error}") from error


async def take_over(qubesd: Qubesd, volumes: Volumes, files: Files) -> list[str]:
    """Returns what was left out or mended, a sentence each. Raises BadQubesXml, StoreError: then nothing has changed. Disks that
    can't be made are such a sentence, too: they are made when qubesd starts the next time.
    """
    system = qubesd.system
    own, default = set(system.pools), str(system.get("default_pool"))
    with qubesd.transaction():
        remarks = qubesxml.load(system, files.xml)
        remarks += resettle(system, own, default)
        machines = [qube for qube in system.qubes.values() if qube.kind.machine]
        for qube in machines:
            _take_beside(qube, files)
        if machines and not any(place.endswith(FIREWALL) for place in files.beside):
            remarks.append(f"no {FIREWALL} is beside the qubes.xml: each qube may connect to all until its rules are set")
        imported = [qube for qube in system.qubes.values() if volumes.kept(qube)]
        for qube in imported:
            qube.set_state(IMPORTING)
        for qube in system.sorted_qubes()[1:]:
            system.journal.emit("", "domain-add", vm=qube.name)
    faults.point("import:after-store")
    for qube in imported:
        async with qubesd.lock(qube):
            try:
                await make_disks(qubesd, volumes, qube)
            except CloisonError as error:
                later = "It can't start; qubesd tries again when it starts"
                remarks.append(f"the disks of {qube.name} could not be made: {error}. {later}")
    return remarks


async def make_disks(qubesd: Qubesd, volumes: Volumes, qube: Qube) -> None:
    """Empty ones, whatever of them a crash may have left. The caller holds the qube's lock."""
    await volumes.remove(qube)
    await volumes.create(qube)
    faults.point("import:after-volumes")
    with qubesd.transaction():
        qube.set_state(READY)
