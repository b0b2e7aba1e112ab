"""The kinds of qube and the system, as declarations: every property with its type, default, rule and effect.

Facts: reference/admin-api.md 6. `new_system` is the only way to make a model.
"""
from __future__ import annotations

from typing import Any

from cloison.model import defaults as d
from cloison.model import effects as e
from cloison.model import rules as r
from cloison.model.domains import Kind, System
from cloison.model.host import Host
from cloison.model.properties import Property

P = Property


def _table(*groups: tuple[Property, ...]) -> dict[str, Property]:
    """By load stage and name: the order of listings. A later group's property replaces an earlier one's."""
    named = {prop.name: prop for group in groups for prop in group}
    return dict(sorted(named.items(), key=lambda item: (item[1].stage, item[0])))


def _computed(name: str, type_: str, doc: str, default: Any, **kwargs: Any) -> Property:
    return P(name, type_, doc, default, read_only=True, **kwargs)


_LABEL = P("label", "label", "Colour that says how much this qube is trusted.", effect=e.label, keep="every qube has a label")
_IDENTITY = (
    P("name", "str", "Name of the qube. It can't change.", write_once=True, clone=False),
    P("qid", "int", "Number of the qube, unique on this system.", write_once=True, clone=False),
    P("uuid", "str", "Identifier that no other qube ever has.", write_once=True, clone=False),
)
_DENIED = P("devices_denied", "str", "Interfaces of devices that may not be attached by hand, as 7-character patterns.", "",
            rule=r.denied_devices)
_KEYBOARD = P("keyboard_layout", "str", "Keyboard as layout+variant+options.", d.keyboard_layout, rule=r.keyboard,
              effect=e.keyboard_layout)
_DISPVM = P("default_dispvm", "vm", "Template of the disposables this qube asks for.", d.from_system("default_dispvm"),
            rule=r.disposable_template, stage=4)

ADMIN = _table((
    _DENIED, _LABEL, _KEYBOARD, _DISPVM,
    _computed("icon", "str", "Name of the icon.", "adminvm-black"),
    P("include_in_backups", "bool", "Whether a backup takes dom0 along.", True),
    _computed("klass", "str", "Class of the qube.", "AdminVM"),
    _computed("maxmem", "int", "Most memory dom0 has, in MiB.", lambda qube: qube.system.host.dom0_memory),
    _computed("name", "str", "Name of the qube.", "dom0"),
    _computed("qid", "int", "Number of the qube.", 0),
    _computed("updateable", "bool", "Whether its software is its own to update.", True),
    _computed("uuid", "str", "Identifier of dom0.", "00000000-0000-0000-0000-000000000000"),
))

REMOTE = _table(_IDENTITY, (
    _LABEL,
    _computed("icon", "str", "Name of the icon.", d.icon),
    P("include_in_backups", "bool", "Whether a backup takes it along.", False),
    _computed("klass", "str", "Class of the qube.", "RemoteVM"),
    P("remote_name", "str", "Its name on the other machine.", None),
    P("transport_rpc", "str", "Service of the relay that carries calls over.", None),
    P("relayvm", "vm", "Local qube that relays calls.", None, effect=e.keeps_tag("relayvm-"), stage=4),
))

