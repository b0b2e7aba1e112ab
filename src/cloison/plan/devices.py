"""Decides about devices: how one is attached, what it is called there, and which qubes are to have it by themselves.

Facts: reference/devices.md 1 (specificity), 4 (attaching by itself), 5 (options of class block).
"""
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from string import ascii_lowercase
from typing import NamedTuple

from cloison.devicetext import ANY, Device
from cloison.errors import BadValue, CloisonError
from cloison.model.devices import Assignment
from cloison.model.domains import Qube
from cloison.model.exposed import Exposed
from cloison.wire.blocks import is_name

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_SYSTEM = ("xvda", "xvdb", "xvdc", "xvdd")      # root, private, volatile, modules


class BlockOptions(NamedTuple):
    """`name`: what the frontend is to call it, None for the first free one. A `disc` is read-only."""

    name: str | None
    read_only: bool
    disc: bool


def block_options(options: Mapping[str, str], device: Exposed) -> BlockOptions:
    """Raises BadValue for what can't be had."""
    unknown = options.keys() - {"frontend-dev", "read-only", "devtype"}
    if unknown:
        raise BadValue(f"a block device has no option {min(unknown)[:40]!r}")
    name = options.get("frontend-dev")
    if name is not None and (not is_name(name) or name in _SYSTEM):
        raise BadValue(f"option frontend-dev is a name such as xvdi, not {name[:40]!r}")
    devtype = options.get("devtype", "disk")
    if devtype not in ("disk", "cdrom"):
        raise BadValue(f"option devtype is disk or cdrom, not {devtype[:40]!r}")
    writable = device.writable and devtype == "disk"
    read_only = _boolean(options["read-only"]) if "read-only" in options else not writable
    if not read_only and not writable:
        raise BadValue(f"{device.device} can only be attached read-only" + ("" if devtype == "disk" else " as a disc"))
    return BlockOptions(name, read_only, disc=devtype == "cdrom")


def _boolean(text: str) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise BadValue(f"option read-only is yes or no, not {text[:40]!r}")
    return text.lower() in _YES


def frontend_name(taken: Collection[str], wanted: str | None) -> str:
    """The wanted name, or the first free one: xvdi, xvdj, ... Raises CloisonError."""
    if wanted is not None:
        if wanted in taken:
            raise CloisonError(f"{wanted} is taken by another device")
        return wanted
    free = next((name for name in _names() if name not in taken), None)
    if free is None:
        raise CloisonError("all names for attached disks are taken")
    return free


def _names() -> Iterator[str]:
    letters = ascii_lowercase
    return (f"xvd{tail}" for tail in (*letters[8:], *(a + b for a in letters for b in letters), *letters[4:8]))


# -- devices that qubes are to have --------------------------------------------------------------------------------------


def specificity(pattern: Device) -> int:
    """The more it names, the greater: port and identity, port, identity, nothing."""
    return 2 * (pattern.port != ANY) + (pattern.identity != ANY)


def rules(qube: Qube, devclass: str, *modes: str) -> list[Assignment]:
    """The qube's rules of these modes, the most specific first."""
    found = [rule for rule in qube.assignments.values() if rule.device.devclass == devclass and rule.mode in modes]
    return sorted(found, key=lambda rule: -specificity(rule.device))


def covering(qube: Qube, device: Device) -> Assignment | None:
    """The qube's most specific rule for a device."""
    found = [rule for rule in qube.assignments.values() if rule.device.matches(device)]
    return max(found, key=lambda rule: specificity(rule.device), default=None)


class Claim(NamedTuple):
    """A qube is to have a device by its rule; in mode ask-to-attach, if the person says so."""

    qube: Qube
    device: Exposed
    rule: Assignment


def claims(device: Exposed, qubes: Iterable[Qube]) -> list[Claim]:
    """Which of these qubes have a rule for a device that has just appeared."""
    found = ((qube, covering(qube, device.device)) for qube in qubes if qube.name != device.device.backend)
    return [Claim(qube, device, rule) for qube, rule in found if rule is not None and rule.mode != "manual"]


def wanted(qube: Qube, exposed: Iterable[Exposed], *modes: str) -> list[Claim]:
    """What a qube that has just started is to have of the devices that are there, each once, the most specific rule first."""
    there, found = list(exposed), dict[Device, Claim]()
    for rule in rules(qube, "block", *modes):
        for device in there:
            if device.device.backend != qube.name and rule.device.matches(device.device):
                found.setdefault(device.device, Claim(qube, device, rule))
    return list(found.values())
