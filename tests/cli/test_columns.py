"""What each column of qvm-ls shows and how it is sorted; and what the client refuses to read as a state or a volume."""
from __future__ import annotations

from typing import cast

import pytest

from cloison.cli import ls_columns
from cloison.cli.ls_columns import COLUMNS, Facts, column, needs_properties, sort_key
from cloison.client.calls import Domain, State, Volume
from cloison.client.domains import Qube
from cloison.errors import PeerError

MIB = 1 << 20


class Known:
    """Facts of a made-up system."""

    properties = {"work": {"netvm": "net", "updateable": "True", "provides_network": "False", "debug": "True", "autostart": "False",
                           "installed_by_rpm": "False", "virt_mode": "pvh", "memory": "400"},
                  "net": {"gateway": "10.137.0.5", "virt_mode": "hvm", "netvm": ""}}
    disks = {"root": {"usage": str(3 * MIB), "size": str(12 * MIB), "pool": "p"},
             "private": {"usage": str(MIB), "size": "0", "pool": "q"}}

    def property(self, name: str, prop: str) -> str | None:
        return self.properties[name].get(prop)

    def current(self, name: str, key: str) -> int:
        return {"mem": 5 * 1024 + 1, "cputime": 2_345_000_000}[key]

    def volumes(self, name: str) -> dict[str, dict[str, str]]:
        return self.disks if name == "work" else {}

    def start(self, name: str) -> str | None:
        return "warm"


FACTS = cast(Facts, Known())
WORK, NET = Qube("work", "AppVM", "Running", "u-1"), Qube("net", "AppVM", "Halted", "u-2")


@pytest.mark.parametrize(("name", "cell", "of_net"), [
    ("NAME", "work", "net"), ("STATE", "Running", "Halted"), ("CLASS", "AppVM", "AppVM"), ("UUID", "u-1", "u-2"),
    ("GATEWAY", "10.137.0.5", None), ("CPU", "2.3", None), ("MEMORY", "5", None), ("DISK", "4", "0"), ("START", "warm", "warm"),
    ("PRIV-CURR", "1", "0"), ("PRIV-MAX", "0", "0"), ("PRIV-USED", "0", "0"), ("PRIV-POOL", "q", None),
    ("ROOT-CURR", "3", "0"), ("ROOT-MAX", "12", "0"), ("ROOT-USED", "25%", "0"), ("ROOT-POOL", "p", None),
    ("MEMORY_", "5", None), ("root_used", "25%", "0"), ("netvm", "net", ""), ("provides-network", "False", None),
])
def test_each_column(name: str, cell: str, of_net: str | None) -> None:
    found = column(name.rstrip("_"))
    assert found.value(FACTS, WORK) == cell
    assert found.value(FACTS, NET) == of_net


@pytest.mark.parametrize(("name", "numeric", "asks"), [
    *((name, name in ("CPU", "MEMORY", "DISK") or name.endswith(("-CURR", "-MAX", "-USED")), name in ("GATEWAY", "FLAGS"))
      for name in COLUMNS),
    ("netvm", False, True), ("xid", True, True), ("qid", True, True), ("maxmem", True, True), ("vcpus", True, True),
    ("qrexec-timeout", True, True), ("label", False, True),
])
def test_which_are_numbers_and_which_ask_for_properties(name: str, numeric: bool, asks: bool) -> None:
    """Asking costs a call for each qube."""
    assert column(name).numeric is numeric
    assert needs_properties([name]) is asks and needs_properties(["NAME", name]) is asks


@pytest.mark.parametrize(("name", "cells", "fold", "ordered"), [
    ("MEMORY", ["10", "9", "", "x", "100"], False, ["", "x", "9", "10", "100"]),
    ("ROOT-USED", ["100%", "20%", "3%"], False, ["3%", "20%", "100%"]),
    ("NAME", ["b", "B", "a", "10", "9"], False, ["10", "9", "B", "a", "b"]), ("NAME", ["b", "C", "a"], True, ["a", "b", "C"]),
    ("CPU", ["-1", "2.5", "2"], True, ["-1", "2", "2.5"]),
])
def test_numbers_by_size_and_texts_by_their_characters(name: str, cells: list[str], fold: bool, ordered: list[str]) -> None:
    assert sorted(cells, key=lambda cell: sort_key(name, cell, fold=fold)) == ordered


@pytest.mark.parametrize(("klass", "state", "mode", "start"), [
    ("AppVM", "Running", "pvh", "ar"), ("AppVM", "Running", "hvm", "Ar"), ("TemplateVM", "Halted", "pvh", "t-"),
    ("AppVM", "NA", "pvh", "a?"), ("AppVM", "Paused", "pvh", "ap"), ("AppVM", "Transient", "pvh", "at"),
    ("Other", "Halted", "pvh", "--"),
])
def test_flags_begin_with_class_and_state(
    monkeypatch: pytest.MonkeyPatch, klass: str, state: str, mode: str, start: str,
) -> None:
    monkeypatch.setitem(Known.properties["work"], "virt_mode", mode)
    flags = ls_columns._flags(FACTS, Qube("work", klass, state, ""))
    assert flags.startswith(start) and len(flags) == 2 + len(ls_columns._FLAGS)
    assert flags[2:] == "U---D-"


# -- answers that are calls' -------------------------------------------------------------------------------------------------

SAID = (b"pool=p\nvid=v\nsize=7\nusage=3\nrw=True\nsource=\nsave_on_stop=False\nsnap_on_start=True\n"
        b"revisions_to_keep=1\nis_outdated=False\n")


def test_a_volume_is_what_qubesd_says() -> None:
    assert Domain("work").volume("root").read(SAID) == Volume("p", "v", 7, 3, True, "", False, True, 1, False)
    turned = SAID.replace(b"True", b"x").replace(b"False", b"True")
    assert Domain("work").volume("root").read(turned) == Volume("p", "v", 7, 3, False, "", True, False, 1, True)


@pytest.mark.parametrize("left_out", [b"size=7\n", b"usage=3\n", b"revisions_to_keep=1\n"])
def test_a_volume_without_numbers_is_none(left_out: bytes) -> None:
    with pytest.raises(PeerError, match="not a volume"):
        Domain("work").volume("root").read(SAID.replace(left_out, b""))


def test_a_state_is_what_qubesd_says() -> None:
    read = Domain("work").state().read
    assert read(b"mem=5 mem_static_max=9 cputime=7 power_state=Running") == State("Running", 5, 7)
    for wrong in (b"", b"mem=5 cputime=7", b"mem=x cputime=7 power_state=Halted", b"mem=5 cputime= power_state=Halted"):
        with pytest.raises(PeerError, match="not a state"):
            read(wrong)
