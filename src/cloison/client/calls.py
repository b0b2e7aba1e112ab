"""Calls of the Admin API as values: what to send, and how to read the answer (reference/admin-api.md 5-9).

`Domain("work").start()` does nothing by itself: `Connection.do` sends it and waits, `aio.Connection.do` is awaited. So each call is
written once, with the type of its answer, for programs of both kinds. What is not here has `Connection.call`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from cloison.client import devices
from cloison.client.devices import Line
from cloison.client.domains import (
    DOM0,
    Property,
    Qube,
    key_values,
    lines,
    parse_properties,
    parse_property,
    parse_qubes,
    property_prefix,
)
from cloison.devicetext import Device
from cloison.errors import CloisonError, FeatureNotFound, PeerError, TagNotFound

T = TypeVar("T")
Value = str | int | bool | None


class AdminCall(NamedTuple, Generic[T]):
    """One call. `absent`: a class of failure that is none, and the answer that it means."""

    dest: str
    method: str
    argument: str
    payload: bytes
    read: Callable[[bytes], T]
    absent: tuple[type[CloisonError], T] | None = None

    def answer(self, outcome: bytes | CloisonError) -> T:
        """What a reply's content, or qubesd's failure, means. Raises the failure."""
        if isinstance(outcome, bytes):
            return self.read(outcome)
        if self.absent is not None and isinstance(outcome, self.absent[0]):
            return self.absent[1]
        raise outcome


def _nothing(_: bytes) -> None:
    return None


def text(reply: bytes) -> str:
    return reply.decode("utf-8", "replace")


def default_text(reply: bytes) -> str | None:
    """`type=int 400` -> `400`; nothing at all: there is no default."""
    return text(reply).partition(" ")[2] if reply else None


def order(dest: str, method: str, argument: str = "", payload: str | bytes = b"") -> AdminCall[None]:
    """A call whose only answer is that it was done."""
    return AdminCall(dest, method, argument, payload.encode() if isinstance(payload, str) else payload, _nothing)


def spelled(value: Value) -> str:
    """A property's value as the Admin API spells it."""
    return "" if value is None else str(value)


class Volume(NamedTuple):
    """A volume as admin.vm.volume.Info tells it. Sizes in bytes."""

    pool: str
    vid: str
    size: int
    usage: int
    rw: bool
    source: str
    save_on_stop: bool
    snap_on_start: bool
    revisions_to_keep: int
    is_outdated: bool


def _volume(reply: bytes) -> Volume:
    info = key_values(reply)
    try:
        size, usage, kept = (int(info[key]) for key in ("size", "usage", "revisions_to_keep"))
    except (KeyError, ValueError) as error:
        raise PeerError("not a volume", str(error)) from error
    rw, saved, snapshot, outdated = (info.get(key) == "True" for key in ("rw", "save_on_stop", "snap_on_start", "is_outdated"))
    get = info.get
    return Volume(get("pool", ""), get("vid", ""), size, usage, rw, get("source", ""), saved, snapshot, kept, outdated)


class State(NamedTuple):
    """admin.vm.CurrentState. `memory` in KiB, `cpu_time` in nanoseconds."""

    power: str
    memory: int
    cpu_time: int


def _state(reply: bytes) -> State:
    words = key_values(reply.replace(b" ", b"\n"))
    try:
        return State(words["power_state"], int(words["mem"]), int(words["cputime"]))
    except (KeyError, ValueError) as error:
        raise PeerError("not a state", str(error)) from error


# -- the system ----------------------------------------------------------------------------------------------------------


def domains() -> AdminCall[dict[str, Qube]]:
    """All qubes by name, dom0 first."""
    return AdminCall(DOM0, "admin.vm.List", "", b"", parse_qubes)


def labels() -> AdminCall[list[str]]:
    return AdminCall(DOM0, "admin.label.List", "", b"", lines)


def pools() -> AdminCall[list[str]]:
    return AdminCall(DOM0, "admin.pool.List", "", b"", lines)


def pool_info(name: str) -> AdminCall[dict[str, str]]:
    return AdminCall(DOM0, "admin.pool.Info", name, b"", key_values)


def system_properties() -> AdminCall[dict[str, Property]]:
    return AdminCall(DOM0, property_prefix(None) + "GetAll", "", b"", parse_properties)


def system_property(name: str) -> AdminCall[Property]:
    return AdminCall(DOM0, property_prefix(None) + "Get", name, b"", parse_property)


def set_system_property(name: str, value: Value) -> AdminCall[None]:
    return order(DOM0, property_prefix(None) + "Set", name, spelled(value))


