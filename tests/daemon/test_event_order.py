"""Events with their arguments, in the order that Qubes OS sends them (reference/admin-api.md 10)."""
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloison.daemon.app import App
from cloison.daemon.fake import ask, fake_app

Heard = list[tuple[str, str, dict[str, str]]]


async def furnished(tmp_path: Path) -> App:
    app = await fake_app(str(tmp_path))
    for call in (
        ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"),
        ("admin.property.Set", "dom0", "default_template", "tpl"),
        ("admin.vm.Create.AppVM", "dom0", "", "name=sys-net label=red"),
        ("admin.vm.property.Set", "sys-net", "netvm", ""),
        ("admin.vm.property.Set", "sys-net", "provides_network", "True"),
        ("admin.vm.Create.AppVM", "dom0", "", "name=dvm label=red"),
        ("admin.vm.property.Set", "dvm", "template_for_dispvms", "True"),
        ("admin.vm.Create.AppVM", "dom0", "", "name=work label=blue"),
        ("admin.vm.property.Set", "dvm", "netvm", ""),
    ):
        answer = await ask(app, *call)
        assert not answer.failure, (call, answer)
    return app


def heard_of(tmp_path: Path, before: list[tuple[str, ...]], call: tuple[str, ...]) -> Heard:
    """What a listener in dom0 hears while the call is made."""
    async def run() -> Heard:
        app = await furnished(tmp_path)
        for step in before:
            assert not (await ask(app, *step)).failure, step
        heard: Heard = []
        app.listen(app.system.dom0, None, lambda subject, name, pairs: heard.append((subject, name, dict(pairs))))
        answer = await ask(app, *call)
        assert not answer.failure, answer
        app.parts.store.close()
        return heard

    return asyncio.run(run())


def change(prop: str, new: str, old: str | None) -> dict[str, str]:
    return {"name": prop, "newvalue": new} | ({} if old is None else {"oldvalue": old})


