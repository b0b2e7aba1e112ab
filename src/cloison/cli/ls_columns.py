"""The columns of qvm-ls: what each shows, and which calls it takes."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from cloison.client.connection import Connection
from cloison.client.domains import DOM0, Property, Qube, get_properties, key_values, volume_info, volumes
from cloison.errors import CloisonError

_Value = TypeVar("_Value")
_MIB = 1 << 20
_POWER_LETTERS = ("Running", "Transient", "Paused", "Suspended", "Halting", "Dying", "Crashed")
_CLASS_LETTERS = {"AdminVM": "0", "TemplateVM": "t", "AppVM": "a", "StandaloneVM": "s", "DispVM": "d"}
_FLAGS = (
    ("updateable", "U"), ("provides_network", "N"), ("installed_by_rpm", "R"),
    ("internal", "i"), ("debug", "D"), ("autostart", "A"),
)

FORMATS = {
    "simple": ("name", "state", "class", "label", "template", "netvm"),
    "network": ("name", "state", "netvm", "ip", "ipback", "gateway"),
    "kernel": ("name", "state", "class", "template", "kernel", "kernelopts"),
    "full": ("name", "state", "class", "label", "qid", "xid", "uuid"),
    "perf": ("name", "state", "cpu", "memory"),
    "prefs": ("name", "label", "template", "netvm", "vcpus", "initialmem", "maxmem", "virt_mode"),
    "disk": ("name", "state", "disk", "priv-curr", "priv-max", "priv-used", "root-curr", "root-max", "root-used"),
}


class Facts:
    """What is known of the qubes, and what is asked for when a column needs it; everything once."""

    def __init__(self, connection: Connection, properties: dict[str, dict[str, Property]]) -> None:
        """`properties`: by qube, fetched already."""
        self.connection = connection
        self._properties = properties
        self._volumes: dict[str, dict[str, dict[str, str]]] = {}
        self._states: dict[str, dict[str, str]] = {}
        self._starts: dict[str, str] | None = None

    def property(self, qube: str, name: str) -> str | None:
        """None if the qube has no such property or the property no value."""
        if qube not in self._properties:
            self._properties[qube] = _or_empty(lambda: get_properties(self.connection, qube))
        found = self._properties[qube].get(name)
        return found.text if found else None

    def volumes(self, qube: str) -> dict[str, dict[str, str]]:
        """Info by volume."""
        if qube not in self._volumes:
            self._volumes[qube] = _or_empty(
                lambda: {name: volume_info(self.connection, qube, name) for name in volumes(self.connection, qube)}
            )
        return self._volumes[qube]

    def start(self, qube: str) -> str | None:
        """`warm` or `cold`, if qubesd saw the start."""
        if self._starts is None:
            self._starts = _or_empty(lambda: _starts(self.connection))
        return self._starts.get(qube)

    def current(self, qube: str, key: str) -> int:
        """A number of admin.vm.CurrentState."""
        if qube not in self._states:
            self._states[qube] = _or_empty(lambda: _words(self.connection.call(qube, "admin.vm.CurrentState")))
        return int(self._states[qube].get(key, "0"))


def _starts(connection: Connection) -> dict[str, str]:
    import json

    starts: dict[str, str] = json.loads(connection.call(DOM0, "internal.cloison.Status", internal=True)).get("starts", {})
    return starts


def _words(reply: bytes) -> dict[str, str]:
    return key_values(reply.replace(b" ", b"\n"))


def _or_empty(ask: Callable[[], dict[str, _Value]]) -> dict[str, _Value]:
    """Nothing for a qube that went away, or that has no such thing."""
    try:
        return ask()
    except CloisonError:
        return {}


class Column(NamedTuple):
    """`value` gives the cell, or None for nothing to show. `calls`: it needs the qube's properties."""

    meaning: str
    value: Callable[[Facts, Qube], str | None]
    calls: bool = True
    numeric: bool = False


def _flags(facts: Facts, qube: Qube) -> str:
    letter = _CLASS_LETTERS.get(qube.klass, "-")
    if facts.property(qube.name, "virt_mode") == "hvm":
        letter = letter.upper()
    power = qube.state[0].lower() if qube.state in _POWER_LETTERS else "?" if qube.state == "NA" else "-"
    return letter + power + "".join(mark if facts.property(qube.name, name) == "True" else "-" for name, mark in _FLAGS)


