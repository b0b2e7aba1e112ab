"""firewall.xml: a qube's firewall rules as Qubes OS keeps them beside its qubes.xml (reference/admin-api.md 9, 17).

Version 2 is written since Qubes OS 4.0, version 1 before: its rules are all of one action, the opposite of its policy.
"""
from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from cloison.errors import CloisonError
from cloison.model import firewall
from cloison.model.firewall import MAX_RULES, Rule
from cloison.model.qubesxml_elements import BadQubesXml, elements, named_texts

MAX_BYTES = 2 << 20
_ACTIONS = {"allow": "accept", "deny": "drop"}
_V1_ATTRIBUTES = ("address", "netmask", "proto", "port", "toport", "expire")


def load(untrusted: bytes, where: str) -> list[Rule]:
    """Raises BadQubesXml, which begins with `where`."""
    if len(untrusted) > MAX_BYTES:
        raise BadQubesXml(f"{where}: longer than {MAX_BYTES} bytes")
    root = elements(untrusted, "firewall", where)
    version = root.get("version", "1")
    if version not in ("1", "2"):
        raise BadQubesXml(f"{where}: version {version[:20]!r} is not known")
    try:
        rules = _load_1(root, where) if version == "1" else _load_2(root, where)
    except BadQubesXml:
        raise
    except CloisonError as error:
        raise BadQubesXml(f"{where}: {error}") from error
    if len(rules) > MAX_RULES:
        raise BadQubesXml(f"{where}: at most {MAX_RULES} rules, not {len(rules)}")
    return rules


def _load_2(root: Element, where: str) -> list[Rule]:
    if root.find("rules") is None:
        raise BadQubesXml(f"{where}: it has no rules")
    return [firewall.from_words(named_texts(rule, "properties", "property", where)) for rule in root.iterfind("rules/*")]


def _load_1(root: Element, where: str) -> list[Rule]:
    """First what it says of name servers and ICMP, then its rules, then what its policy leaves."""
    policy = root.get("policy", "")
    actions = [_ACTIONS.get(root.get(key, policy)) for key in ("policy", "dns", "icmp")]
    general, names, icmp = (action or _unknown(where) for action in actions)
    special = "accept" if general == "drop" else "drop"
    rules = [firewall.from_words({"action": names, "specialtarget": "dns"}), firewall.from_words({"action": icmp, "proto": "icmp"})]
    rules += [firewall.from_words({"action": special, **_words_1(node)}) for node in root]
    return rules + ([Rule("accept")] if general == "accept" else [])


def _unknown(where: str) -> str:
    raise BadQubesXml(f"{where}: its policy, dns and icmp must be allow or deny")


def _words_1(node: Element) -> dict[str, str]:
    """A rule of version 1 in the words of version 2. A port without protocol is one of TCP."""
    address, netmask, proto, port, toport, expire = (node.get(name) or "" for name in _V1_ATTRIBUTES)
    numeric = address.replace(".", "").isdigit()
    words = {
        "dsthost": f"{address}/{netmask}" if netmask and numeric else address,
        "proto": "" if proto == "any" else proto or ("tcp" if port else ""),
        "dstports": f"{port}-{toport}" if port and toport else port,
        "expire": expire,
    }
    return {key: value for key, value in words.items() if value}


def dump(rules: Iterable[Rule]) -> bytes:
    """Version 2."""
    root = Element("firewall", version="2")
    parent = SubElement(root, "rules")
    for rule in rules:
        properties = SubElement(SubElement(parent, "rule"), "properties")
        for name, value in rule.words():
            SubElement(properties, "property", name=name).text = value
    indent(root)
    return tostring(root) + b"\n"