NETVM = ("admin.vm.property.Set", "work", "netvm", "sys-net")
CASES: list[tuple[str, list[tuple[str, ...]], tuple[str, ...], Heard]] = [
    ("set", [], ("admin.vm.property.Set", "work", "memory", "500"), [
        ("work", "property-pre-set:memory", change("memory", "500", "400")),
        ("work", "property-set:memory", change("memory", "500", "400"))]),
    ("set to the same", [], ("admin.vm.property.Set", "work", "memory", "400"), [
        ("work", "property-pre-set:memory", change("memory", "400", "400")),
        ("work", "property-set:memory", change("memory", "400", "400"))]),
    ("reset", [], ("admin.vm.property.Reset", "work", "memory"), [
        ("work", f"property-{event}:memory", {"name": "memory", "oldvalue": "400"})
        for event in ("pre-reset", "pre-del", "reset", "del")]),
    ("a template's value reaches its qubes", [("admin.vm.property.Set", "work", "vcpus", "3")],
     ("admin.vm.property.Set", "tpl", "vcpus", "4"), [
        ("tpl", "property-pre-set:vcpus", change("vcpus", "4", "2")),
        ("dvm", "property-reset:vcpus", {"name": "vcpus"}), ("sys-net", "property-reset:vcpus", {"name": "vcpus"}),
        ("tpl", "property-set:vcpus", change("vcpus", "4", "2"))]),
    ("a template for disposables says nothing to them", [("admin.vm.Create.DispVM", "dom0", "dvm", "name=d label=red")],
     ("admin.vm.property.Set", "dvm", "vcpus", "4"), [
        ("dvm", "property-pre-set:vcpus", change("vcpus", "4", "2")), ("dvm", "property-set:vcpus", change("vcpus", "4", "2"))]),
    ("a template's same value reaches nobody", [], ("admin.vm.property.Set", "tpl", "vcpus", "2"), [
        ("tpl", "property-pre-set:vcpus", change("vcpus", "2", "2")), ("tpl", "property-set:vcpus", change("vcpus", "2", "2"))]),
    ("netvm", [], NETVM, [
        ("work", "property-pre-set:netvm", change("netvm", "sys-net", "None")),
        ("work", "property-set:netvm", change("netvm", "sys-net", "None"))]),
    ("netvm reset", [NETVM], ("admin.vm.property.Reset", "work", "netvm"), [
        ("work", "property-pre-reset:netvm", {"name": "netvm", "oldvalue": "sys-net"}),
        ("work", "property-pre-set:netvm", change("netvm", "None", "sys-net")),
        ("work", "property-pre-del:netvm", {"name": "netvm", "oldvalue": "sys-net"}),
        ("work", "property-set:netvm", change("netvm", "None", "sys-net")),
        ("work", "property-reset:netvm", {"name": "netvm", "oldvalue": "sys-net"}),
        ("work", "property-del:netvm", {"name": "netvm", "oldvalue": "sys-net"})]),
    ("default_netvm", [], ("admin.property.Set", "dom0", "default_netvm", "sys-net"), [
        ("", "property-pre-set:default_netvm", change("default_netvm", "sys-net", "None")),
        ("tpl", "property-pre-set:netvm", change("netvm", "sys-net", "None")),
        ("work", "property-pre-set:netvm", change("netvm", "sys-net", "None")),
        ("tpl", "property-reset:netvm", {"name": "netvm", "oldvalue": "None"}),
        ("work", "property-set:netvm", change("netvm", "sys-net", "None")),
        ("work", "property-reset:netvm", {"name": "netvm", "oldvalue": "None"}),
        ("", "property-set:default_netvm", change("default_netvm", "sys-net", "None"))]),
    ("label", [], ("admin.vm.property.Set", "work", "label", "green"), [
        ("work", "property-pre-set:label", change("label", "green", "blue")),
        ("work", "property-reset:icon", {"name": "icon"}),
        ("work", "property-set:label", change("label", "green", "blue"))]),
    ("provides_network", [], ("admin.vm.property.Set", "work", "provides_network", "True"), [
        ("work", "property-pre-set:provides_network", change("provides_network", "True", "False")),
        ("work", "domain-feature-pre-set:servicevm", {"feature": "servicevm", "value": "1"}),
        ("work", "domain-feature-set:servicevm", {"feature": "servicevm", "value": "1"}),
        ("work", "property-reset:icon", {"name": "icon"}),
        ("work", "property-reset:gateway", {"name": "gateway"}),
        ("work", "property-reset:gateway6", {"name": "gateway6"}),
        ("work", "property-set:provides_network", change("provides_network", "True", "False"))]),
    ("the address of a provider", [NETVM], ("admin.vm.property.Set", "sys-net", "ip", "10.0.0.1"), [
        ("sys-net", "property-pre-set:ip", change("ip", "10.0.0.1", "10.137.0.2")),
        ("sys-net", "property-reset:gateway", {"name": "gateway"}),
        ("sys-net", "property-reset:visible_ip", {"name": "visible_ip"}),
        ("work", "property-reset:visible_gateway", {"name": "visible_gateway"}),
        ("sys-net", "property-set:ip", change("ip", "10.0.0.1", "10.137.0.2"))]),
    ("guivm", [], ("admin.vm.property.Set", "work", "guivm", ""), [
        ("work", "property-pre-set:guivm", change("guivm", "None", "dom0")),
        ("work", "domain-tag-delete:guivm-dom0", {"tag": "guivm-dom0"}),
        ("work", "property-set:guivm", change("guivm", "None", "dom0"))]),
    ("the keyboard of a guivm", [("admin.vm.property.Set", name, "guivm", "") for name in ("tpl", "sys-net", "dvm")],
     ("admin.vm.property.Set", "dom0", "keyboard_layout", "de++"), [
        ("dom0", "property-pre-set:keyboard_layout", change("keyboard_layout", "de++", "us++")),
        ("work", "property-reset:keyboard_layout", {"name": "keyboard_layout", "oldvalue": "us++"}),
        ("dom0", "property-set:keyboard_layout", change("keyboard_layout", "de++", "us++"))]),
    ("feature", [("admin.vm.feature.Set", "work", "x", "1")], ("admin.vm.feature.Set", "work", "x", ""), [
        ("work", f"domain-feature-{event}:x", {"feature": "x", "value": "", "oldvalue": "1"}) for event in ("pre-set", "set")]),
    ("feature removed", [("admin.vm.feature.Set", "work", "x", "1")], ("admin.vm.feature.Remove", "work", "x"), [
        ("work", f"domain-feature-{event}:x", {"feature": "x"}) for event in ("pre-delete", "delete")]),
    ("active boot mode", [], ("admin.vm.feature.Set", "work", "boot-mode.active", "default"), [
        ("work", "domain-feature-pre-set:boot-mode.active", {"feature": "boot-mode.active", "value": "default"}),
        ("work", "property-reset:bootmode", {"name": "bootmode"}),
        ("work", "domain-feature-set:boot-mode.active", {"feature": "boot-mode.active", "value": "default"})]),
    ("a template's default boot mode", [], ("admin.vm.property.Set", "tpl", "appvm_default_bootmode", "m"), [
        ("tpl", "property-pre-set:appvm_default_bootmode", change("appvm_default_bootmode", "m", "default")),
        *((name, "property-reset:bootmode", {"name": "bootmode"}) for name in ("dvm", "sys-net", "work")),
        ("tpl", "property-set:appvm_default_bootmode", change("appvm_default_bootmode", "m", "default"))]),
    ("a boot mode's name", [], ("admin.vm.feature.Set", "tpl", "boot-mode.name.m", "M"), [
        ("tpl", f"domain-feature-{event}:boot-mode.name.m", {"feature": "boot-mode.name.m", "value": "M"})
        for event in ("pre-set", "set")]),
    ("memory balancing as a service", [], ("admin.vm.feature.Set", "work", "service.meminfo-writer", ""), [
        ("work", "domain-feature-pre-set:service.meminfo-writer", {"feature": "service.meminfo-writer", "value": ""}),
        *(("work", f"property-{event}:maxmem", change("maxmem", "0", "0")) for event in ("pre-set", "set")),
        *(("work", f"domain-feature-{event}:service.meminfo-writer", {"feature": "service.meminfo-writer"})
          for event in ("pre-delete", "delete")),
        ("work", "domain-feature-set:service.meminfo-writer", {"feature": "service.meminfo-writer", "value": ""})]),
    ("what a management qube asks for", [("admin.vm.feature.Set", "sys-net", "tag-created-vm-with", "t no/tag created-by-x"),
                                         ("admin.vm.feature.Set", "sys-net", "set-created-guivm", "dvm")],
     ("admin.vm.tag.Set", "work", "created-by-sys-net"), [
        ("work", "domain-tag-add:t", {"tag": "t"}),
        ("work", "property-pre-set:guivm", change("guivm", "dvm", "dom0")),
        ("work", "domain-tag-delete:guivm-dom0", {"tag": "guivm-dom0"}), ("work", "domain-tag-add:guivm-dvm", {"tag": "guivm-dvm"}),
        ("work", "property-set:guivm", change("guivm", "dvm", "dom0")),
        ("work", "domain-tag-add:created-by-sys-net", {"tag": "created-by-sys-net"})]),
    ("tag that is there", [("admin.vm.tag.Set", "work", "x")], ("admin.vm.tag.Set", "work", "x"), []),
    ("clockvm", [], ("admin.property.Set", "dom0", "clockvm", "sys-net"), [
        ("", "property-pre-set:clockvm", change("clockvm", "sys-net", "None")),
        ("sys-net", "domain-feature-pre-set:service.clocksync", {"feature": "service.clocksync", "value": "1"}),
        ("sys-net", "domain-feature-set:service.clocksync", {"feature": "service.clocksync", "value": "1"}),
        ("", "property-set:clockvm", change("clockvm", "sys-net", "None"))]),
    ("another clockvm", [("admin.property.Set", "dom0", "clockvm", "sys-net")], ("admin.property.Set", "dom0", "clockvm", "work"), [
        ("", "property-pre-set:clockvm", change("clockvm", "work", "sys-net")),
        ("work", "domain-feature-pre-set:service.clocksync", {"feature": "service.clocksync", "value": "1"}),
        ("work", "domain-feature-set:service.clocksync", {"feature": "service.clocksync", "value": "1"}),
        ("sys-net", "domain-feature-pre-delete:service.clocksync", {"feature": "service.clocksync"}),
        ("sys-net", "domain-feature-delete:service.clocksync", {"feature": "service.clocksync"}),
        ("", "property-set:clockvm", change("clockvm", "work", "sys-net"))]),
    ("label of a RemoteVM", [("admin.vm.Create.RemoteVM", "dom0", "", "name=rem label=red")],
     ("admin.vm.property.Set", "rem", "label", "blue"), [
        ("rem", f"property-{event}:label", change("label", "blue", "red")) for event in ("pre-set", "set")]),
    ("firewall", [], ("admin.vm.firewall.Set", "work", "", "action=drop"), [("work", "firewall-changed", {})]),
    ("firewall reload", [], ("admin.vm.firewall.Reload", "work"), [("work", "firewall-changed", {})]),
    ("notes are silent", [], ("admin.vm.notes.Set", "work", "", "x"), []),
    ("assign", [], ("admin.vm.device.block.Assign", "work", "dom0+sda+_", "mode='auto-attach' _read-only='yes'"), [
        ("work", f"device-{event}:block", {"device": "dom0:sda:*", "options": "{'read-only': 'yes'}"})
        for event in ("pre-assign", "assign")]),
    ("unassign", [("admin.vm.device.block.Assign", "work", "dom0+sda+_", "mode='required'")],
     ("admin.vm.device.block.Unassign", "work", "dom0+sda+_"), [("work", "device-unassign:block", {"device": "dom0:sda:*"})]),
    ("create", [], ("admin.vm.Create.AppVM", "dom0", "", "name=new label=red"), [
        ("", "domain-add", {"vm": "new"}), ("new", "domain-tag-add:created-by-dom0", {"tag": "created-by-dom0"}),
        ("new", "domain-create-on-disk", {})]),
    ("create a RemoteVM", [], ("admin.vm.Create.RemoteVM", "dom0", "", "name=new label=red"), [
        ("", "domain-add", {"vm": "new"}), ("new", "domain-tag-add:created-by-dom0", {"tag": "created-by-dom0"})]),
    ("template", [("admin.vm.Create.TemplateVM", "dom0", "", "name=other label=black")],
     ("admin.vm.property.Set", "work", "template", "other"), [
        ("work", f"property-{event}:template", change("template", "other", "tpl")) for event in ("pre-set", "set")]),
    ("remove", [], ("admin.vm.Remove", "work"), [("", "domain-pre-delete", {"vm": "work"}), ("", "domain-delete", {"vm": "work"})]),
    ("pause", [("admin.vm.Start", "work")], ("admin.vm.Pause", "work"), [
        ("work", "domain-pre-paused", {}), ("work", "domain-paused", {})]),
    ("unpause", [("admin.vm.Start", "work"), ("admin.vm.Pause", "work")], ("admin.vm.Unpause", "work"), [
        ("work", "domain-pre-unpaused", {}), ("work", "domain-unpaused", {})]),
    ("start", [], ("admin.vm.Start", "work"), [
        ("work", "domain-pre-start", {"start_guid": "True", "mem_required": "None"}), ("work", "domain-verify-files", {}),
        ("work", "domain-pre-spawn", {"start_guid": "True"}),
        *(("work", f"property-reset:{name}", {"name": name}) for name in ("xid", "stubdom_xid", "start_time")),
        ("work", "domain-spawn", {"start_guid": "True"}), ("work", "domain-qdb-create", {}), ("work", "domain-pre-unpaused", {}),
        ("work", "domain-unpaused", {}), ("work", "domain-start", {"start_guid": "True"})]),
    ("netvm of a running qube", [("admin.vm.Start", "work"), ("admin.vm.Start", "sys-net")], NETVM, [
        ("work", "property-pre-set:netvm", change("netvm", "sys-net", "None")),
        ("work", "domain-qdb-create", {}), ("sys-net", "net-domain-connect", {"vm": "work"}),
        ("work", "property-set:netvm", change("netvm", "sys-net", "None"))]),
    ("shutdown", [("admin.vm.Start", "work")], ("admin.vm.Shutdown", "work", "wait+force"), [
        ("work", "domain-pre-shutdown", {"force": "True"}), ("work", "domain-stopped", {}),
        *(("work", f"property-reset:{name}", {"name": name}) for name in ("xid", "stubdom_xid", "start_time")),
        ("work", "domain-shutdown", {})]),
]


