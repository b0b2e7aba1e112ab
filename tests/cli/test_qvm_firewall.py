"""qvm-firewall against the real qubesd: rules as typed, as listed, as kept."""
from __future__ import annotations

import time

import pytest
from fake_qubesd import FakeQubesd

from cloison.cli import qvm_firewall
from cloison.client.connection import Connection
from cloison.wire import admin


def kept(real: Connection) -> list[str]:
    return real.call("work", "admin.vm.firewall.Get").decode().splitlines()


ADDED = [
    (("accept",), "action=accept"),
    (("drop", "10.1.2.3"), "action=drop dst4=10.1.2.3/32"),
    (("accept", "10.1.2.3/8", "tcp", "80"), "action=accept dst4=10.1.2.3/8 proto=tcp dstports=80-80"),
    (("accept", "example.org", "udp", "53-54"), "action=accept dsthost=example.org proto=udp dstports=53-54"),
    (("accept", "fd00::1", "icmp", "8"), "action=accept dst6=fd00::1/128 proto=icmp icmptype=8"),
    (("action=accept", "proto=tcp", "dstports=1"), "action=accept proto=tcp dstports=1-1"),
    (("accept", "proto=tcp", "1.1.1.1", "443"), "action=accept dst4=1.1.1.1/32 proto=tcp dstports=443-443"),
    (("accept", "specialtarget=dns"), "action=accept specialtarget=dns"),
    (("drop", "dst4=0.0.0.0/0"), "action=drop"),
    (("drop", "comment=a b c", "expire=4000000000"), "action=drop expire=4000000000 comment=a b c"),
]


@pytest.mark.parametrize(("words", "line"), ADDED)
def test_a_rule_is_added_and_taken_away_as_typed(real: Connection, words: tuple[str, ...], line: str) -> None:
    assert qvm_firewall.main(["work", "add", "--before", "0", *words]) == 0
    assert kept(real) == [line, "action=accept"]
    assert qvm_firewall.main(["work", "del", *words]) == 0
    assert kept(real) == ["action=accept"]


def test_places(real: Connection) -> None:
    assert qvm_firewall.main(["work", "add", "drop", "1.1.1.1"]) == 0
    assert qvm_firewall.main(["work", "add", "--before", "1", "drop", "2.2.2.2"]) == 0
    assert kept(real) == ["action=accept", "action=drop dst4=2.2.2.2/32", "action=drop dst4=1.1.1.1/32"]
    assert qvm_firewall.main(["work", "del", "--rule-no", "0"]) == 0
    assert qvm_firewall.main(["work", "del", "--rule-no", "1"]) == 0
    assert kept(real) == ["action=drop dst4=2.2.2.2/32"]
    assert qvm_firewall.main(["work", "del", "--rule-no", "0"]) == 0
    assert kept(real) == []
    assert qvm_firewall.main(["work", "reset"]) == 0
    assert kept(real) == ["action=accept"]


def test_listings(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("drop", "10.0.0.0/8", "tcp", "80-90", "comment=the web"), ("accept", "example.org", "icmp", "8")):
        qvm_firewall.main(["work", "add", *words])
    assert qvm_firewall.main(["work"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NO  ACTION  HOST         PROTOCOL  PORT(S)  SPECIAL TARGET  ICMP TYPE  EXPIRE  COMMENT",
        "0   accept  -            -         -        -               -          -       -",
        "1   drop    10.0.0.0/8   tcp       80-90    -               -          -       the web",
        "2   accept  example.org  icmp      -        -               8          -       -",
    ]
    raw = ("action=accept\naction=drop proto=tcp dst4=10.0.0.0/8 dstports=80-90 comment=the web\n"
           "action=accept proto=icmp dsthost=example.org icmptype=8\n")
    for line in ("--raw work list", "work list --raw", "--raw work"):
        assert qvm_firewall.main(line.split()) == 0
        assert capsys.readouterr().out == raw
    real.call("work", "admin.vm.firewall.Set")
    assert qvm_firewall.main(["--raw", "work"]) == 0
    assert capsys.readouterr().out == ""


def test_expiry_counts_from_now(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    before = int(time.time())
    assert qvm_firewall.main(["work", "add", "--before", "0", "accept", "expire=+300"]) == 0
    assert before + 300 <= int(kept(real)[0].partition("expire=")[2]) <= time.time() + 300
    qvm_firewall.main(["work", "list"])
    shown = capsys.readouterr().out.splitlines()[1].split()[7]
    assert shown.startswith("+") and shown.endswith("s")


def test_reload_after_listing(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    qubesd.answers["admin.vm.firewall.Get"] = lambda *_: admin.ok(b"action=drop\n")
    qubesd.answers["admin.vm.firewall.Reload"] = lambda *_: admin.ok()
    for line in ("--raw --reload work list", "--raw work list -r"):
        qubesd.calls.clear()
        assert qvm_firewall.main(line.split()) == 0
        assert [call[1] for call in qubesd.calls] == ["admin.vm.firewall.Get", "admin.vm.firewall.Reload"]
        assert capsys.readouterr().out == "action=drop\n"


@pytest.mark.parametrize(("words", "status"), [
    (("add",), 2), (("add", "accept", "10.0.0.1", "tcp", "80", "1", "2"), 2), (("add", "proto=tcp"), 2),
    (("add", "accept", "action=drop"), 2), (("add", "accept", "colour=red"), 2),
    (("add", "accept", "comment=a\naction=accept"), 2), (("add", "accept", "a", "dst6=::1"), 2),
    (("add", "accept", "dsthost=a action=accept"), 2), (("add", "accept", "comment=a=b"), 2),
    (("add", "accept", "dst4=1.1.1.1", "dst6=::1"), 2),
    (("del",), 2), (("del", "--rule-no", "0", "accept"), 2), (("del", "--rule-no", "x"), 2),
    (("del", "--rule-no", "1"), 1), (("del", "--rule-no", "-1"), 1), (("del", "drop", "9.9.9.9"), 1),
    (("add", "maybe"), 1), (("add", "accept", "10.0.0.256"), 1), (("add", "accept", "1.1.1.1", "tcp", "70000"), 1),
    (("add", "accept", "dstports=80"), 1), (("add", "accept", "comment=$(x)"), 1), (("add", "accept", "é"), 1),
])
def test_refusals_change_nothing(
    real: Connection, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int
) -> None:
    assert qvm_firewall.main(["work", *words]) == status
    err = capsys.readouterr().err
    assert "qvm-firewall: error: " in err or "qvm-firewall add: error: " in err or "qvm-firewall VMNAME" in err
    assert kept(real) == ["action=accept"]


def test_no_such_qube(real: Connection) -> None:
    assert qvm_firewall.main(["nowhere"]) == 2
    assert qvm_firewall.main(["a b"]) == 2


def test_help_teaches_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert qvm_firewall.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: qvm-firewall") and "examples:\n" in text and "ACTION [HOST [PROTO" in text
