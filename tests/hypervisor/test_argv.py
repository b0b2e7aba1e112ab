"""QEMU's command line: golden files, values that try to become options, and the shape that warm images depend on."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.hypervisor.qemu import argv
from cloison.hypervisor.qemu.argv import Drive, Node, Ram, Settings, command, shape

UUID = "00000000-0000-4000-8000-000000000001"
ROOT = Drive("root", 10 << 30, (Node(20, "raw", True), Node(21, "qcow2", False)))
PRIVATE = Drive("private", 2 << 30, (Node(22, "qcow2", True), Node(23, "qcow2", False)))
VOLATILE = Drive("volatile", 10 << 30, (Node(24, "qcow2", False),))
MODULES = Drive("modules", 100 << 20, (Node(25, "raw", True),))
COLD = Settings(
    name="work", uuid=UUID, memory=400, vcpus=2, accelerator="tcg", drives=(ROOT, PRIVATE, VOLATILE, MODULES), fd_monitor=10,
    fd_channel=11, kernel="/boot/vmlinuz", initramfs="/boot/initramfs", kernelopts="apparmor=1")
CASES = {
    "cold": COLD,
    "warm": dataclasses.replace(
        COLD, kernel=None, initramfs=None, incoming=True, ram=Ram("/proc/self/fd/30"),
        drives=(dataclasses.replace(ROOT, nodes=(Node(20, "raw", True), Node(26, "qcow2", True), Node(21, "qcow2", False))),
                PRIVATE, VOLATILE, MODULES)),
    "mounted": dataclasses.replace(
        COLD, drives=(dataclasses.replace(ROOT, nodes=(Node("/disks/root.0", "raw", True), Node(21, "qcow2", False))),)),
    "making": dataclasses.replace(
        COLD, ram=Ram("/proc/self/fd/30", shared=True),
        drives=(ROOT, Drive("private", 2 << 30), Drive("volatile", 10 << 30), MODULES)),
    "ephemeral": dataclasses.replace(
        COLD, drives=(dataclasses.replace(ROOT, nodes=(Node(20, "raw", True), Node(21, "qcow2", False, fd_secret=32))), PRIVATE,
                      Drive("volatile", 10 << 30, (Node(24, "qcow2", False, fd_secret=31),)), MODULES)),
    "kvm": dataclasses.replace(COLD, accelerator="kvm"),
    "no-private": dataclasses.replace(COLD, drives=(ROOT, VOLATILE, MODULES), kernelopts=""),
    "shape": COLD,
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    argv = shape(CASES[name]) if name == "shape" else command(CASES[name])
    golden(f"qemu/{name}.txt", "".join(f"{word}\n" for word in argv))


# -- hostile values ---------------------------------------------------------------------------------------------------------

WITH_VALUE = {
    "-name", "-uuid", "-machine", "-accel", "-cpu", "-smp", "-rtc", "-m", "-object", "-kernel", "-initrd", "-append", "-incoming",
    "-device", "-blockdev", "-chardev", "-mon", "-netdev", "-sandbox",
}
ALONE = {"-nodefaults", "-no-user-config", "-nographic", "-no-reboot"}
AS_JSON = {"-object", "-device", "-blockdev"}
CORPUS = [
    "a,b", "a=b", 'a"b', "a\nb", "-chardev file,path=/etc/passwd", ",id=x,path=/etc/passwd", '"},{"driver":"file"', "\\",
    "../../etc",
    "/x,readonly=off", "-", "--", "on,spawn=allow", "%s%n", "é\u202e", "$(id)", "'", "", " ", "\t", "-S\n-monitor\nstdio",
]


def options(argv: list[str]) -> list[tuple[str, str]]:
    """(option, value) as QEMU reads them. Fails for a word that is no known option."""
    words, found = iter(argv[1:]), []
    for word in words:
        assert word in ALONE or word in WITH_VALUE, word
        found.append((word, next(words) if word in WITH_VALUE else ""))
    return found


def structure(value: object) -> object:
    """JSON with every text and number replaced by its type: what no hostile value may change."""
    if isinstance(value, dict):
        return {key: structure(inner) for key, inner in value.items()}
    return type(value).__name__


def check_contained(hostile: str) -> None:
    """The same options in the same order with the same structure, and the hostile text only in places of its own."""
    tame = dataclasses.replace(COLD, ram=Ram("/proc/self/fd/30"))
    evil = dataclasses.replace(
        tame, name=hostile, uuid=hostile, kernel=hostile, initramfs=hostile, kernelopts=hostile, ram=Ram(hostile),
        drives=(dataclasses.replace(ROOT, nodes=(Node(hostile, "raw", True), *ROOT.nodes[1:])), *COLD.drives[1:]))
    for (option, value), (evil_option, evil_value) in zip(options(command(tame)), options(command(evil)), strict=True):
        assert option == evil_option
        if option in AS_JSON:
            assert structure(json.loads(value)) == structure(json.loads(evil_value))
        elif option == "-append":
            assert evil_value.endswith(hostile.strip()) or not hostile.strip()
        elif option in ("-kernel", "-initrd", "-uuid"):
            assert evil_value == hostile
        else:
            assert value == evil_value


@pytest.mark.parametrize("hostile", CORPUS)
def test_qsb_066_no_value_becomes_an_option(hostile: str) -> None:
    check_contained(hostile)


@given(st.text(st.sampled_from('abc,=\"\n\\-/{}[]: é\0')))
def test_qsb_066_nor_does_any_other_text(hostile: str) -> None:
    check_contained(hostile)


@pytest.mark.parametrize(("change", "word"), [
    ({"accelerator": "hax"}, "accelerator"), ({"accelerator": "tcg,thread=multi"}, "accelerator"),
    ({"accelerator": ""}, "accelerator"),
    ({"drives": (Drive("root,id=x", 1),)}, "role"), ({"drives": (Drive("", 1),)}, "role"),
])
def test_words_outside_the_lists_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        command(dataclasses.replace(COLD, **change))


def test_every_denial_of_the_sandbox_is_asked_for() -> None:
    for settings in CASES.values():
        assert command(settings)[-2:] == ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


def test_every_disk_graph_is_stated_and_never_probed() -> None:
    nodes = [json.loads(value) for option, value in options(command(CASES["warm"])) if option == "-blockdev"]
    by_name = {node["node-name"]: node for node in nodes}
    for node in nodes:
        assert node["driver"] in ("raw", "qcow2", "file")
        if node["driver"] == "qcow2":
            assert node["backing"] is None or node["backing"] in by_name
        if node["driver"] == "file":
            assert node["filename"].startswith("/dev/fdset/") and node["auto-read-only"] is False
    assert by_name["root"]["backing"] == "root-1" and by_name["root-1"]["backing"] == "root-0"
    writable = [name for name, node in by_name.items() if not node["read-only"] and node["driver"] != "file"]
    assert writable == ["root", "private", "volatile"]


def test_no_network_but_a_hub_without_a_wire() -> None:
    for settings in CASES.values():
        found = options(command(settings))
        assert [value for option, value in found if option == "-netdev"] == ["hubport,id=net0,hubid=0"]


# -- shape ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"name": "other"}, {"uuid": "00000000-0000-4000-8000-000000000002"}, {"fd_monitor": 99, "fd_channel": 98},
    {"ram": Ram("/x", True)},
    {"incoming": True}, {"kernel": "/k", "initramfs": "/i"}, {"kernelopts": "quiet"},
    {"drives": tuple(Drive(drive.role, drive.size) for drive in COLD.drives)},
    {"drives": (dataclasses.replace(ROOT, size=20 << 30), PRIVATE, VOLATILE, MODULES)},
])
def test_shape_ignores(change: dict[str, Any]) -> None:
    assert shape(dataclasses.replace(COLD, **change)) == shape(COLD)


@pytest.mark.parametrize("change", [
    {"memory": 401}, {"vcpus": 3}, {"accelerator": "kvm"}, {"drives": (ROOT, VOLATILE, MODULES)},
    {"drives": (ROOT, PRIVATE, dataclasses.replace(VOLATILE, size=1 << 30), MODULES)},
])
def test_shape_depends_on(change: dict[str, Any]) -> None:
    assert shape(dataclasses.replace(COLD, **change)) != shape(COLD)


@pytest.mark.parametrize("memory", [64, 200, 400, 1024, 4096, 65536])
def test_code_cache_leaves_room_below_the_ceiling(memory: int) -> None:
    """Beside the guest's memory and the cache QEMU itself takes some 75 MiB at most: 23 of libraries, the rest of its own."""
    cache = argv.code_cache(memory)
    assert argv.LEAST_CODE_CACHE <= cache <= argv.MOST_CODE_CACHE
    assert memory + cache + 75 <= argv.ceiling(memory) <= memory * 1.25 + 100


