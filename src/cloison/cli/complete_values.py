"""Values that completion offers, by the metavar of the argument they are for."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cloison.client import devices
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, Qube, get_property, lines, list_properties, list_qubes, tags, volumes
from cloison.errors import CloisonError

# Which qubes the tools for power mean, by state. They are not for dom0.
_STATES = {
    "qvm-start": ("Halted",), "qvm-shutdown": ("Running", "Transient"), "qvm-kill": ("Running", "Transient", "Paused", "Halting"),
    "qvm-pause": ("Running",), "qvm-unpause": ("Paused", "Suspended"),
}
_NOT_DOM0 = ("qvm-run", "qvm-remove", "qvm-clone", "qvm-copy-to-vm", "qvm-move-to-vm", "qvm-console-dispvm", "qvm-firewall")
_BOOLS = ("True", "False")
_VIRT_MODES = ("pvh", "hvm", "pv")
_DEVICE_OPTIONS = {
    "block": ("read-only=", "frontend-dev=", "devtype="), "pci": ("permissive=", "no-strict-reset="), "usb": ("identity=",),
}
_RULE = ("accept", "drop", "action=", "proto=", "dsthost=", "dst4=", "dst6=", "dstports=", "icmptype=", "specialtarget=",
         "expire=", "comment=")


class FilesWanted(Exception):
    """The shell knows best how names of files are completed."""


class Candidate(NamedTuple):
    """`word` ends in `=` or `:` if more is to come."""

    word: str
    meaning: str = ""


class Asked(NamedTuple):
    """What is to be completed: an argument of a tool. `said`: the words before, by the arguments they are for."""

    connection: Connection
    prog: str
    action: argparse.Action
    said: Mapping[str, Sequence[str]]
    word: str

    def last(self, *dests: str) -> str:
        """What was said last for the first of these arguments; empty if nothing was."""
        return next((self.said[dest][-1] for dest in dests if self.said.get(dest)), "")


def values(asked: Asked) -> Iterable[Candidate]:
    """Raises FilesWanted, or CloisonError if qubesd can't be asked."""
    metavar = asked.action.metavar
    source = _SOURCES.get((asked.prog, metavar)) or _SOURCES.get(("", metavar))
    return map(Candidate, source(asked)) if source else ()


# -- qubes ---------------------------------------------------------------------------------------------------------------


def _qubes(asked: Asked) -> list[str]:
    states = _STATES.get(asked.prog)
    return [
        qube.name for qube in list_qubes(asked.connection).values()
        if (qube.klass != "AdminVM" or not (states or asked.prog in _NOT_DOM0)) and (states is None or qube.state in states)
    ]


def _of_class(asked: Asked, *classes: str) -> list[Qube]:
    return [qube for qube in list_qubes(asked.connection).values() if qube.klass in classes]


def _that(asked: Asked, prop: str) -> list[str]:
    """Qubes whose property is True."""
    names = [qube.name for qube in _of_class(asked, "AppVM", "StandaloneVM", "DispVM", "TemplateVM")]
    replies = asked.connection.gather((name, "admin.vm.property.Get", prop) for name in names)
    return [name for name, reply in zip(names, replies, strict=True) if isinstance(reply, bytes) and reply.endswith(b" True")]


def _templates(asked: Asked) -> list[str]:
    if asked.last("klass") == "DispVM":
        return _bases(asked)
    return [qube.name for qube in _of_class(asked, "TemplateVM")]


def _bases(asked: Asked) -> list[str]:
    return _that(asked, "template_for_dispvms")


def _netvms(asked: Asked) -> list[str]:
    return _that(asked, "provides_network")


def _targets(asked: Asked) -> list[str]:
    return [*_qubes(asked), "@default", "@dispvm"]


# -- settings ------------------------------------------------------------------------------------------------------------


def _dest(asked: Asked) -> str | None:
    """The qube that settings are asked of; None for the system's own."""
    return None if asked.prog == "qubes-prefs" else asked.last("name") or DOM0


def _properties(asked: Asked) -> list[str]:
    return list_properties(asked.connection, _dest(asked))


def _property_values(asked: Asked) -> list[str]:
    return _values_of(asked, _dest(asked), asked.last("property"))