_COMMON = (
    *_IDENTITY, _LABEL, _DENIED, _KEYBOARD, _DISPVM,
    P("audiovm", "vm", "Qube that plays and records its sound.", d.from_system("default_audiovm"),
      effect=e.keeps_tag("audiovm-"), stage=4),
    P("autostart", "bool", "Start together with the system.", False),
    P("backup_timestamp", "int", "Time of the last backup, seconds since 1970.", None),
    P("bootmode", "str", "Boot mode, of those the template advertises.", d.bootmode, stage=4),
    P("debug", "bool", "Show the machine's console and log more.", False),
    P("default_user", "str", "User that programs run as.", d.inherited("default_user", "user"), rule=r.user_name,
      inherited=True),
    _computed("dns", "str", "Name servers the qube is given.", d.dns),
    _computed("gateway", "str", "Address its clients use as gateway.", d.gateway),
    _computed("gateway6", "str", "IPv6 address its clients use as gateway.", d.gateway6),
    P("guivm", "vm", "Qube that shows its windows.", d.from_system("default_guivm"), effect=e.keeps_tag("guivm-"),
      stage=4),
    _computed("icon", "str", "Name of the icon.", d.icon),
    P("include_in_backups", "bool", "Whether a backup takes it along.", True),
    P("installed_by_rpm", "bool", "The package manager owns this qube; it can't be removed here.", False),
    P("ip", "str", "IPv4 address.", d.ip, rule=r.address4, effect=e.address("")),
    P("ip6", "str", "IPv6 address.", d.ip6, rule=r.address6, effect=e.address("6")),
    P("kernel", "str", "Version of the kernel from the kernel pool; empty: the qube's own.",
      d.inherited("kernel", d.from_system("default_kernel")), rule=r.installed_kernel, inherited=True),
    P("kernelopts", "str", "Kernel command line.", d.kernelopts, rule=r.kernel_options, stage=4, inherited=True),
    P("mac", "str", "MAC address of its network interface.", "00:16:3e:5e:6c:00", rule=r.mac),
    P("management_dispvm", "vm", "Template of the disposable that manages this qube.",
      d.inherited("management_dispvm", d.from_system("management_dispvm")), rule=r.disposable_template, stage=4,
      inherited=True),
    # Our machines don't balance memory yet, and without balancing the default is 0.
    P("maxmem", "int", "Most memory it may grow to, in MiB; 0: no balancing.", 0, rule=r.maximum_memory, inherited=True),
    P("memory", "int", "Memory at start, in MiB.", d.inherited("memory", 400), rule=r.at_least(1, "memory"), inherited=True),
    P("netvm", "vm", "Qube that gives it network; empty: no network.", d.from_system("default_netvm"),
      rule=r.network_provider, effect=e.netvm, stage=4, reset_rule=True),
    P("provides_network", "bool", "Whether other qubes may use it as their netvm.", False, rule=r.provides,
      effect=e.provides_network),
    P("qrexec_timeout", "int", "Seconds to wait for the agent at start.",
      d.inherited("qrexec_timeout", d.from_system("default_qrexec_timeout")), rule=r.at_least(1, "qrexec_timeout"),
      inherited=True),
    P("shutdown_timeout", "int", "Seconds to wait for the qube to power off.",
      d.inherited("shutdown_timeout", d.from_system("default_shutdown_timeout")), rule=r.at_least(1, "shutdown_timeout"),
      inherited=True),
    _computed("start_time", "str", "When it was started, seconds since 1970.", d.guest_start_time),
    P("stubdom_mem", "int", "Memory of a stub domain, in MiB; for compatibility.", None, rule=r.at_least(1, "stubdom_mem")),
    _computed("stubdom_uuid", "str", "Identifier of its stub domain; there is none.", ""),
    _computed("stubdom_xid", "int", "Number of its stub domain; there is none.", -1),
    P("vcpus", "int", "Number of virtual processors.", d.inherited("vcpus", 2), rule=r.at_least(1, "vcpus"), inherited=True),
    P("virt_mode", "str", "Kind of virtual machine.", d.virt_mode, rule=r.virtualization),
    _computed("visible_gateway", "str", "Gateway the qube sees.", d.visible_gateway),
    _computed("visible_gateway6", "str", "IPv6 gateway the qube sees.", d.visible_gateway6),
    _computed("visible_ip", "str", "Address the qube sees as its own.", d.visible_ip),
    _computed("visible_ip6", "str", "IPv6 address the qube sees as its own.", d.visible_ip6),
    _computed("visible_netmask", "str", "Netmask the qube sees.", d.visible_netmask),
    _computed("xid", "int", "Number of its running machine, -1 if it does not run.", lambda qube: qube.xid),
)


def _own(klass: str, *, updateable: bool) -> tuple[Property, ...]:
    return (_computed("klass", "str", "Class of the qube.", klass),
            _computed("updateable", "bool", "Whether its software is its own to update.", updateable))


_FOR_DISPVMS = P("template_for_dispvms", "bool", "Whether disposables may be made from it.", False, rule=r.for_disposables,
                 effect=e.own_default_dispvm, reset_rule=True)


