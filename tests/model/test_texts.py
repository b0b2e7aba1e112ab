"""Texts that come from outside: firewall rules and devices, hostile and honest."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.devicetext import Device, serialise
from cloison.errors import BadRequest, BadValue, CloisonError
from cloison.model import addresses, devices, firewall


@pytest.mark.parametrize(("given_rule", "canonical"), [
    ("action=accept dsthost=10.0.0.0/8 proto=tcp dstports=80-90 comment=a b c",
     "action=accept dst4=10.0.0.0/8 proto=tcp dstports=80-90 comment=a b c"),
    ("action=accept proto=icmp icmptype=8 expire=4000000000", "action=accept expire=4000000000 proto=icmp icmptype=8"),
    ("action=drop dsthost=10.1.2.3", "action=drop dst4=10.1.2.3/32"),
    ("action=drop dst6=fd00::1", "action=drop dst6=fd00::1/128"),
    ("action=accept specialtarget=dns", "action=accept specialtarget=dns"),
    ("action=drop dst4=10.1.2.3/8", "action=drop dst4=10.1.2.3/8"),
    ("action=drop dst4=::1", "action=drop dst6=::1/128"),
    ("action=drop dst6=example.org", "action=drop dsthost=example.org"),
    (" action=drop proto=icmp icmptype=08 ", "action=drop proto=icmp icmptype=8"),
    ("action=drop comment=", "action=drop"),
    ("dstname=example.org action=accept proto=udp dstports=53", "action=accept dsthost=example.org proto=udp dstports=53-53"),
])
def test_rules_are_canonical(given_rule: str, canonical: str) -> None:
    assert firewall.parse_rule(given_rule).text() == canonical
    assert firewall.parse_rule(canonical).text() == canonical


@pytest.mark.parametrize("rule", [
    "", "accept", "action=maybe", "action=accept action=drop", "action=accept dstports=80",
    "action=accept proto=tcp dstports=90-80",
    "action=accept proto=tcp dstports=65536", "action=accept proto=tcp icmptype=8",
    "action=accept  proto=tcp", "action=accept\tproto=tcp", "action=accept dst4=1.2.3.4/255.255.255.0",
    "action=accept dst4=1.2.3.4/33",
    "action=accept dst6=fe80::1%eth0", "action=accept dst6=::1/129", "action=accept dsthost=", "action=accept dsthost=1.2.3",
    "action=accept dsthost=10.0.0.256", "action=accept dsthost=a;b", "action=accept comment=$(x)", "action=accept expire=-1",
    "action=accept specialtarget=all", "action=accept proto=icmp icmptype=256", "action=accept dsthost=a dst4=1.2.3.4",
])
def test_malformed_rules_are_refused(rule: str) -> None:
    with pytest.raises(BadValue):
        firewall.parse_rule(rule)


@given(st.binary(max_size=200))
def test_firewall_parser_is_total(untrusted: bytes) -> None:
    try:
        rules = firewall.parse_rules(untrusted)
    except CloisonError:
        return
    assert firewall.parse_rules(firewall.to_text(rules).encode()) == rules


@given(st.binary(max_size=200))
def test_device_parser_is_total(untrusted: bytes) -> None:
    try:
        pairs = devices.deserialise(untrusted)
    except BadRequest:
        return
    assert all("\n" not in key + value for key, value in pairs.items())


@given(st.dictionaries(st.text("abc_", min_size=1, max_size=5), st.text("abc '\"=", max_size=8), max_size=4))
def test_device_pairs_survive(pairs: dict[str, str]) -> None:
    if not any(value.endswith("\\") for value in pairs.values()):
        assert devices.deserialise(serialise(pairs).encode()) == pairs


VECTORS = json.loads((Path(__file__).parents[1] / "conformance" / "data" / "device-vectors.json").read_text())["serialization"]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["what"] for vector in VECTORS])
def test_recorded_device_texts(vector: dict[str, str]) -> None:
    pairs = devices.deserialise(vector["serialized"].encode())
    device = Device(pairs["devclass"], pairs["backend_domain"], pairs["port_id"], pairs["device_id"])
    assert (device.argument, str(device), device.head) == (vector["qarg"], vector["str"], vector["repr"])
    assert devices.parse_argument(device.devclass, device.argument) == device
    assert serialise(pairs) == vector["serialized"]


@pytest.mark.parametrize(("number", "disposable", "address"), [
    (3, False, "10.137.0.3"), (254, False, "10.137.0.254"), (255, False, "10.137.1.1"), (9999, False, "10.137.39.93"),
    (1000, True, "10.138.3.238"),
])
def test_addresses(number: int, disposable: bool, address: str) -> None:
    assert addresses.ip(number, disposable=disposable) == address


def test_an_expiry_beyond_the_calendar_is_not_kept_and_one_kept_before_is_shown_as_its_last() -> None:
    late = firewall.parse_rules(b"action=drop expire=253402300800")
    with pytest.raises(BadValue):
        firewall.check_new(late)
    assert firewall.to_text(late) == "action=drop expire=253402300799\n"
    rules = firewall.parse_rules(b"action=drop expire=253402300799\naction=accept")
    assert firewall.check_new(rules) == rules


@pytest.mark.parametrize("host", [
    ".", ".anything", "anything..", "any..any", "-x", "x-.org", "a.-b.c", "x" * 64 + ".org", f"{'a.' * 126}ab"])
def test_a_name_that_no_host_can_have_is_not_kept_and_one_kept_before_can_be_taken_away_alone(host: str) -> None:
    bad, other, new = firewall.parse_rules(f"action=accept dsthost={host}\naction=accept dsthost=..\naction=drop".encode())
    with pytest.raises(BadValue, match="can't be the name of a host"):
        firewall.check_new([bad])
    with pytest.raises(BadValue):
        firewall.check_new([bad, other, new], [other])
    assert firewall.check_new([other, new], [bad, other]) == [other, new]


@pytest.mark.parametrize("host", [
    "example.org", "example.org.", "localhost", "_srv._tcp.x-1.org", "a" * 63 + ".b", f"{'a.' * 126}a", "1a", "xn--e1aybc"])
def test_names_of_hosts(host: str) -> None:
    rules = firewall.parse_rules(f"action=accept dsthost={host}".encode())
    assert firewall.check_new(rules) == rules
