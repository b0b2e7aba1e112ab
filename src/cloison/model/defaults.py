"""Defaults that are computed: from the template, the network, the kernel, the features (reference/admin-api.md 6, 11, 15)."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloison.model import addresses
from cloison.model.domains import Qube, System
from cloison.model.properties import Unset

_ICON_KINDS = {"StandaloneVM": "standalonevm", "RemoteVM": "remotevm", "DispVM": "dispvm", "AppVM": "appvm",
               "TemplateVM": "templatevm"}


def inherited(name: str, fallback: Any) -> Callable[[Qube], Any]:
    """The template's effective value, else the fallback (a value, or a function of the qube)."""

    def default(qube: Qube) -> Any:
        template = qube.template
        if template is not None and name in template.properties:
            return template.get(name)
        return fallback(qube) if callable(fallback) else fallback

    return default


def from_system(name: str) -> Callable[[Qube], Any]:
    """The system's value of a global property."""
    return lambda qube: qube.system.get(name)


def from_pool_default(system: System) -> Any:
    return system.get("default_pool")


def default_pool(system: System) -> str:
    """The pool called `default`, else the first that can hold volumes."""
    if "default" in system.pools:
        return "default"
    for pool in system.pools.values():
        if pool.driver != "linux-kernel":
            return pool.name
    raise Unset("default_pool")


def icon(qube: Qube) -> str:
    if qube.klass == "TemplateVM" or (qube.klass == "AppVM" and qube.get("template_for_dispvms")):
        kind = "templatevm"
    elif qube.features.get("servicevm"):
        kind = "servicevm"
    else:
        kind = _ICON_KINDS[qube.klass]
    return f"{kind}-{qube.get('label')}"


def include_in_backups(qube: Qube) -> bool:
    return not qube.get("auto_cleanup")


def keyboard_layout(qube: Qube) -> str:
    """The layout of the qube that shows the windows."""
    seen = set()
    current: Qube | None = qube
    while current is not None and current.name not in seen:
        seen.add(current.name)
        if current is not qube and "keyboard_layout" in current.values:
            return str(current.values["keyboard_layout"])
        current = current.reference("guivm")
    return "us++"


def kernelopts(qube: Qube) -> str:
    kernel = qube.get("kernel")
    if not kernel:
        return ""
    pci = bool(qube.pci_devices())
    template = qube.template
    if not pci and template is not None:
        return str(template.get("kernelopts"))
    advised = qube.system.host.kernel_options(kernel, pci=pci)
    if advised is not None:
        return advised
    return "" if pci else "swiotlb=2048"


def virt_mode(qube: Qube) -> str:
    if qube.pci_devices():
        return "hvm"
    template = qube.template
    return "pvh" if template is None else template.get("virt_mode")


# -- network -----------------------------------------------------------------------------------------------------------


def is_networked(qube: Qube) -> bool:
    return bool(qube.get("provides_network") or qube.get_or_none("netvm"))


def _number(qube: Qube) -> tuple[int, bool]:
    if qube.klass == "DispVM":
        return int(qube.get("dispid")), True
    return qube.qid, False


def ip(qube: Qube) -> str | None:
    if not is_networked(qube):
        return None
    number, disposable = _number(qube)
    return addresses.ip(number, disposable=disposable)


def has_ipv6(qube: Qube) -> bool:
    return bool(qube.feature_or_none("ipv6", netvm=True))


def ip6(qube: Qube) -> str | None:
    if not is_networked(qube) or not has_ipv6(qube):
        return None
    number, disposable = _number(qube)
    return addresses.ip6(number, disposable=disposable)


def dns(qube: Qube) -> str | None:
    return " ".join(addresses.DNS) if is_networked(qube) else None


def gateway(qube: Qube) -> str | None:
    return qube.get("visible_ip") if qube.get("provides_network") else None


def gateway6(qube: Qube) -> str | None:
    return qube.get("visible_ip6") if qube.get("provides_network") and has_ipv6(qube) else None


def visible_ip(qube: Qube) -> str | None:
    fake = qube.feature_or_none("net.fake-ip", template=True)
    return fake or qube.get("ip")


def visible_ip6(qube: Qube) -> str | None:
    value: str | None = qube.get("ip6")
    return value


def visible_gateway(qube: Qube) -> str | None:
    netvm = qube.netvm
    fake = qube.feature_or_none("net.fake-gateway", template=True)
    return fake or (netvm.get_or_none("gateway") if netvm else None)


def visible_gateway6(qube: Qube) -> str | None:
    netvm = qube.netvm
    return netvm.get_or_none("gateway6") if netvm and has_ipv6(qube) else None


def visible_netmask(qube: Qube) -> str | None:
    fake = qube.feature_or_none("net.fake-netmask", template=True)
    return fake or (addresses.NETMASK if qube.netvm else None)


# -- boot modes, disposables ---------------------------------------------------------------------------------------------


def _known_mode(qube: Qube, mode: str) -> bool:
    return mode == "default" or qube.feature_or_none(f"boot-mode.kernelopts.{mode}", template=True) is not None


def bootmode(qube: Qube) -> str:
    active = qube.features.get("boot-mode.active")
    if active and _known_mode(qube, active):
        return active
    for template in qube.templates():
        if "appvm_default_bootmode" in template.properties:
            mode = str(template.get("appvm_default_bootmode"))
            if _known_mode(qube, mode):
                return mode
    return "default"


def appvm_default_bootmode(qube: Qube) -> str:
    return qube.features.get("boot-mode.appvm-default") or "default"


def is_preload(qube: Qube) -> bool:
    template = qube.template
    return template is not None and qube.name in template.features.get("preload-dispvm", "").split()


def own_template(qube: Qube) -> str | None:
    """A disposable's disposables come from its own template: never from one with more network (QSB-047)."""
    template = qube.template
    return template.name if template else None


def guest_start_time(qube: Qube) -> str | None:
    return None if qube.start_time is None else str(qube.start_time)