def _template(doc: str, effect: Any) -> Property:
    return P("template", "vm", doc, rule=r.template, effect=effect, stage=4, keep="the qube needs a template", clone=False)


TEMPLATE = _table(_COMMON, _own("TemplateVM", updateable=True), (
    P("appvm_default_bootmode", "str", "Boot mode of the qubes made from it.", d.appvm_default_bootmode,
      effect=e.appvm_default_bootmode, stage=4),
    P("netvm", "vm", "Qube that gives it network; a template has none unless set.", None, rule=r.network_provider,
      effect=e.netvm, stage=4, reset_rule=True),
))
APP = _table(_COMMON, _own("AppVM", updateable=False), (
    _FOR_DISPVMS, _template("Template whose system it uses.", e.template)))
STANDALONE = _table(_COMMON, _own("StandaloneVM", updateable=True), (_FOR_DISPVMS,))
DISP = _table(_COMMON, _own("DispVM", updateable=False), (
    _template("Qube it is a disposable copy of.", e.dispvm_template),
    P("auto_cleanup", "bool", "Remove the qube when it has stopped.", False, clone=False),
    P("dispid", "int", "Number of the disposable.", write_once=True, clone=False),
    P("default_dispvm", "vm", "Template of the disposables this qube asks for.", d.own_template, rule=r.disposable_template,
      stage=4),
    P("include_in_backups", "bool", "Whether a backup takes it along.", d.include_in_backups),
    _computed("is_preload", "bool", "Whether it waits, started, to be used.", d.is_preload),
))

GLOBALS = _table((
    P("check_updates_vm", "bool", "Whether new qubes look for updates.", True, stage=3),
    P("clockvm", "vm", "Qube that sets the clock.", None, effect=e.clockvm, stage=3),
    P("default_audiovm", "vm", "Default of audiovm.", "dom0", effect=e.default_user_interface("audiovm"), stage=3),
    P("default_dispvm", "vm", "Default of default_dispvm.", None, rule=r.disposable_template, effect=e.default_dispvm, stage=3),
    P("default_guivm", "vm", "Default of guivm.", "dom0", effect=e.default_user_interface("guivm"), stage=3),
    P("default_kernel", "str", "Default of kernel.", rule=r.installed_kernel, stage=3),
    P("default_netvm", "vm", "Default of netvm.", None, rule=r.system_network, effect=e.default_netvm, stage=3),
    P("default_pool", "str", "Pool of new volumes.", d.default_pool, rule=r.existing_pool, stage=3),
    *(P(f"default_pool_{volume}", "str", f"Pool of new {volume} volumes.", d.from_pool_default, rule=r.existing_pool, stage=3)
      for volume in ("kernel", "private", "root", "volatile")),
    P("default_qrexec_timeout", "int", "Default of qrexec_timeout, seconds.", 60, stage=3),
    P("default_shutdown_timeout", "int", "Default of shutdown_timeout, seconds.", 60, stage=3),
    P("default_template", "vm", "Template of new qubes.", rule=r.template_vm, stage=3),
    P("management_dispvm", "vm", "Default of management_dispvm.", None, rule=r.disposable_template, stage=3),
    _computed("maxmem", "int", "Memory of the host, in MiB.", lambda system: system.host.memory, stage=3),
    _computed("no_cpus", "int", "Processors of the host.", lambda system: system.host.cpus, stage=3),
    P("stats_interval", "int", "Seconds between two reports of statistics.", 3, stage=3),
    P("updatevm", "vm", "Qube that downloads dom0's updates.", None, stage=3),
))

# In the order admin.vmclass.List gives them.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("AppVM", APP, templates=("TemplateVM",)),
        Kind("TemplateVM", TEMPLATE),
        Kind("StandaloneVM", STANDALONE),
        Kind("AdminVM", ADMIN, machine=False),
        Kind("DispVM", DISP, templates=("AppVM", "StandaloneVM")),
        Kind("RemoteVM", REMOTE, machine=False),
    )
}


def new_system(host: Host) -> System:
    """A system with dom0 and nothing else."""
    return System(GLOBALS, KINDS, host)