def _values_of(asked: Asked, dest: str | None, name: str) -> list[str]:
    special: dict[str, Callable[[Asked], list[str]]] = {
        "template": _templates, "default_template": _templates, "netvm": _netvms, "default_netvm": _netvms,
        "default_dispvm": _bases, "management_dispvm": _bases, "virt_mode": lambda _: list(_VIRT_MODES),
    }
    if name in special:
        return [*special[name](asked), *(["none"] if "netvm" in name or "dispvm" in name else [])]
    if name.startswith("default_pool"):
        return _listed("admin.pool.List")(asked)
    kind = get_property(asked.connection, dest, name).kind
    if kind == "bool":
        return list(_BOOLS)
    if kind == "label":
        return _listed("admin.label.List")(asked)
    return [*_qubes(asked), "none"] if kind == "vm" else []


def _settings_of_a_new_qube(asked: Asked) -> list[str]:
    """`NAME=VALUE`: what the template of the new qube has, a new qube will have but for that."""
    example = next(iter(_of_class(asked, "AppVM", "StandaloneVM", "TemplateVM")), None)
    if example is None:
        return []
    name, equals, _ = asked.word.partition("=")
    if not equals:
        return [f"{each}=" for each in list_properties(asked.connection, example.name)]
    return [f"{name}={value}" for value in _values_of(asked, example.name, name)]


def _features(asked: Asked) -> list[str]:
    return lines(asked.connection.call(asked.last("name") or DOM0, "admin.vm.feature.List"))


def _services(asked: Asked) -> list[str]:
    """What is on or off, and what the qube or its template says that it knows."""
    dest = asked.last("name") or DOM0
    names = _features(asked)
    try:
        template = get_property(asked.connection, dest, "template").value
    except CloisonError:                 # a template has none
        template = ""
    if template:
        names += lines(asked.connection.call(template, "admin.vm.feature.List"))
    prefixes = ("service.", "supported-service.")
    return [name.removeprefix(prefix) for name in names for prefix in prefixes if name.startswith(prefix)]


def _tags(asked: Asked) -> list[str]:
    """The qube's own to list or take off, anybody's to put on or look for."""
    if asked.last("verb") in ("list", "ls", "l", "del", "d", "unset", "u"):
        return tags(asked.connection, asked.last("name"))
    requests = ((name, "admin.vm.tag.List", "") for name in list_qubes(asked.connection))
    return [tag for reply in asked.connection.gather(requests) if isinstance(reply, bytes) for tag in lines(reply)]


# -- storage -------------------------------------------------------------------------------------------------------------


def _volumes(asked: Asked) -> list[str]:
    qube, colon, _ = asked.word.partition(":")
    if not colon:
        return [f"{each.name}:" for each in list_qubes(asked.connection).values() if each.klass not in ("AdminVM", "RemoteVM")]
    return [f"{qube}:{volume}" for volume in volumes(asked.connection, qube)]


def _revisions(asked: Asked) -> list[str]:
    dest, _, volume = asked.last("volume").partition(":")
    return lines(asked.connection.call(dest, "admin.vm.volume.ListSnapshots", volume))


def _volume_properties(asked: Asked) -> list[str]:
    from cloison.cli.qvm_volume import SETTABLE, SHOWN

    return list(SHOWN if asked.last("verb") in ("info", "i") else SETTABLE)


def _volume_values(asked: Asked) -> list[str]:
    return list(_BOOLS) if asked.last("property") in ("rw", "ephemeral") else []


def _pools_of_volumes(asked: Asked) -> list[str]:
    volume, equals, _ = asked.word.partition("=")
    if not equals:
        return ["root=", "private=", "volatile=", "kernel="]
    return [f"{volume}={pool}" for pool in _listed("admin.pool.List")(asked)]


def _pool_options(asked: Asked) -> list[str]:
    from cloison.cli.qvm_pool import SETTABLE

    driver = asked.last("driver")
    if not driver:
        return [f"{name}=" for name in SETTABLE]
    drivers = (line.split(" ") for line in lines(asked.connection.call(DOM0, "admin.pool.ListDrivers")))
    return [f"{name}=" for known, *names in drivers if known == driver for name in names]


# -- devices, names of the system ----------------------------------------------------------------------------------------


def _devclass(asked: Asked) -> str:
    return asked.last("devclass") or asked.prog.removeprefix("qvm-")


