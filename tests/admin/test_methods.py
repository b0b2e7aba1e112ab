"""The table of calls against the reference's counts, and each rule at its edges."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.admin.dispatch import route
from cloison.admin.methods import ADMIN, INTERNAL, MISC, SOCKETS, Method
from cloison.daemon.fake import FakeHost, ask, fake_app
from cloison.errors import BadRequest
from cloison.model.creation import Birth, create
from cloison.model.domains import READY, System
from cloison.model.labels import Label
from cloison.model.qubes import new_system
from cloison.wire.admin import Request

EVERY = [pytest.param(method, id=method.name) for methods in SOCKETS.values() for method in methods.values()]


def system() -> System:
    made = new_system(FakeHost())
    made.labels["red"] = Label(1, "0xcc0000", "red")
    create(made, Birth("RemoteVM", "rem", "red", "00000000-0000-4000-8000-000000000001", READY))
    return made


def test_all_114_calls_of_the_reference_are_there() -> None:
    added = [name for name in ADMIN if name.startswith(("admin.vm.device.usb.", "admin.vm.device.mic."))]
    assert len(added) == 16                  # what the reference has with its add-ons
    assert len([name for name in ADMIN if name.startswith("admin.") and name not in added]) == 106
    assert len([name for name in INTERNAL if not name.startswith("internal.cloison.")]) == 5
    assert len(MISC) == 3


def test_the_table_is_the_reviewed_one(golden: Callable[[str, str], None]) -> None:
    """Who may ask what decides what default policy lets through: a change is a decision, made in the golden file."""
    table = {name: f"{method.rule} {method.scope}" for methods in SOCKETS.values() for name, method in methods.items()}
    golden("admin-methods.json", json.dumps(table, indent=1) + "\n")


@pytest.mark.parametrize("method", EVERY)
def test_presence_and_destination_are_checked_first(method: Method) -> None:
    made = system()
    dest, argument, payload = tuple(method.rule)
    good = Request(method.name, "x" if argument == "R" else "", "dom0", "name", "rem" if dest == "V" else "dom0",
                   b"x" if payload == "R" else b"")
    route(made, {method.name: method}, good)
    wrong = []
    if dest in "0V":
        wrong.append(good._replace(dest="dom0" if dest == "V" else "rem"))
    if argument in "-R":
        wrong.append(good._replace(argument="x" if argument == "-" else ""))
    if payload in "-R":
        wrong.append(good._replace(payload=b"x" if payload == "-" else b""))
    for request in [*wrong, good._replace(argument="\ufffd")]:
        with pytest.raises(BadRequest):
            route(made, {method.name: method}, request)


LENGTHS = (
    # call, argument, payload, failure
    ("admin.vm.Create.TemplateVM", "", "name= label=red", "QubesValueError"),
    ("admin.vm.Create.TemplateVM", "", "name=a label=red", ""),
    ("admin.vm.Create.TemplateVM", "", f"name={'a' * 31} label=red", ""),
    ("admin.vm.Create.TemplateVM", "", f"name={'a' * 32} label=red", "QubesValueError"),
    ("admin.label.Create", "p", "0xff00aa", ""),
    ("admin.label.Create", "p" * 64, "0xff00aa", ""),
    ("admin.label.Create", "p" * 65, "0xff00aa", "QubesInvalidLabelError"),
    ("admin.label.Create", "q", "0xff00a", "QubesInvalidLabelValueError"),
    ("admin.label.Create", "q", "0xff00aaa", "QubesInvalidLabelValueError"),
    ("admin.vm.tag.Set", "t", "", ""),
    ("admin.vm.tag.Set", "t" * 256, "", ""),
    ("admin.vm.tag.Set", "t" * 257, "", "QubesInvalidTagError"),
    ("admin.vm.feature.Set", "f" * 256, "", ""),
    ("admin.vm.feature.Set", "f" * 257, "", "ProtocolError"),
    ("admin.vm.feature.Set", "service.", "", "QubesValueError"),
    ("admin.vm.feature.Set", "service." + "s" * 48, "1", ""),
    ("admin.vm.feature.Set", "service." + "s" * 49, "1", "QubesValueError"),
    ("admin.vm.feature.Set", "vm-config.x" + "s" * 51, "1", ""),
    ("admin.vm.feature.Set", "vm-config.x" + "s" * 52, "1", "QubesValueError"),
    ("admin.vm.feature.Set", "custom-persist." + "s" * 54, "/a", ""),
    ("admin.vm.feature.Set", "custom-persist." + "s" * 55, "/a", "QubesValueError"),
    ("admin.vm.feature.Set", "f", "\x7f", "ProtocolError"),
    ("admin.vm.feature.Set", "preload-dispvm", "x", "PermissionDenied"),
    ("admin.pool.Set.revisions_to_keep", "varlibqubes", "9" * 20, "ProtocolError"),
    ("admin.pool.Set.revisions_to_keep", "varlibqubes", "01", "ProtocolError"),
    ("admin.pool.Set.revisions_to_keep", "varlibqubes", "-2", "ProtocolError"),
    ("admin.pool.Set.revisions_to_keep", "varlibqubes", "-1", ""),
    ("admin.pool.Info", "x" * 64, "", "PermissionDenied"),
)


def test_lesson_16_each_field_at_its_lengths(tmp_path: Path) -> None:
    """QSB-089: 0, 1, the most, and one more, for the fields with a length of their own."""

    async def run() -> None:
        app = await fake_app(str(tmp_path))
        for method, argument, payload, failure in LENGTHS:
            answer = await ask(app, method, "dom0", argument, payload)
            assert answer.failure == failure, (method, argument[:20], payload[:40], answer)
        app.parts.store.close()

    asyncio.run(run())


def test_a_refused_feature_is_not_kept(tmp_path: Path) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        assert (await ask(app, "admin.vm.feature.Set", "dom0", "custom-persist.x", "relative")).failure == "QubesValueError"
        assert (await ask(app, "admin.vm.feature.Get", "dom0", "custom-persist.x")).failure == "QubesFeatureNotFoundError"
        app.parts.store.close()

    asyncio.run(run())


def test_a_qube_sees_what_policy_lets_it(tmp_path: Path) -> None:
    """No policy, a broken one, or a question: nothing is seen. A rule that allows shows that qube, at once."""

    async def run() -> None:
        app = await fake_app(str(tmp_path))
        for name in ("tpl", "mgmt", "other"):
            await ask(app, "admin.vm.Create.TemplateVM", "dom0", "", f"name={name} label=black")
        heard: list[tuple[str, str]] = []
        app.listen(app.system.qube("mgmt"), None, lambda subject, name, _: heard.append((subject, name)))
        folder = tmp_path / "config" / "policy.d"
        for rules, seen in (("", []), ("admin.vm.List * mgmt tpl allow\n", ["tpl"]),
                            ("admin.vm.List * mgmt @anyvm ask\n", []), ("what?\n", []),
                            ("admin.vm.List * mgmt @anyvm allow\nadmin.Events +domain-tag-add_x mgmt tpl allow\n",
                             ["mgmt", "other", "tpl"])):
            (folder / "10-test.policy").write_text(rules)
            answer = await ask(app, "admin.vm.List", "dom0", source="mgmt")
            assert [line.split()[0] for line in answer.content.splitlines()] == seen, rules
        for qube, tag in (("tpl", "x"), ("tpl", "y"), ("other", "x")):
            await ask(app, "admin.vm.tag.Set", qube, tag)
        assert heard == [("tpl", "domain-tag-add:x")]
        app.visibility.close()
        app.parts.store.close()

    asyncio.run(run())


def test_system_info_has_the_facts_of_every_qube(tmp_path: Path) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        await ask(app, "admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black")
        answer = await ask(app, "internal.GetSystemInfo", socket="qubesd.internal.sock")
        domains = json.loads(answer.content)["domains"]
        uuid = app.system.qube("tpl").uuid
        assert domains["tpl"] == {
            "tags": ["audiovm-dom0", "created-by-dom0", "guivm-dom0"], "type": "TemplateVM", "template_for_dispvms": False,
            "default_dispvm": None, "icon": "appvm-black", "label": "0x000000", "guivm": "dom0", "relayvm": None,
            "transport_rpc": None, "internal": None, "power_state": "Halted", "uuid": uuid}
        assert set(domains) == {"dom0", "tpl"}
        app.parts.store.close()

    asyncio.run(run())
