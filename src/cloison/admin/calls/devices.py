"""Devices (reference/admin-api.md 8): what is exposed is listed, assignments are kept and served, block devices attached."""
from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from cloison.admin.qubesd import Call
from cloison.devicetext import ANY, Device
from cloison.errors import (
    BadAssignmentMode,
    BadPropertyValue,
    BadRequest,
    BadValue,
    CloisonError,
    DeviceAlreadyAssigned,
    DeviceNotAssigned,
    DeviceNotFound,
    NotPermitted,
    QubeError,
    QubeNotFound,
    QubeNotRunning,
)
from cloison.model import devices
from cloison.model.devices import Assignment
from cloison.model.exposed import matching

Handler = Callable[[Call], str | None]
AsyncHandler = Callable[[Call], Awaitable[str | None]]

# Why devices of the other classes are listed and assigned only.
_UNATTACHABLE = {
    "pci": "a PCI device is only handed to a qube while that starts, and this host hands none out",
    "usb": "the qube has no USB proxy (qubes-usb-proxy is not installed in it)",
    "mic": "no audio of the host is handed to qubes",
}


def _device(call: Call, devclass: str) -> Device:
    device = devices.parse_argument(devclass, call.argument)
    if device.backend != ANY and device.backend not in call.system.qubes:
        raise QubeNotFound(f"there is no qube {device.backend[:60]!r}")
    return device


def _rule(call: Call, device: Device) -> Assignment:
    """The payload of Assign and Attach. Raises BadRequest."""
    rule = devices.parse_assignment(device, call.payload)
    if rule.mode not in (*devices.MODES, "manual"):
        raise BadRequest(f"{rule.mode[:30]!r} is not a mode of assignment")
    if rule.frontend and rule.frontend not in call.system.qubes:
        raise BadRequest(f"device data names a frontend_domain {rule.frontend[:60]!r}, which is no qube")
    return rule


def _check_can_have_devices(call: Call) -> None:
    """Raises CloisonError for a qube elsewhere. dom0 can have rules, which have no effect."""
    if call.dest.klass == "RemoteVM":
        raise CloisonError(f"{call.dest.name} is a RemoteVM: it can have no devices here")


def _place(call: Call) -> str:
    """BACKEND+PORT, or empty for all. Raises BadRequest."""
    if call.argument and "+" not in call.argument:
        raise BadRequest("a place of devices is named <backend>+<port>")
    return call.argument


def available(devclass: str) -> AsyncHandler:
    async def handler(call: Call) -> str:
        exposed = await call.qubesd.exposed(call.dest, devclass)
        lines = (each.line for each in exposed if call.argument in ("", each.device.port))
        return "".join(sorted(lines))

    return handler


def attached(devclass: str) -> AsyncHandler:
    """Only block devices can be attached."""
    async def handler(call: Call) -> str:
        place = _place(call)
        found = await call.qubesd.attached(call.dest) if devclass == "block" else []
        return _lines(found, place)

    return handler


def _lines(found: Iterable[Assignment], place: str) -> str:
    """`place`: BACKEND+PORT, or empty for all. Raises DeviceNotFound where a place has several."""
    lines = [devices.assignment_line(each) for each in found if place in ("", f"{each.device.backend}+{each.device.port}")]
    if place and len(lines) > 1:
        raise DeviceNotFound(f"there are {len(lines)} devices for {place[:80]}, not one")
    return "".join(sorted(lines))


def assigned(devclass: str) -> Handler:
    def handler(call: Call) -> str:
        place = _place(call)
        return _lines((rule for rule in call.dest.assignments.values() if rule.device.devclass == devclass), place)

    return handler


def assign(devclass: str) -> Handler:
    def handler(call: Call) -> None:
        rule = _rule(call, _device(call, devclass))
        _check_can_have_devices(call)
        if rule.mode == "manual":
            raise BadValue("a device can't be assigned in mode manual; attach it instead")
        if rule.device.key in call.dest.assignments:
            raise DeviceAlreadyAssigned(f"{rule.device} is assigned to {call.dest.name} already")
        if devclass == "pci" and call.dest.get_or_none("virt_mode") == "pvh" and "virt_mode" in call.dest.values:
            raise BadPropertyValue("virt_mode pvh can't have PCI devices")
        with call.qubesd.transaction():
            _emit(call, f"device-pre-assign:{devclass}", rule, options=True)
            call.dest.put_assignment(rule)
            _emit(call, f"device-assign:{devclass}", rule, options=True)

    return handler


