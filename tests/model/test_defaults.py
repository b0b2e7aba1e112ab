"""Defaults that are computed: what a qube has that was told nothing, by its template, its network and the system."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloison.daemon.fake import FakeHost
from cloison.errors import CloisonError
from cloison.model import creation, labels
from cloison.model.catalogue import SYSTEM
from cloison.model.creation import Birth
from cloison.model.domains import READY, Qube, System
from cloison.model.properties import Unset
from cloison.model.qubes import new_system
from cloison.model.volumes import Pool


@pytest.fixture
def system() -> Iterator[System]:
    """Template tpl and dvm, an AppVM on tpl for disposables; net provides network."""
    made = new_system(FakeHost())
    for label in labels.DEFAULTS:
        made.journal.put("labels", SYSTEM, made.labels, label.name, label)
    made.put_pool(Pool("varlibqubes", "qcow2", {"dir_path": "/p", "revisions_to_keep": "1"}))
    made.put_pool(Pool("linux-kernel", "linux-kernel", {"dir_path": "/k"}))
    made.store_value("default_pool_kernel", "linux-kernel")
    for name, klass, template in (
        ("tpl", "TemplateVM", None), ("net", "AppVM", "tpl"), ("work", "AppVM", "tpl"), ("dvm", "AppVM", "tpl"),
        ("other", "AppVM", "tpl"),
    ):
        create(made, klass, name, template)
    for name in ("dvm", "other"):
        made.qubes[name].set("template_for_dispvms", True)
    made.qubes["net"].set("provides_network", True)
    yield made


def create(system: System, klass: str, name: str, template: str | None = None, dispid: int | None = None) -> Qube:
    number = len(system.qubes)
    return creation.create(system, Birth(klass, name, "red", f"00000000-0000-4000-8000-{number:012x}", READY, template, dispid))


def test_qsb_047_a_disposables_disposables_come_from_its_own_template(system: System) -> None:
    """Never from the system's default, which may have more network."""
    disposable = create(system, "DispVM", "disp1", "dvm", 1)
    system.set("default_dispvm", "other")
    assert disposable.get("default_dispvm") == "dvm"
    assert system.qubes["work"].get("default_dispvm") == "other"
    system.set("default_dispvm", None)
    assert disposable.get("default_dispvm") == "dvm" and system.qubes["work"].get("default_dispvm") is None
    disposable.set("default_dispvm", None)
    assert disposable.get("default_dispvm") is None


def test_a_default_from_the_template_is_its_effective_value(system: System) -> None:
    work, template = system.qubes["work"], system.qubes["tpl"]
    system.set("default_kernel", "6.6.1")
    template.set("kernelopts", "a=b")
    assert work.get("kernelopts") == "a=b"
    template.set("memory", 700)
    assert (work.get("memory"), work.is_default("memory")) == (700, True)
    work.set("memory", 500)
    template.set("memory", 600)
    assert work.get("memory") == 500


def test_netvm_by_default_is_the_systems_but_for_templates(system: System) -> None:
    assert system.qubes["work"].get("netvm") is None
    system.qubes["net"].set("netvm", None)
    system.set("default_netvm", "net")
    assert system.qubes["work"].get("netvm") == "net" and system.qubes["tpl"].get("netvm") is None
    assert system.qubes["net"].get("netvm") is None


def test_addresses_only_with_a_network_and_by_number(system: System) -> None:
    work = system.qubes["work"]
    assert (work.get("ip"), work.get("dns"), work.get("visible_gateway"), work.get("visible_netmask")) == (None, None, None, None)
    work.set("netvm", "net")
    assert work.get("ip") == f"10.137.0.{work.qid}" and work.get("dns") == "10.139.1.1 10.139.1.2"
    net = system.qubes["net"]
    assert net.get("netvm") is None and work.get("visible_gateway") == net.get("ip") == f"10.137.0.{net.qid}"
    assert work.get("visible_netmask") == "255.255.255.255"
    assert (work.get("ip6"), work.get("gateway")) == (None, None)
    disposable = create(system, "DispVM", "disp1", "dvm", 7)
    disposable.set("netvm", "net")
    assert disposable.get("ip") == "10.138.0.7"
    system.qubes["net"].set_feature("ipv6", "1")
    assert work.get("ip6") == f"fd09:24ef:4179::a89:{work.qid:x}" and disposable.get("ip6") == "fd09:24ef:4179::a8a:7"
    assert work.get("visible_gateway6") == system.qubes["net"].get("visible_ip6")
    system.qubes["net"].set_feature("ipv6", "")
    assert work.get("ip6") is None and work.get("visible_gateway6") is None