# -- one qube ------------------------------------------------------------------------------------------------------------


class Domain(str):
    """A qube's name, and the calls to it. Making one asks nobody: the qube may not exist."""

    __slots__ = ()

    # power

    def state(self) -> AdminCall[State]:
        return AdminCall(self, "admin.vm.CurrentState", "", b"", _state)

    def start(self) -> AdminCall[None]:
        return order(self, "admin.vm.Start")

    def shutdown(self, *, wait: bool = False, force: bool = False) -> AdminCall[None]:
        """`wait`: the answer comes when the qube has halted. `force`: also when others use it."""
        return order(self, "admin.vm.Shutdown", "+".join(word for word, on in (("force", force), ("wait", wait)) if on))

    def kill(self) -> AdminCall[None]:
        return order(self, "admin.vm.Kill")

    def pause(self) -> AdminCall[None]:
        return order(self, "admin.vm.Pause")

    def unpause(self) -> AdminCall[None]:
        return order(self, "admin.vm.Unpause")

    def suspend(self) -> AdminCall[None]:
        return order(self, "admin.vm.Suspend")

    def resume(self) -> AdminCall[None]:
        return order(self, "admin.vm.Resume")

    def console(self) -> AdminCall[str]:
        """Path of the terminal that is a running qube's console."""
        return AdminCall(self, "admin.vm.Console", "", b"", text)

    def new_disposable(self) -> AdminCall[str]:
        """Name of a disposable of this template, made halted; `disposables.Disposable` makes one that lives as long as its user."""
        return AdminCall(self, "admin.vm.CreateDisposable", "", b"", text)

    def remove(self) -> AdminCall[None]:
        """Delete the qube and its volumes, for good."""
        return order(self, "admin.vm.Remove")

    # settings

    def properties(self) -> AdminCall[dict[str, Property]]:
        return AdminCall(self, property_prefix(self) + "GetAll", "", b"", parse_properties)

    def property(self, name: str) -> AdminCall[Property]:
        return AdminCall(self, property_prefix(self) + "Get", name, b"", parse_property)

    def set_property(self, name: str, value: Value) -> AdminCall[None]:
        return order(self, property_prefix(self) + "Set", name, spelled(value))

    def reset_property(self, name: str) -> AdminCall[None]:
        return order(self, property_prefix(self) + "Reset", name)

    def property_names(self) -> AdminCall[list[str]]:
        return AdminCall(self, property_prefix(self) + "List", "", b"", lines)

    def property_default(self, name: str) -> AdminCall[str | None]:
        """The default's text; None if there is none."""
        return AdminCall(self, property_prefix(self) + "GetDefault", name, b"", default_text)

    def property_help(self, name: str) -> AdminCall[str]:
        return AdminCall(self, property_prefix(self) + "Help", name, b"", text)

    def features(self) -> AdminCall[list[str]]:
        """Names of those that are set."""
        return AdminCall(self, "admin.vm.feature.List", "", b"", lines)

    def feature(self, name: str, *, with_template: bool = False) -> AdminCall[str | None]:
        """None if it is not set; empty text is a value, and means false."""
        method = "admin.vm.feature.CheckWithTemplate" if with_template else "admin.vm.feature.Get"
        return AdminCall(self, method, name, b"", text, (FeatureNotFound, None))

    def inherited_feature(self, name: str, of: str) -> AdminCall[str | None]:
        """The feature here, else of the `Netvm`, of the `AdminVM`, or of the `TemplateAndAdminVM`."""
        return AdminCall(self, f"admin.vm.feature.CheckWith{of}", name, b"", text, (FeatureNotFound, None))

    def set_feature(self, name: str, value: str) -> AdminCall[None]:
        return order(self, "admin.vm.feature.Set", name, value)

    def remove_feature(self, name: str) -> AdminCall[None]:
        return order(self, "admin.vm.feature.Remove", name)._replace(absent=(FeatureNotFound, None))

    def tags(self) -> AdminCall[list[str]]:
        return AdminCall(self, "admin.vm.tag.List", "", b"", lines)

    def has_tag(self, tag: str) -> AdminCall[bool]:
        return AdminCall(self, "admin.vm.tag.Get", tag, b"", lambda reply: reply == b"1")

    def add_tag(self, tag: str) -> AdminCall[None]:
        return order(self, "admin.vm.tag.Set", tag)

    def remove_tag(self, tag: str) -> AdminCall[None]:
        return order(self, "admin.vm.tag.Remove", tag)._replace(absent=(TagNotFound, None))

    def notes(self) -> AdminCall[str]:
        return AdminCall(self, "admin.vm.notes.Get", "", b"", text)

    def set_notes(self, text: str) -> AdminCall[None]:
        return order(self, "admin.vm.notes.Set", "", text)

    # volumes

    def volumes(self) -> AdminCall[list[str]]:
        return AdminCall(self, "admin.vm.volume.List", "", b"", lines)

    def volume(self, name: str) -> AdminCall[Volume]:
        return AdminCall(self, "admin.vm.volume.Info", name, b"", _volume)

    def revisions(self, volume: str) -> AdminCall[list[str]]:
        return AdminCall(self, "admin.vm.volume.ListSnapshots", volume, b"", lines)

    def revert(self, volume: str, revision: str) -> AdminCall[None]:
        return order(self, "admin.vm.volume.Revert", volume, revision)

    def resize(self, volume: str, size: int) -> AdminCall[None]:
        """`size` in bytes; a running qube's file system grows with it."""
        return order(self, "admin.vm.volume.Resize", volume, str(size))

    def clear(self, volume: str) -> AdminCall[None]:
        """Its content becomes empty; what it was is a revision."""
        return order(self, "admin.vm.volume.Clear", volume)

    def clone_from(self, volume: str) -> AdminCall[str]:
        """A token for one `clone_to`."""
        return AdminCall(self, "admin.vm.volume.CloneFrom", volume, b"", text)

    def clone_to(self, volume: str, token: str) -> AdminCall[None]:
        return order(self, "admin.vm.volume.CloneTo", volume, token)

    def set_volume(self, volume: str, setting: str, value: Value) -> AdminCall[None]:
        """`setting`: revisions_to_keep, rw or ephemeral."""
        return order(self, f"admin.vm.volume.Set.{setting}", volume, spelled(value))

    # firewall

    def firewall(self) -> AdminCall[list[str]]:
        """Rules, first to last, as `action=accept dsthost=... proto=...`."""
        return AdminCall(self, "admin.vm.firewall.Get", "", b"", lines)

    def set_firewall(self, rules: Iterable[str]) -> AdminCall[None]:
        return order(self, "admin.vm.firewall.Set", "", "".join(f"{rule}\n" for rule in rules))

    def reload_firewall(self) -> AdminCall[None]:
        return order(self, "admin.vm.firewall.Reload")

    # devices

    def exposed(self, devclass: str) -> AdminCall[dict[str, Line]]:
        """Devices of this qube that others can be given, by port."""
        method = f"admin.vm.device.{devclass}.Available"
        return AdminCall(self, method, "", b"", lambda reply: devices.available(reply, devclass, self))

    def attached(self, devclass: str) -> AdminCall[list[Line]]:
        return AdminCall(self, f"admin.vm.device.{devclass}.Attached", "", b"", lambda reply: devices.used(reply, devclass))

    def assigned(self, devclass: str) -> AdminCall[list[Line]]:
        return AdminCall(self, f"admin.vm.device.{devclass}.Assigned", "", b"", lambda reply: devices.used(reply, devclass))

    def attach(self, device: Device, options: Mapping[str, str] | None = None) -> AdminCall[None]:
        payload = devices.serialise(device, self, "manual", options or {})
        return order(self, f"admin.vm.device.{device.devclass}.Attach", device.argument, payload)

    def detach(self, device: Device) -> AdminCall[None]:
        return order(self, f"admin.vm.device.{device.devclass}.Detach", device.argument)

    def assign(self, device: Device, mode: str, options: Mapping[str, str] | None = None) -> AdminCall[None]:
        """`mode`: required, auto-attach or ask-to-attach."""
        payload = devices.serialise(device, self, mode, options or {})
        return order(self, f"admin.vm.device.{device.devclass}.Assign", device.argument, payload)

    def unassign(self, device: Device) -> AdminCall[None]:
        return order(self, f"admin.vm.device.{device.devclass}.Unassign", device.argument)

    def set_assignment(self, device: Device, mode: str) -> AdminCall[None]:
        return order(self, f"admin.vm.device.{device.devclass}.Set.assignment", device.argument, mode)

    def denied_interfaces(self) -> AdminCall[list[str]]:
        """Kinds of device that this qube is never given: patterns of interfaces."""
        return AdminCall(self, "admin.vm.device.denied.List", "", b"", lines)

    def deny_interfaces(self, patterns: Iterable[str]) -> AdminCall[None]:
        return order(self, "admin.vm.device.denied.Add", "", "".join(patterns))

    def allow_interfaces(self, patterns: Iterable[str]) -> AdminCall[None]:
        return order(self, "admin.vm.device.denied.Remove", "", "".join(patterns))