def _emit(call: Call, event: str, rule: Assignment, *, options: bool = False) -> None:
    pairs: dict[str, object] = {"device": rule.device}
    if options:
        pairs["options"] = dict(rule.options)
    call.system.journal.emit(call.dest.name, event, **pairs)


def unassign(devclass: str) -> Handler:
    def handler(call: Call) -> None:
        _check_can_have_devices(call)
        device = _device(call, devclass)
        rule = call.dest.assignments.get(device.key)
        if rule is None:
            raise DeviceNotAssigned(f"{device} is not assigned to {call.dest.name}")
        with call.qubesd.transaction():
            call.dest.drop_assignment(device.key)
            _emit(call, f"device-unassign:{devclass}", rule)

    return handler


def set_assignment(devclass: str) -> Handler:
    def handler(call: Call) -> None:
        mode = call.payload.decode("ascii", "replace")
        if mode not in devices.MODES:
            raise BadAssignmentMode(f"{mode[:30]!r} is not a mode of assignment: use {', '.join(devices.MODES)}")
        device = _device(call, devclass)
        rule = call.dest.assignments.get(device.key)
        if rule is None:
            raise BadValue(f"{device} is not assigned to {call.dest.name}")
        if rule.mode == mode:
            return
        with call.qubesd.transaction():
            _emit(call, f"device-pre-assign:{devclass}", rule, options=True)
            call.dest.put_assignment(rule.with_mode(mode))
            _emit(call, f"device-assignment-changed:{devclass}", rule)

    return handler


def attach(devclass: str) -> AsyncHandler:
    async def handler(call: Call) -> None:
        device = _device(call, devclass)
        rule = _rule(call, device)
        _check_can_have_devices(call)
        if call.dest.is_halted:
            raise QubeNotRunning(f"{call.dest.name} does not run")
        backends = call.system.sorted_qubes() if device.backend == ANY else [call.system.qube(device.backend)]
        found = [each for backend in backends for each in matching(await call.qubesd.exposed(backend, devclass), rule.device)]
        if len(found) != 1:
            raise BadRequest(f"there is no device {device}" if not found else f"{device} means {len(found)} devices")
        if not call.dest.kind.machine:
            raise CloisonError(f"{found[0].device} can't be attached to {call.dest.name}: the host takes no device of a qube")
        if rule.mode == "manual" and found[0].is_denied(_denied(call)):
            raise NotPermitted(f"{call.dest.name} may not have devices with the interfaces of {found[0].device}")
        if devclass != "block":
            raise CloisonError(f"{found[0].device} can't be attached to {call.dest.name}: {_UNATTACHABLE[devclass]}")
        await call.qubesd.attach(call.dest, found[0], rule.options)

    return handler


def detach(devclass: str) -> AsyncHandler:
    async def handler(call: Call) -> None:
        _check_can_have_devices(call)
        device = _device(call, devclass)
        if devclass != "block":
            raise DeviceNotAssigned(f"{device} is not attached to {call.dest.name}")
        await call.qubesd.detach(call.dest, device)

    return handler


# -- interfaces that may not be attached by hand -------------------------------------------------------------------------


def _denied(call: Call) -> list[str]:
    if "devices_denied" not in call.dest.properties:
        raise QubeError(f"{call.dest.name} is of class {call.dest.klass}: it can have no devices here")
    return devices.parse_interfaces(str(call.dest.get("devices_denied")))


def _patterns(call: Call) -> list[str]:
    if not call.payload.isascii():
        raise BadRequest("interfaces of devices are ASCII text")
    patterns = devices.split_interfaces(call.payload.decode("ascii"))
    if len(set(patterns)) != len(patterns):
        raise BadRequest("an interface is there twice")
    return patterns


def denied_list(call: Call) -> str:
    return "\n".join(_denied(call))


def denied_add(call: Call) -> None:
    present, new = _denied(call), _patterns(call)
    with call.qubesd.transaction():
        call.dest.set("devices_denied", "".join([*present, *new]))


def denied_remove(call: Call) -> None:
    present = _denied(call)
    gone = present if call.payload == b"all" else _patterns(call)
    rest = [pattern for pattern in present if pattern not in gone]
    if rest != present:
        with call.qubesd.transaction():
            call.dest.set("devices_denied", "".join(rest))
