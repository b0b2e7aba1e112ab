"""The default policy files: what they open, and that they open no part of the Admin API."""
from __future__ import annotations

import pytest
from tests.policy.support import default_files, entry, facts, reader, system_info

from cloison.admin.methods import ADMIN
from cloison.policy.evaluate import Allow, Ask, Deny, Request, evaluate
from cloison.policy.explain import verb_of
from cloison.policy.facts import facts_from_system_info
from cloison.policy.parse import parse
from cloison.policy.rules import Rules

SYSTEM = facts()
FILES = default_files()


def default_rules(**changes: str) -> Rules:
    return parse(reader({**FILES, **{f"include/{name.replace('_', '-')}": text for name, text in changes.items()}}))


RULES = default_rules()


@pytest.mark.parametrize(("service", "source", "target", "verb"), [
    ("qubes.Filecopy", "work", "vault", "ask"), ("qubes.Filecopy", "work", "dom0", "deny"),
    ("qubes.Filecopy", "dom0", "work", "deny"),
    ("qubes.VMShell", "work", "@dispvm", "allow"), ("qubes.VMShell", "work", "@dispvm:other-dvm", "deny"),
    ("qubes.VMShell", "work", "vault", "deny"),
    ("qubes.VMExec", "work", "@dispvm", "allow"), ("qubes.VMExecGUI", "work", "vault", "deny"),
    ("qubes.VMRootShell", "work", "@dispvm", "deny"),
    ("qubes.OpenURL", "work", "@dispvm", "allow"), ("qubes.OpenInVM", "work", "vault", "ask"),
    ("qubes.StartApp", "work", "vault", "ask"),
    ("qubes.GetImageRGBA", "work", "@dispvm", "allow"), ("qubes.GetDate", "work", "vault", "allow"),
    ("qubes.GetRandomizedTime", "work", "dom0", "allow"), ("qubes.NotifyTools", "work", "dom0", "allow"),
    ("qubes.FeaturesRequest", "work", "dom0", "allow"), ("qubes.SyncAppMenus", "work", "dom0", "allow"),
    ("qubes.NotifyUpdates", "work", "dom0", "allow"),
    ("qubes.ReceiveUpdates", "work", "dom0", "allow"), ("qubes.Notifications", "work", "@default", "allow"),
    ("qubes.Notifications", "work", "vault", "deny"),
    ("qubes.ConnectTCP", "work", "vault", "deny"), ("policy.RegisterArgument", "work", "dom0", "deny"),
    ("qubes.ClipboardPaste", "work", "vault", "ask"), ("qubes.ClipboardPaste", "dom0", "vault", "ask"),
    ("qubes.WindowIconUpdater", "work", "dom0", "allow"),
    ("qubes.UpdatesProxy", "work", "@default", "deny"), ("unheard.Of", "work", "vault", "deny"),
    ("policy.Replace", "work", "dom0", "deny"),
])
def test_what_is_open(service: str, source: str, target: str, verb: str) -> None:
    assert verb_of(evaluate(RULES, SYSTEM, Request(service, "+", source, target))) == verb


def test_time_and_updates() -> None:
    info = system_info()
    info["domains"] |= {
        "anon": entry(20, tags=["anon-vm"]), "whonix": entry(21, tags=["whonix-updatevm"], type="TemplateVM"),
        "sys-net": entry(22), "sys-whonix": entry(23),
    }
    system = facts_from_system_info(info)

    def outcome(service: str, source: str, target: str) -> str | None:
        decision = evaluate(RULES, system, Request(service, "+", source, target))
        return decision.target if isinstance(decision, Allow) else None

    assert outcome("qubes.GetDate", "work", "vault") == "dom0"
    assert outcome("qubes.GetDate", "anon", "vault") is None
    assert outcome("qubes.UpdatesProxy", "debian", "@default") == "sys-net"
    assert outcome("qubes.UpdatesProxy", "whonix", "@default") == "sys-whonix"
    assert outcome("qubes.UpdatesProxy", "whonix", "sys-net") is None


def methods() -> list[str]:
    return [name for name in ADMIN if name.startswith("admin.")]


@pytest.mark.parametrize("source", ["work", "debian", "far"])
def test_no_qube_administers_by_default(source: str) -> None:
    for method in methods():
        for target in ("dom0", "vault", "@adminvm", "@default", "@dispvm", "work"):
            assert isinstance(evaluate(RULES, SYSTEM, Request(method, "+", source, target)), Deny), method


def test_an_expected_refusal_is_silent() -> None:
    assert not evaluate(RULES, SYSTEM, Request("admin.vm.property.GetAll", "+", "work", "vault")).notify
    assert evaluate(RULES, SYSTEM, Request("admin.vm.property.Get", "+", "work", "vault")).notify


@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_method_can_be_opened_in_the_file_of_its_scope(scope: str) -> None:
    line = "work @adminvm allow target=dom0\nwork @anyvm allow target=dom0\n"
    writers = default_rules(**{f"admin_{scope}_rwx": line})
    readers = default_rules(**{f"admin_{scope}_ro": line})
    for method in methods():
        inside = ADMIN[method].scope[0] == scope[0]
        asked = Request(method, "+", "work", "dom0")
        assert isinstance(evaluate(writers, SYSTEM, asked), Allow) is inside, method
        assert isinstance(evaluate(readers, SYSTEM, asked), Allow) is (inside and ADMIN[method].scope[1] == "r"), method


def test_a_restore_touches_only_what_it_has_made() -> None:
    info = system_info()
    info["domains"] |= {
        "restorer": entry(20, tags=["backup-restore-mgmt"]),
        "new": entry(21, tags=["backup-restore-in-progress"]),
        "disk": entry(22, tags=["backup-restore-storage"]),
    }
    system = facts_from_system_info(info)

    def allowed(service: str, target: str, source: str = "restorer", argument: str = "+") -> bool:
        return isinstance(evaluate(RULES, system, Request(service, argument, source, target)), Allow)

    assert allowed("admin.vm.Create.AppVM", "dom0") and allowed("admin.vm.List", "dom0")
    assert allowed("qubes.RestoreById", "disk")
    assert allowed("admin.vm.property.Get", "work", argument="+provides_network")
    for method in ("admin.vm.property.Set", "admin.vm.volume.Import", "admin.vm.tag.Set", "admin.vm.firewall.Set"):
        assert allowed(method, "new")
        assert not allowed(method, "work") and not allowed(method, "new", source="work") and not allowed(method, "dom0")
    assert not allowed("admin.vm.property.Get", "work", argument="+name") and not allowed("qubes.RestoreById", "work")


def test_nothing_asks_about_the_host() -> None:
    for service in {rule.service for rule in RULES.all}:
        decision = evaluate(RULES, SYSTEM, Request(service, "+", "work", "vault"))
        if isinstance(decision, Ask):
            assert "dom0" not in decision.targets