@pytest.mark.parametrize(("before", "call", "wanted"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_events(tmp_path: Path, before: list[tuple[str, ...]], call: tuple[str, ...], wanted: Heard) -> None:
    assert heard_of(tmp_path, before, call) == wanted


def test_a_disposable_is_on_disk_before_it_says_whose_it_is(tmp_path: Path) -> None:
    heard = heard_of(tmp_path, [("admin.vm.tag.Remove", "dvm", "created-by-dom0")], ("admin.vm.CreateDisposable", "dvm"))
    name = heard[0][2]["vm"]
    assert heard == [
        ("", "domain-add", {"vm": name}), (name, "domain-create-on-disk", {}),
        (name, "domain-tag-add:created-by-dom0", {"tag": "created-by-dom0"}),
        (name, "domain-tag-add:disp-created-by-dom0", {"tag": "disp-created-by-dom0"})]


@pytest.mark.parametrize(("before", "begun"), [
    (("admin.vm.feature.Set", "work", "prohibit-start", "why not"), False),
    (("admin.vm.tag.Set", "work", "backup-restore-in-progress"), True),
])
def test_a_start_that_is_refused_is_told(tmp_path: Path, before: tuple[str, ...], begun: bool) -> None:
    async def run() -> list[tuple[str, str]]:
        app = await furnished(tmp_path)
        await ask(app, *before)
        heard: list[tuple[str, str]] = []
        app.listen(app.system.dom0, None, lambda subject, name, _: heard.append((subject, name)))
        assert (await ask(app, "admin.vm.Start", "work")).failure
        app.parts.store.close()
        return heard

    assert asyncio.run(run()) == [("work", "domain-pre-start")] * begun + [("work", "domain-start-failed")]


def test_default_dispvm_is_announced_to_all_that_use_it(tmp_path: Path) -> None:
    heard = heard_of(tmp_path, [], ("admin.property.Set", "dom0", "default_dispvm", "dvm"))
    assert heard[0][1] == "property-pre-set:default_dispvm"
    assert heard[-1] == ("", "property-set:default_dispvm", change("default_dispvm", "dvm", "None"))
    between = heard[1:-1]
    assert {subject for subject, _, _ in between} == {"dom0", "tpl", "sys-net", "dvm", "work"}
    assert {name for _, name, _ in between} == {"property-reset:default_dispvm"}


def test_default_guivm_moves_the_tags_before_it_tells(tmp_path: Path) -> None:
    heard = heard_of(tmp_path, [], ("admin.property.Set", "dom0", "default_guivm", "sys-net"))
    of_work = [(name, pairs) for subject, name, pairs in heard if subject == "work"]
    assert of_work[:3] == [
        ("domain-tag-delete:guivm-dom0", {"tag": "guivm-dom0"}), ("domain-tag-add:guivm-sys-net", {"tag": "guivm-sys-net"}),
        ("property-set:guivm", change("guivm", "sys-net", "dom0"))]