def _gateway(facts: Facts, qube: Qube) -> str | None:
    netvm = facts.property(qube.name, "netvm")
    return facts.property(netvm, "gateway") if netvm else None


def _memory(facts: Facts, qube: Qube) -> str | None:
    return str(facts.current(qube.name, "mem") // 1024) if qube.running else None


def _cpu(facts: Facts, qube: Qube) -> str | None:
    return f"{facts.current(qube.name, 'cputime') / 1e9:.1f}" if qube.running else None


def _disk(facts: Facts, qube: Qube) -> str:
    return str(sum(int(info.get("usage", "0")) for info in facts.volumes(qube.name).values()) // _MIB)


def _volume(name: str, key: str) -> Callable[[Facts, Qube], str | None]:
    """Size or usage of a volume, in MiB."""
    return lambda facts, qube: str(int(facts.volumes(qube.name).get(name, {}).get(key, "0")) // _MIB)


def _pool(name: str) -> Callable[[Facts, Qube], str | None]:
    return lambda facts, qube: facts.volumes(qube.name).get(name, {}).get("pool")


def _used(name: str) -> Callable[[Facts, Qube], str | None]:
    def percent(facts: Facts, qube: Qube) -> str | None:
        info = facts.volumes(qube.name).get(name, {})
        size = int(info.get("size", "0"))
        return f"{int(info['usage']) * 100 // size}%" if size else "0"
    return percent


COLUMNS = {
    "NAME": Column("Name of the qube.", lambda facts, qube: qube.name, calls=False),
    "STATE": Column("Current power state.", lambda facts, qube: qube.state, calls=False),
    "CLASS": Column("Class of the qube.", lambda facts, qube: qube.klass, calls=False),
    "UUID": Column("What stays the qube's own for ever.", lambda facts, qube: qube.uuid, calls=False),
    "GATEWAY": Column("Network gateway.", _gateway),
    "CPU": Column("Processor time used since its start, in seconds.", _cpu, calls=False, numeric=True),
    "MEMORY": Column("Memory the qube uses now, in MiB.", _memory, calls=False, numeric=True),
    "DISK": Column("Disk space of all its volumes, in MiB.", _disk, calls=False, numeric=True),
    "START": Column("How it started: warm, from a snapshot, or cold, by booting.",
                    lambda facts, qube: facts.start(qube.name), calls=False),
    "FLAGS": Column("Class, power state, Updateable, Network, Rpm, internal, Debug, Autostart.", _flags),
}
for _short, _name in (("PRIV", "private"), ("ROOT", "root")):
    COLUMNS[f"{_short}-CURR"] = Column(f"Disk space of its {_name} volume, in MiB.", _volume(_name, "usage"), False, True)
    COLUMNS[f"{_short}-MAX"] = Column(f"Size of its {_name} volume, in MiB.", _volume(_name, "size"), False, True)
    COLUMNS[f"{_short}-USED"] = Column(f"How full its {_name} volume is, in percent.", _used(_name), False, True)
    COLUMNS[f"{_short}-POOL"] = Column(f"Storage pool of its {_name} volume.", _pool(_name), False)

_NUMERIC_PROPERTIES = ("xid", "qid", "maxmem", "vcpus", "qrexec_timeout", "shutdown_timeout")


def column(name: str) -> Column:
    """By any spelling. What is no column of its own is a property."""
    known = COLUMNS.get(name.upper().replace("_", "-"))
    if known:
        return known
    prop = name.lower().replace("-", "_")
    return Column(f"Property {prop}.", lambda facts, qube: facts.property(qube.name, prop), numeric=prop in _NUMERIC_PROPERTIES)


def needs_properties(names: Iterable[str]) -> bool:
    return any(column(name).calls for name in names)


def sort_key(name: str, cell: str, *, fold: bool) -> tuple[float, str]:
    """Numbers by size (nothing is 0), texts by their characters."""
    if not column(name).numeric:
        return 0, cell.upper() if fold else cell
    try:
        return float(cell.rstrip("%")), ""
    except ValueError:
        return 0, ""
