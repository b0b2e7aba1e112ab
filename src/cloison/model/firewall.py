"""Firewall rules of a qube: text in, checked rules, canonical text out (reference/admin-api.md 9)."""
from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cloison.errors import BadRequest, BadValue

DEFAULT = "action=accept"
MAX_RULES = 4096
MAX_HOST = 253
LAST_SECOND = 253402300799               # of the year 9999: the last that a calendar of Python, so a tool of Qubes OS, can show
_HOST = re.compile(r"[a-z0-9._-]{1,255}")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")    # of a host's name, between the dots
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_NUMBER = re.compile(r"[0-9]{1,19}")
_PREFIX = re.compile(r"[0-9]{1,3}")
_COMMENT = re.compile(r"[A-Za-z0-9:;,./_\[\] -]*")
_KEYS = ("action", "proto", "dsthost", "dst4", "dst6", "dstname", "dstports", "icmptype", "specialtarget", "expire", "comment")


@dataclass(frozen=True)
class Rule:
    """`destination` is its output spelling: `dst4=…`, `dst6=…`, `dsthost=…`."""

    action: str
    expire: int | None = None           # seconds since the epoch
    destination: str | None = None
    proto: str | None = None
    specialtarget: str | None = None
    dstports: str | None = None         # a-b
    icmptype: int | None = None
    comment: str | None = None

    def words(self) -> list[tuple[str, str]]:
        """As names and values; whatever spelling the destination has, it is `dsthost`."""
        pairs = (("action", self.action), ("proto", self.proto), ("dsthost", (self.destination or "").partition("=")[2]),
                 ("dstports", self.dstports), ("icmptype", self.icmptype), ("specialtarget", self.specialtarget),
                 ("expire", self.expire), ("comment", self.comment))
        return [(name, str(value)) for name, value in pairs if value not in (None, "")]

    def text(self, *, for_qubesdb: bool = False) -> str:
        """Canonical line; QubesDB gets it without expiry and comment."""
        expire = None if for_qubesdb or self.expire is None else min(self.expire, LAST_SECOND)
        pairs = [("action", self.action), ("expire", expire)]
        words = [f"{key}={value}" for key, value in pairs if value is not None]
        if self.destination:
            words.append(self.destination)
        rest = (("proto", self.proto), ("specialtarget", self.specialtarget), ("dstports", self.dstports),
                ("icmptype", self.icmptype), ("comment", None if for_qubesdb else self.comment))
        return " ".join([*words, *(f"{key}={value}" for key, value in rest if value is not None)])


def parse_rules(untrusted: bytes) -> list[Rule]:
    """A rule a line; empty is the empty list. Raises BadRequest for non-ASCII, BadValue for a malformed rule."""
    try:
        text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("firewall rules are ASCII text") from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if len(lines) > MAX_RULES:
        raise BadValue(f"at most {MAX_RULES} firewall rules, not {len(lines)}")
    return [parse_rule(line) for line in lines]


def parse_rule(untrusted: str) -> Rule:
    """Raises BadValue."""
    head, found, comment = untrusted.partition("comment=") if _has_comment(untrusted) else (untrusted, "", "")
    words: dict[str, str] = {}
    for word in head.strip().split(" "):
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS or key in words:
            raise BadValue(f"firewall rule: {word[:60]!r} is not a known key=value, or is there twice")
        words[key] = value
    if found and comment:
        words["comment"] = comment
    return from_words(words)


def _has_comment(text: str) -> bool:
    return text.startswith("comment=") or " comment=" in text


def from_words(words: Mapping[str, str]) -> Rule:
    """Raises BadValue."""
    unknown = words.keys() - set(_KEYS)
    if unknown:
        raise BadValue(f"firewall rule: {min(unknown)[:60]!r} is not known")
    if not _COMMENT.fullmatch(words.get("comment", "")):
        raise BadValue("firewall rule: a comment may hold letters, digits, space and :;,./_[]- only")
    action, proto = words.get("action"), words.get("proto")
    if action not in ("accept", "drop"):
        raise BadValue("firewall rule: action must be accept or drop")
    if proto not in (None, "tcp", "udp", "icmp"):
        raise BadValue(f"firewall rule: unknown proto {proto[:20]!r}")
    if "dstports" in words and proto not in ("tcp", "udp"):
        raise BadValue("firewall rule: dstports needs proto tcp or udp")
    if "icmptype" in words and proto != "icmp":
        raise BadValue("firewall rule: icmptype needs proto=icmp")
    if words.get("specialtarget", "dns") != "dns":
        raise BadValue("firewall rule: the only specialtarget is dns")
    return Rule(
        action, expire=_number(words, "expire", 2**63), destination=_destination(words), proto=proto,
        specialtarget=words.get("specialtarget"), dstports=_ports(words.get("dstports")),
        icmptype=_number(words, "icmptype", 255), comment=words.get("comment"),
    )


def _number(words: Mapping[str, str], key: str, most: int) -> int | None:
    text = words.get(key)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise BadValue(f"firewall rule: {key} must be a number up to {most}")
    return int(text)


def _ports(text: str | None) -> str | None:
    if text is None:
        return None
    match = _PORTS.fullmatch(text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last <= 65535:
            return f"{first}-{last}"
    raise BadValue("firewall rule: dstports must be a port or a range of ports, 0 to 65535")


def _destination(words: Mapping[str, str]) -> str | None:
    """All four spellings mean the same; what the text is decides the spelling that goes out."""
    given = [words[key] for key in ("dsthost", "dst4", "dst6", "dstname") if key in words]
    if not given:
        return None
    if len(given) > 1:
        raise BadValue("firewall rule: one destination only")
    network = _network(given[0])
    if network is not None:
        return network
    if not _HOST.fullmatch(given[0]) or given[0].replace(".", "").isdigit():
        raise BadValue(f"firewall rule: {given[0][:60]!r} is no address, network or host name")
    return f"dsthost={given[0]}"


def _network(text: str) -> str | None:
    """An address or network as `dst4=…` or `dst6=…`, always with a prefix length; its bits stay as given. None: a name."""
    host, slash, prefix = text.partition("/")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    length = int(prefix) if _PREFIX.fullmatch(prefix) else address.max_prefixlen if not slash else -1
    if "%" in host or not 0 <= length <= address.max_prefixlen:
        return None
    return f"dst{address.version}={host}/{length}"


def check_new(rules: list[Rule], kept: Collection[Rule] = ()) -> list[Rule]:
    """Rules that are to be kept; of those kept already nothing is asked, so that each of them can be taken away alone.

    Raises BadValue for what could be kept, but not be shown by every tool, or not be looked up by who enforces it.
    """
    for rule in rules:
        if rule in kept:
            continue
        if rule.expire is not None and rule.expire > LAST_SECOND:
            raise BadValue(f"firewall rule: expire must be a number up to {LAST_SECOND}, the end of the year 9999")
        kind, _, host = (rule.destination or "").partition("=")
        if kind == "dsthost" and not _is_host_name(host):
            raise BadValue(f"firewall rule: {host[:60]!r} can't be the name of a host: write names like www.example.org")
    return rules


def _is_host_name(text: str) -> bool:
    """Parts of 1 to 63 letters, digits, '_' and inner '-'; a dot may end the whole."""
    name = text.removesuffix(".")
    return len(name) <= MAX_HOST and all(_LABEL.fullmatch(label) for label in name.split("."))


def unexpired(rules: list[Rule], now: float) -> list[Rule]:
    return [rule for rule in rules if rule.expire is None or rule.expire > now]


def to_text(rules: list[Rule]) -> str:
    return "".join(f"{rule.text()}\n" for rule in rules)
