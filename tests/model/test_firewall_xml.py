"""firewall.xml of both versions: read, written, and read again; what is no such file is one sentence."""
from __future__ import annotations

import pytest

from cloison.model import firewall, firewall_xml
from cloison.model.qubesxml_elements import BadQubesXml


def read(xml: str) -> list[str]:
    return [rule.text() for rule in firewall_xml.load(xml.encode(), "work/firewall.xml")]


def v2(*rules: dict[str, str]) -> str:
    nodes = ("".join(f'<property name="{name}">{value}</property>' for name, value in rule.items()) for rule in rules)
    inner = "".join(f"<rule><properties>{node}</properties></rule>" for node in nodes)
    return f'<firewall version="2"><rules>{inner}</rules></firewall>'


LINES = [
    "action=accept", "action=drop expire=4000000000 dst6=fd00::/8",
    "action=accept dst4=10.1.2.3/8 proto=tcp dstports=80-90 comment=a b c",
    "action=accept dsthost=example.com proto=udp dstports=53-53", "action=drop proto=icmp icmptype=0",
    "action=accept specialtarget=dns",
]


def test_what_is_written_is_read_again() -> None:
    rules = firewall.parse_rules("\n".join(LINES).encode())
    assert firewall_xml.load(firewall_xml.dump(rules), "x") == rules
    assert firewall_xml.load(firewall_xml.dump([]), "x") == []


def test_version_2_names_every_destination_dsthost() -> None:
    rules = {"action": "accept", "dsthost": "10.0.0.0/8"}, {"action": "drop", "dsthost": "a.example"}, {"action": "drop"}
    assert read(v2(*rules)) == [
        "action=accept dst4=10.0.0.0/8", "action=drop dsthost=a.example", "action=drop"]


@pytest.mark.parametrize(("attributes", "first", "last"), [
    ('policy="allow"', ["action=accept specialtarget=dns", "action=accept proto=icmp"],
     ["action=drop dst4=10.0.0.0/24", "action=accept"]),
    ('policy="deny"', ["action=drop specialtarget=dns", "action=drop proto=icmp"], ["action=accept dst4=10.0.0.0/24"]),
    ('policy="deny" dns="allow" icmp="deny"', ["action=accept specialtarget=dns", "action=drop proto=icmp"],
     ["action=accept dst4=10.0.0.0/24"]),
    ('version="1" policy="allow" dns="deny" icmp="allow"', ["action=drop specialtarget=dns", "action=accept proto=icmp"],
     ["action=drop dst4=10.0.0.0/24", "action=accept"]),
])
def test_version_1_says_the_same_in_other_words(attributes: str, first: list[str], last: list[str]) -> None:
    assert read(f'<firewall {attributes}><rule address="10.0.0.0" netmask="24"/></firewall>') == first + last


@pytest.mark.parametrize(("rule", "text"), [
    ('address="example.com" netmask="32" port="443"', "dsthost=example.com proto=tcp dstports=443-443"),
    ('address="1.2.3.4" proto="udp" port="1" toport="9"', "dst4=1.2.3.4/32 proto=udp dstports=1-9"),
    ('proto="any" address="1.2.3.4"', "dst4=1.2.3.4/32"), ('proto="icmp"', "proto=icmp"),
    ('address="1.2.3.4" expire="4000000000"', "expire=4000000000 dst4=1.2.3.4/32"),
])
def test_rules_of_version_1(rule: str, text: str) -> None:
    assert read(f'<firewall policy="deny"><rule {rule}/></firewall>')[2:] == [f"action=accept {text}"]


@pytest.mark.parametrize("xml", [
    "", "<qubes/>", "<!DOCTYPE x><firewall/>", "<firewall/>", '<firewall policy="perhaps"/>',
    '<firewall policy="deny" dns="?"/>',
    '<firewall version="3" policy="deny"/>', '<firewall version="2"/>', v2({}), v2({"action": "maybe"}),
    v2({"action": "accept", "colour": "red"}),
    v2({"action": "accept", "comment": "&lt;&gt;"}), v2({"action": "accept", "dstports": "80"}),
    v2({"action": "accept", "dsthost": "a b"}),
    '<firewall policy="deny"><rule address="1.2.3.4" netmask="33"/></firewall>',
    '<firewall policy="deny"><rule port="x"/></firewall>',
    v2(*[{"action": "accept"}] * (firewall.MAX_RULES + 1)), " " * (firewall_xml.MAX_BYTES + 1),
])
def test_what_is_none_is_refused_by_name(xml: str) -> None:
    with pytest.raises(BadQubesXml, match=r"^work/firewall\.xml: "):
        read(xml)


def test_the_most_rules_are_read() -> None:
    assert len(read(v2(*[{"action": "accept"}] * firewall.MAX_RULES))) == firewall.MAX_RULES
