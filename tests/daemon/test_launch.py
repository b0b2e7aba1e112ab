"""The launch of a qube is a pure function of model and facts: the whole of it against a golden file."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloison.daemon import launch
from cloison.daemon.fake import FakeHost
from cloison.errors import BadValue
from cloison.model import labels
from cloison.model.catalogue import SYSTEM
from cloison.model.creation import Birth, create
from cloison.model.domains import READY, System
from cloison.model.own_features import CALL_DISPOSABLES, CALL_PROGRAMS, CALL_PROGRAMS_EACH, OWN_FEATURES, Kind
from cloison.model.qubes import new_system
from cloison.model.volumes import Pool
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer, launch_from_json, launch_to_json

GOLDEN = Path(__file__).parents[1] / "golden" / "launch.json"
KERNEL = Kernel("6.6.1", "/k/vmlinuz", "/k/initramfs", "/k/modules.img")


def system() -> System:
    made = new_system(FakeHost())
    for label in labels.DEFAULTS:
        made.journal.put("labels", SYSTEM, made.labels, label.name, label)
    made.put_pool(Pool("p", "qcow2", {}))
    made.set("default_kernel", "6.6.1")
    for klass, name, template in (("TemplateVM", "tpl", None), ("AppVM", "sys-net", "tpl"), ("AppVM", "work", "tpl")):
        create(made, Birth(klass, name, "red", f"00000000-0000-4000-8000-00000000000{len(made.qubes)}", READY, template=template))
    made.qube("sys-net").set_text("netvm", "")
    made.qube("sys-net").set_text("provides_network", "True")
    work = made.qube("work")
    work.set_text("netvm", "sys-net")
    work.set_feature("service.cups", "1")
    work.set_feature("vm-config.color", "a,b=\"c\"")
    work.put_text("firewall", "action=accept dst4=10.0.0.0/8\naction=accept dst6=fd00::/8\naction=drop expire=1\n")
    made.qube("tpl").set_feature("gui", "1")
    return made


def launched(name: str, made: System | None = None, accelerator: str = "tcg") -> Launch:
    disks = (DiskSource("modules", 512, (Layer("/k/modules.img", "raw"),), writable=False), DiskSource("volatile", 1 << 30),
             DiskSource("root", 1 << 30, (Layer("/p/root", "raw"),)))
    qube = (made or system()).qube(name)
    qube.xid = 7
    return launch.build(qube, launch.Facts(disks, KERNEL, accelerator, "c2VlZA==", "Europe/Paris", 100.0, "/warm/1"))


def test_golden() -> None:
    assert {name: launch_to_json(launched(name)) for name in ("work", "sys-net", "tpl")} == {
        name: launch_to_json(launch_from_json(data)) for name, data in json.loads(GOLDEN.read_text()).items()}


def test_disks_come_in_the_order_the_guest_knows() -> None:
    assert [disk.role for disk in launched("work").disks] == ["root", "volatile", "modules"]


def test_hostile_texts_stay_values() -> None:
    assert launched("work").identity["/vm-config/color"] == 'a,b="c"'


def test_the_provider_learns_its_clients_rules_by_family_and_without_the_expired() -> None:
    entries = launched("sys-net").identity
    tree = {path: value for path, value in entries.items() if path.startswith("/qubes-firewall/")}
    assert tree == {"/qubes-firewall/10.137.0.3/policy": "drop", "/qubes-firewall/10.137.0.3/0000": "action=accept dst4=10.0.0.0/8",
                    "/qubes-firewall/10.137.0.3": ""}
    assert list(tree)[-1] == "/qubes-firewall/10.137.0.3"


@pytest.mark.parametrize(("where", "said", "most"), [
    ("work", "0", 0), ("work", "3", 3), ("tpl", "5", 5), ("dom0", "7", 7), ("work", "9999999", 256), ("work", None, 16),
])
def test_how_many_disposables_calls_may_have_is_a_feature(where: str, said: str | None, most: int) -> None:
    made = system()
    if said is not None:
        made.qube(where).set_feature(CALL_DISPOSABLES, said)
    assert launched("work", made).disposables == most


@pytest.mark.parametrize(("accelerator", "said", "entry"), [
    ("tcg", None, None), ("kvm", None, "1"), ("tcg", "1", "1"), ("kvm", "", "0"),
])
def test_programs_are_executed_anew_after_a_start_where_there_is_kvm_or_somebody_says_so(
    accelerator: str, said: str | None, entry: str | None,
) -> None:
    made = system()
    if said is not None:
        made.qube("work").set_feature("service.fresh-daemons", said)
    found = launched("work", made, accelerator=accelerator).identity
    assert found.get("/qubes-service/fresh-daemons") == entry


@pytest.mark.parametrize(("where", "said", "most"), [("work", "0", 0), ("tpl", "5", 5), ("dom0", "7", 7), ("work", "9999999", 256)])
def test_how_many_programs_of_the_host_calls_may_have_is_a_feature(where: str, said: str, most: int) -> None:
    assert (launched("work").programs, launched("work").programs_each) == (16, 4)
    for feature, of in ((CALL_PROGRAMS, "programs"), (CALL_PROGRAMS_EACH, "programs_each")):
        made = system()
        made.qube(where).set_feature(feature, said)
        assert getattr(launched("work", made), of) == most


@pytest.mark.parametrize(("memory", "most"), [(512, 1), (4096, 4), (8192, 8), (65536, 16)])
def test_disposables_of_calls_take_half_of_the_hosts_memory_at_most(memory: int, most: int) -> None:
    made = system()
    made.host.memory = memory
    assert launched("work", made).disposables == most


@pytest.mark.parametrize("said", ["", "-1", "many", "1.5", "\u0663", "12345678"])
@pytest.mark.parametrize("feature", [each.name for each in OWN_FEATURES if each.kind is Kind.COUNT])
def test_what_is_no_count(feature: str, said: str) -> None:
    with pytest.raises(BadValue):
        system().qube("work").set_feature(feature, said)