def test_code_cache_is_tcgs_and_shapes_no_warm_image() -> None:
    settings = dataclasses.replace(COLD, code_cache=120)
    line = command(settings)
    assert line[line.index("-accel") + 1] == "tcg,tb-size=120"
    kept = shape(settings)
    assert kept[kept.index("-accel") + 1] == "tcg"


@pytest.mark.parametrize("memory", [64, 400, 65536])
def test_addresses_have_room_for_the_gui_and_for_stacks_of_busy_disks(memory: int) -> None:
    stacks = 2 * 256 * 9
    assert argv.addresses(memory) >= memory + argv.code_cache(memory) + 512 + 720 + stacks
    assert argv.addresses(memory) < memory + argv.code_cache(memory) + (8 << 10), "and it is a limit"


@pytest.mark.parametrize(("memory", "cache", "most"), [
    (16, 32, 115), (47, 32, 153), (48, 32, 155), (52, 33, 160), (400, 120, 595), (1968, 512, 2555), (1972, 512, 2560),
    (16384, 512, 20575),
])
def test_what_a_qemu_may_take_beside_its_guests_memory(memory: int, cache: int, most: int) -> None:
    """README, point 3: a quarter more and 100 MB. The cache and 80 MiB of QEMU's own fit from 240 MiB on; with less it has 32."""
    assert (argv.code_cache(memory), argv.ceiling(memory)) == (cache, most)
    assert argv.addresses(memory) >= most + argv.GUI_REGION, "a limit on addresses that no honest one meets"
    assert memory + cache <= most


@pytest.mark.parametrize(("accelerator", "cache", "given"), [("tcg", 120, "tcg,tb-size=120"), ("tcg", 0, "tcg"), ("kvm", 0, "kvm")])
def test_the_cache_is_tcgs(accelerator: str, cache: int, given: str) -> None:
    found = command(dataclasses.replace(COLD, accelerator=accelerator, code_cache=cache))
    assert found[found.index("-accel") + 1] == given


@pytest.mark.parametrize("change", [{"accelerator": "xen"}, {"accelerator": ""}, {"drives": (Drive("rescue", 1),)}])
def test_what_does_not_exist_is_no_command_line(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no "):
        command(dataclasses.replace(COLD, **change))