def _ports(asked: Asked) -> list[str]:
    """What the qube has, to take it back; else what there is."""
    devclass, verb = "block" if asked.prog == "qvm-start" else _devclass(asked), asked.last("verb")
    method = f"admin.vm.device.{devclass}."
    if verb in ("detach", "d", "dt", "unassign", "u"):
        listing = "Attached" if verb[0] == "d" else "Assigned"
        found = devices.used(asked.connection.call(asked.last("name"), method + listing), devclass)
        return [f"{line.device.backend}:{line.device.port}" for line in found]
    running = [qube.name for qube in list_qubes(asked.connection).values() if qube.running]
    replies = asked.connection.gather((name, method + "Available", "") for name in running)
    return [
        f"{name}:{port}" for name, reply in zip(running, replies, strict=True) if isinstance(reply, bytes)
        for port in devices.available(reply, devclass, name)
    ]


def _device_options(asked: Asked) -> list[str]:
    return list(_DEVICE_OPTIONS.get(_devclass(asked), ()))


def _columns(asked: Asked) -> list[str]:
    """Of qvm-ls, some before a comma."""
    from cloison.cli.ls_columns import COLUMNS

    before = asked.word.rpartition(",")
    names = {name.lower() for name in COLUMNS} | {"label", "template", "netvm", "ip", "kernel", "vcpus", "maxmem", "virt_mode"}
    return [before[0] + before[1] + name for name in sorted(names)]


def _listed(method: str) -> Callable[[Asked], list[str]]:
    """What a call lists, one name a line; what stands after a name is no part of it."""
    return lambda asked: [line.split(" ")[0] for line in lines(asked.connection.call(DOM0, method))]


def _words(*words: str) -> Callable[[Asked], list[str]]:
    return lambda _: list(words)


def _files(_: Asked) -> list[str]:
    raise FilesWanted


# By tool and metavar, or by metavar alone.
_SOURCES: dict[tuple[str, str | tuple[str, ...] | None], Callable[[Asked], list[str]]] = {
    ("", "VMNAME"): _qubes, ("", "VMNAME COMMAND [ARG ...]"): _qubes, ("", "SOURCE"): _qubes, ("", "TARGET"): _targets,
    ("", "TEMPLATE"): _templates, ("", "NETVM"): _netvms, ("", "BASE"): _bases,
    ("", "PROPERTY"): _properties, ("qvm-prefs", "VALUE"): _property_values, ("qubes-prefs", "VALUE"): _property_values,
    ("qvm-create", "NAME=VALUE"): _settings_of_a_new_qube, ("qvm-ls", "PROPERTY=VALUE"): _settings_of_a_new_qube,
    ("", "FEATURE"): _features, ("qvm-features", "VALUE"): _words("1"),
    ("", "SERVICE"): _services, ("qvm-service", "VALUE"): _words("on", "off"), ("", "TAG"): _tags,
    ("", "VM:VOLUME"): _volumes, ("", "SOURCE_VM:VOLUME"): _volumes, ("", "REVISION"): _revisions,
    ("qvm-volume", "PROPERTY"): _volume_properties, ("qvm-volume", "VALUE"): _volume_values,
    ("", "VOLUME=POOL"): _pools_of_volumes, ("qvm-pool", "NAME=VALUE"): _pool_options,
    ("", "BACKEND:PORT"): _ports, ("", "BACKEND:PORT[:DEVICE_ID]"): _ports, ("", "DRIVE"): _ports,
    ("", "NAME=VALUE"): _device_options, ("", "RULE"): _words(*_RULE),
    ("", "FIELD,..."): _columns, ("", "COLUMN"): _columns, ("", "USER"): _words("root", "user"),
    ("", "LABEL"): _listed("admin.label.List"), ("", "POOL"): _listed("admin.pool.List"),
    ("", "DRIVER"): _listed("admin.pool.ListDrivers"), ("", "CLASS"): _listed("admin.vmclass.List"),
    ("", "DEVICE_CLASS"): _listed("admin.deviceclass.List"),
    ("", "KERNEL"): lambda asked: lines(asked.connection.call(DOM0, "admin.pool.volume.List", "linux-kernel")),
    ("cloison", "PACKAGE"): _words("linux-image-cloud-amd64", "linux-image-amd64"),
    ("", "FILE"): _files, ("", "PATH"): _files, ("", "DIR"): _files, ("", "COMMAND"): _files,
}
