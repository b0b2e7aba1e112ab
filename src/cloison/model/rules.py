"""What a property may be set to, beyond its type (reference/admin-api.md 6)."""
from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

from cloison.errors import BadPropertyValue, BadValue, QubeInUse, QubeNotHalted, QubeNotStarted
from cloison.model import removal
from cloison.model.devices import parse_interfaces
from cloison.model.domains import Qube, System
from cloison.model.properties import Holder

_USER = re.compile(r"[A-Za-z0-9_+,.-]{1,256}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_KEYBOARD = re.compile(r"[a-zA-Z]+\+[a-zA-Z0-9_-]*\+[a-zA-Z0-9_:,-]*")
MAX_KERNELOPTS = 512


def at_least(least: int, name: str) -> Callable[[Holder, Any], int]:
    def rule(_: Holder, value: int) -> int:
        if value < least:
            raise BadPropertyValue(f"property {name} must be at least {least}, not {value}")
        return value

    return rule


def user_name(_: Qube, value: str) -> str:
    if not _USER.fullmatch(value):
        raise BadPropertyValue("a user's name may only hold letters, digits and _+,.-")
    return value


def denied_devices(_: Qube, value: str) -> str:
    return "".join(sorted(set(parse_interfaces(value))))


def address4(_: Qube, value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise BadValue(f"{value[:60]!r} is not an IPv4 address") from None


def address6(_: Qube, value: str) -> str:
    try:
        return str(ipaddress.IPv6Address(value))
    except ValueError:
        raise BadValue(f"{value[:60]!r} is not an IPv6 address") from None


def mac(_: Qube, value: str) -> str:
    if not _MAC.fullmatch(value):
        raise BadPropertyValue(f"{value[:60]!r} is not a MAC address")
    return value.lower()


def installed_kernel(holder: Holder, value: str) -> str:
    host = holder.system.host if isinstance(holder, Qube) else holder.host if isinstance(holder, System) else None
    if "/" in value:
        raise BadPropertyValue("a kernel's version can't hold '/'")
    if value and host is not None and value not in host.kernels():
        raise BadPropertyValue(f"kernel {value[:60]!r} is not installed")
    return value


def kernel_options(_: Qube, value: str) -> str:
    if len(value) > MAX_KERNELOPTS:
        raise BadPropertyValue(f"kernel options have at most {MAX_KERNELOPTS} characters, not {len(value)}")
    return value


def keyboard(_: Qube, value: str) -> str:
    if not _KEYBOARD.fullmatch(value):
        raise BadPropertyValue(f"{value[:60]!r} is not a keyboard layout: use layout+variant+options")
    return value


def virtualization(qube: Qube, value: str) -> str:
    mode = value.lower()
    if mode not in ("hvm", "pv", "pvh"):
        raise BadPropertyValue(f"virt_mode must be hvm, pv or pvh, not {value[:60]!r}")
    if mode == "pvh" and qube.pci_devices():
        raise BadPropertyValue("virt_mode pvh can't have PCI devices")
    return mode


def maximum_memory(qube: Qube, value: int) -> int:
    if value < 0:
        raise BadPropertyValue(f"property maxmem must be at least 0, not {value}")
    if value != qube.get("maxmem") and not qube.is_halted:
        raise QubeNotHalted(f"{qube.name} runs: its maxmem can't be changed now")
    return value


def disposable_template(holder: Holder, value: str | None) -> str | None:
    """For every property that names the template of disposables."""
    if value is None:
        return None
    system = holder.system if isinstance(holder, Qube) else holder
    target = system.qubes[value] if isinstance(system, System) else None
    if target is None or not target.get_or_none("template_for_dispvms"):
        raise BadPropertyValue(f"{value} is not a template for disposables (its template_for_dispvms is not set)")
    return value


# -- network -----------------------------------------------------------------------------------------------------------


def _downstream(qube: Qube, netvm: Qube) -> bool:
    """Whether `netvm` gets its network from `qube`, or is it."""
    return qube is netvm or qube in netvm.netvms()


def network_provider(qube: Qube, value: str | None) -> str | None:
    if value is None:
        return None
    netvm = qube.system.qubes[value]
    if not netvm.get_or_none("provides_network"):
        raise BadValue(f"{value} does not provide network (its provides_network is not set)")
    if _downstream(qube, netvm):
        raise BadValue(f"{value} gets its network from {qube.name}: that would be a loop")
    if not qube.is_halted and netvm.is_halted:
        raise QubeNotStarted(f"{qube.name} runs, so its netvm {value} must run too")
    return value


def system_network(system: System, value: str | None) -> str | None:
    """A default netvm must not use the default itself, nor anyone it gets its network from."""
    if value is None:
        return None
    netvm = system.qubes[value]
    if "netvm" not in netvm.properties:
        raise BadPropertyValue(f"{value} is of class {netvm.klass}: it can't be a netvm")
    chain = [netvm, *netvm.netvms()]
    if any("netvm" in qube.properties and qube.is_default("netvm") for qube in chain):
        raise BadPropertyValue(f"Network loop: set the netvm of {value} explicitly first, for instance to nothing")
    return value


def provides(qube: Qube, value: bool) -> bool:
    clients = qube.system.clients(qube)
    if not value and clients:
        raise BadValue(f"{qube.name} is the netvm of {clients[0].name}, so it must provide network")
    return value


# -- templates, pools ----------------------------------------------------------------------------------------------------


def template(qube: Qube, value: str | None) -> str:
    if value is None:
        raise BadPropertyValue(f"{qube.name} can't be without a template")
    target = qube.system.qubes[value]
    if qube.klass == "DispVM":
        disposable_template(qube, value)
    elif target.klass != "TemplateVM":
        raise BadPropertyValue(f"{value} is not a TemplateVM")
    if not qube.is_halted:
        raise QubeNotHalted(f"{qube.name} runs: its template can't be changed now")
    running = [child.name for child in qube.system.children(qube) if not child.is_halted and not child.is_preload]
    if running and value != qube.get("template"):
        raise QubeInUse(f"{running[0]} runs and is based on {qube.name}: its template can't be changed now")
    return value


def for_disposables(qube: Qube, value: bool) -> bool:
    if value:
        return value
    system = qube.system
    children = [child for child in system.children(qube) if not child.is_preload]
    if children:
        raise QubeInUse(f"{qube.name} is the template of disposable {children[0].name}")
    for holder, prop in removal.referrers(system, qube):
        if prop in ("default_dispvm", "management_dispvm"):
            raise QubeInUse(f"{qube.name} is the {prop} of {holder.subject or 'the system'}")
    return value


def template_vm(system: System, value: str | None) -> str | None:
    if value is not None and system.qubes[value].klass != "TemplateVM":
        raise BadPropertyValue(f"{value} is not a TemplateVM")
    return value


def existing_pool(system: System, value: str) -> str:
    if value not in system.pools:
        raise BadPropertyValue(f"there is no pool {value[:60]!r}")
    return value
