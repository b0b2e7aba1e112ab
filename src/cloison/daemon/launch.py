"""From a qube of the model to the `Launch` its warden gets: a pure function (reference/admin-api.md 18)."""
from __future__ import annotations

from dataclasses import dataclass

from cloison.model import addresses, features, firewall, own_features
from cloison.model.domains import Qube
from cloison.model.properties import to_text
from cloison.plan import fitting
from cloison.qrexec.host.budget import DISPOSABLES
from cloison.qrexec.host.programs import MOST, MOST_EACH
from cloison.wire.warden import DiskSource, Kernel, Launch

START_TIMEOUT = 300         # s: a cold start of a busy host without KVM takes 85 s
MOST_AT_ONCE = 256                       # of anything that a qube's calls may have at once, whoever says how many
MEMORY_EACH = 512                        # MiB that a disposable is taken for where nobody says how many
ROLES = ("root", "private", "volatile", "modules")


@dataclass(frozen=True)
class Facts:
    """What a launch needs that is not in the model."""

    disks: tuple[DiskSource, ...]
    kernel: Kernel
    accelerator: str
    random_seed: str            # base64 of 64 bytes, new for each start
    timezone: str
    now: float
    warm: str | None = None     # folder of the warm image


def build(qube: Qube, facts: Facts) -> Launch:
    disks = tuple(sorted(facts.disks, key=lambda disk: ROLES.index(disk.role) if disk.role in ROLES else len(ROLES)))
    return Launch(
        name=qube.name, uuid=qube.uuid, xid=qube.xid, memory=qube.get("memory"), vcpus=qube.get("vcpus"), disks=disks,
        kernel=facts.kernel, kernelopts=_kernelopts(qube), warm=facts.warm, accelerator=facts.accelerator,
        identity=identity(qube, facts),
        default_user=qube.get("default_user"), start_timeout=fitting.start_timeout(START_TIMEOUT, qube.get("qrexec_timeout")),
        debug=qube.get("debug"), disposables=_disposables(qube), programs=_said(qube, own_features.CALL_PROGRAMS, MOST),
        programs_each=_said(qube, own_features.CALL_PROGRAMS_EACH, MOST_EACH),
    )


def _kernelopts(qube: Qube) -> str:
    """What somebody has set, here or in a template. The default is advice for Xen, of no use here."""
    holders = [qube, *qube.templates()]
    return next((str(holder.values["kernelopts"]) for holder in holders if "kernelopts" in holder.values), "")