def test_faked_addresses_are_what_the_qube_sees(system: System) -> None:
    work = system.qubes["work"]
    work.set("netvm", "net")
    for name, prop in (("ip", "visible_ip"), ("gateway", "visible_gateway"), ("netmask", "visible_netmask")):
        system.qubes["tpl"].set_feature(f"net.fake-{name}", "192.168.1.1")
        assert work.get(prop) == "192.168.1.1", "the template's counts"
        work.set_feature(f"net.fake-{name}", "192.168.1.2")
        assert work.get(prop) == "192.168.1.2"
    assert work.get("ip") == f"10.137.0.{work.qid}", "its own is another matter"


def test_icons_tell_kind_and_label(system: System) -> None:
    disposable = create(system, "DispVM", "disp1", "dvm", 1)
    assert [system.qubes[name].get("icon") for name in ("tpl", "work", "dvm")] == ["templatevm-red", "appvm-red", "templatevm-red"]
    assert disposable.get("icon") == "dispvm-red"
    assert system.qubes["net"].get("icon") == "servicevm-red"
    create(system, "StandaloneVM", "alone")
    assert system.qubes["alone"].get("icon") == "standalonevm-red"


def test_a_disposable_that_goes_by_itself_is_in_no_backup(system: System) -> None:
    disposable = create(system, "DispVM", "disp1", "dvm", 1)
    assert disposable.get("include_in_backups") is True
    disposable.set("auto_cleanup", True)
    assert disposable.get("include_in_backups") is False and system.qubes["work"].get("include_in_backups") is True


def test_the_keyboard_is_that_of_the_qube_that_shows_the_windows(system: System) -> None:
    work, net = system.qubes["work"], system.qubes["net"]
    assert work.get("keyboard_layout") == "us++"
    system.dom0.set("keyboard_layout", "de++")
    assert work.get("keyboard_layout") == "de++"
    net.set("keyboard_layout", "fr++")
    work.set("guivm", "net")
    assert work.get("keyboard_layout") == "fr++"
    net.set("guivm", "work")
    work.reset("keyboard_layout")
    assert work.get("keyboard_layout") == "fr++", "a loop ends"


def test_the_default_pool_holds_volumes(system: System) -> None:
    assert system.get("default_pool") == "varlibqubes" == system.get("default_pool_private")
    system.put_pool(Pool("default", "qcow2", {"dir_path": "/d"}))
    assert system.get("default_pool") == "default"
    for name in ("default", "varlibqubes"):
        system.drop_pool(name)
    with pytest.raises((Unset, CloisonError)):
        system.get("default_pool")


def test_boot_modes(system: System) -> None:
    work, template = system.qubes["work"], system.qubes["tpl"]
    assert work.get("bootmode") == "default" == template.get("appvm_default_bootmode")
    template.set_feature("boot-mode.kernelopts.safe", "single")
    template.set_feature("boot-mode.appvm-default", "safe")
    assert template.get("appvm_default_bootmode") == "safe" and work.get("bootmode") == "safe"
    work.set_feature("boot-mode.active", "unknown")
    assert work.get("bootmode") == "safe", "an unknown mode is none"
    work.set_feature("boot-mode.active", "default")
    assert work.get("bootmode") == "default"


def test_a_preloaded_disposable_is_one_on_its_templates_list(system: System) -> None:
    disposable = create(system, "DispVM", "disp1", "dvm", 1)
    assert disposable.get("is_preload") is False
    system.qubes["dvm"].features["preload-dispvm"] = "disp11 disp1"
    assert disposable.get("is_preload") is True
    system.qubes["dvm"].features["preload-dispvm"] = "disp11"
    assert disposable.get("is_preload") is False


def test_virtualisation_and_options_of_the_kernel(system: System) -> None:
    work = system.qubes["work"]
    assert work.get("virt_mode") == "pvh"
    system.set("default_kernel", "6.6.1")
    assert system.qubes["tpl"].get("kernelopts") == "swiotlb=2048"
    work.set("kernel", "")
    assert work.get("kernelopts") == ""