def _disposables(qube: Qube) -> int:
    """By default so many that they take no more than half of the host's memory."""
    return _said(qube, own_features.CALL_DISPOSABLES, max(1, min(DISPOSABLES, qube.system.host.memory // 2 // MEMORY_EACH)))


def _said(qube: Qube, feature: str, default: int) -> int:
    """A count by a feature: the qube's, its template's or dom0's."""
    said = qube.feature_or_none(feature, template=True, adminvm=True)
    if said is None or not (said.isascii() and said.isdecimal()):
        return default
    return min(int(said[:9]), MOST_AT_ONCE)


def identity(qube: Qube, facts: Facts) -> dict[str, str]:
    """The QubesDB entries of a starting qube."""
    template = qube.template
    entries = {
        "/name": qube.name,
        "/type": qube.klass,
        "/default-user": qube.get("default_user"),
        "/qubes-vm-type": _vm_type(qube),
        "/qubes-vm-updateable": str(qube.get("updateable")),
        "/qubes-vm-persistence": _persistence(qube),
        "/qubes-debug-mode": str(int(qube.get("debug"))),
        "/qubes-base-template": template.name if template else "",
        "/qubes-random-seed": facts.random_seed,
        "/qubes-block-devices": "",
        "/qubes-usb-devices": "",
        "/qubes-iptables-error": "",
        **({"/qubes-service/fresh-daemons": "1"} if facts.accelerator == "kvm" else {}),     # features below say otherwise
        "/keyboard-layout": qube.get("keyboard_layout"),
        "/qubes-gui-enabled": str(qube.get("guivm") is not None and bool(qube.feature_or_none("gui", template=True))),
    }
    if facts.timezone and not qube.feature_or_none("anon-timezone", template=True):
        entries["/qubes-timezone"] = facts.timezone
    for prop, path in (("guivm", "/qubes-gui-domain-xid"), ("audiovm", "/qubes-audio-domain-xid")):
        other = qube.reference(prop)
        if other is not None:
            entries[path] = str(0 if not other.kind.machine else other.xid)
    entries.update(_from_features(qube))
    entries.update(_relayed(qube))
    entries.update(_own_network(qube))
    if qube.get("provides_network"):
        entries.update(provided_network(qube, facts.now))
    return entries


def _vm_type(qube: Qube) -> str:
    if qube.get("provides_network"):
        return "ProxyVM" if qube.netvm else "NetVM"
    return "TemplateVM" if qube.klass == "TemplateVM" else "AppVM"


def _persistence(qube: Qube) -> str:
    if qube.get("updateable"):
        return "full"
    return "none" if qube.klass == "DispVM" else "rw-only"


def _from_features(qube: Qube) -> dict[str, str]:
    entries = {"/qubes-service/meminfo-writer": str(int(qube.get("maxmem") > 0))}
    for name, value in qube.features.items():
        entries |= {path: text for path, text in features.qdb_entries(name, value).items() if text is not None}
    for name in ("gui-videoram-overhead", "gui-videoram-min"):
        amount = qube.feature_or_none(name, template=True, adminvm=True)
        if amount is not None:
            entries[f"/qubes-{name}"] = amount
    if qube.features.get("service.guivm"):
        entries["/guivm-windows-prefix"] = qube.features.get("guivm-windows-prefix", "GuiVM")
    for feature, service in (("check-updates", "qubes-update-check"), ("updates-proxy-setup", "yum-proxy-setup")):
        setting = qube.feature_or_none(feature, template=feature != "check-updates")
        if setting is not None:
            entries[f"/qubes-service/{service}"] = "1" if setting else "0"
    return entries


def _relayed(qube: Qube) -> dict[str, str]:
    """What a relay calls the qubes of other machines."""
    remote = [other for other in qube.system.qubes.values() if other.get_or_none("relayvm") == qube.name]
    return {f"/remote/{other.name}": str(other.get("remote_name") or other.name) for other in remote}


def _own_network(qube: Qube) -> dict[str, str]:
    if qube.netvm is None:
        return {}
    entries = {
        "/qubes-mac": qube.get("mac"),
        "/qubes-ip": qube.get("visible_ip"),
        "/qubes-netmask": qube.get("visible_netmask"),
        "/qubes-gateway": qube.get("visible_gateway"),
        "/qubes-primary-dns": addresses.DNS[0],
        "/qubes-secondary-dns": addresses.DNS[1],
        "/qubes-ip6": qube.get("visible_ip6"),
        "/qubes-gateway6": qube.get("visible_gateway6"),
    }
    return {path: to_text(value) for path, value in entries.items() if value is not None}


def provided_network(qube: Qube, now: float) -> dict[str, str]:
    """What a provider of network is told of itself and its clients, and of their firewalls."""
    clients = [client for client in qube.system.clients(qube) if client.kind.machine]
    entries = {
        "/qubes-netvm-network": to_text(qube.get("gateway")),
        "/qubes-netvm-gateway": to_text(qube.get("gateway")),
        "/qubes-netvm-netmask": addresses.NETMASK,
        "/qubes-netvm-primary-dns": addresses.DNS[0],
        "/qubes-netvm-secondary-dns": addresses.DNS[1],
        "/connected-ips": " ".join(str(client.get("visible_ip")) for client in clients),
        "/connected-ips6": " ".join(str(client.get("visible_ip6")) for client in clients if client.get("visible_ip6")),
    }
    if qube.get("gateway6"):
        entries["/qubes-netvm-gateway6"] = qube.get("gateway6")
    for client in clients:
        ip = client.get("ip")
        if client.get("visible_ip") != ip:
            entries[f"/mapped-ip/{ip}/visible-ip"] = str(client.get("visible_ip"))
            entries[f"/mapped-ip/{ip}/visible-gateway"] = to_text(client.get("visible_gateway"))
        entries.update(firewall_entries(client, now))
    return entries


def firewall_entries(client: Qube, now: float) -> dict[str, str]:
    """The client's rules, per address family; the last entry is the signal that all are there."""
    rules = firewall.unexpired(firewall.parse_rules(client.texts.get("firewall", firewall.DEFAULT).encode()), now)
    entries: dict[str, str] = {}
    for prop, other in (("ip", "dst6="), ("ip6", "dst4=")):
        address = client.get(prop)
        if address:
            tree = f"/qubes-firewall/{address}"
            entries[f"{tree}/policy"] = "drop"
            entries.update({f"{tree}/{number:04}": rule.text(for_qubesdb=True) for number, rule in enumerate(rules)
                            if not (rule.destination or "").startswith(other)})
            entries[tree] = ""
    return entries
