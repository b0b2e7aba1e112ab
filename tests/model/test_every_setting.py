"""Every property of every class of qube and of the system: its default, what it takes and refuses, what changes with it, its
reset; then features, tags and what keeps a qube from being removed. `tests/golden/settings/NAME.txt`, one line an effect.

A change of a golden file is a change of what a setting does: read the diff with care (`pytest --regenerate`).
"""
from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.daemon.recorder import Recorder, recorder

from cloison.daemon.fake import close_app
from cloison.model.properties import Property

VALUES = {
    "bool": ("True", "off", "maybe"),
    "int": ("0", "1", "-1", "700", "9999999999999999999", "x"),
    "vm": ("", "net", "dvm", "work", "dom0", "absent", "../x"),
    "label": ("green", "8", "puce"),
    "str": ("", "a", "two words", "0" * 40, "de++", "10.0.0.9", "fd09::9", "\x01"),
}
SUBJECTS = {"AppVM": "work", "TemplateVM": "tpl", "StandaloneVM": "alone", "DispVM": "named", "RemoteVM": "far", "AdminVM": "dom0"}
Walk = Callable[[Recorder], Awaitable[str]]


async def walk_properties(r: Recorder, calls: str, subject: str, properties: dict[str, Property]) -> dict[str, str]:
    """Property -> all that was answered and done."""
    return {name: await walk_property(r, calls, subject, name, prop) for name, prop in properties.items()}


async def walk_property(r: Recorder, calls: str, subject: str, name: str, prop: Property) -> str:
    r.lines.clear()
    await ask_for(r, calls, subject, name)
    for value in VALUES[prop.type]:
        before = len(r.lines)
        answer = await r.quietly(f"{calls}.Set", subject, name, value)
        r.lines.insert(before, f"-- {value!r} {answer}")
    await ask_for(r, calls, subject, name)
    before = len(r.lines)
    r.lines.insert(before, f"-- reset {await r.quietly(f'{calls}.Reset', subject, name)}")
    await ask_for(r, calls, subject, name)

    return "\n".join(r.lines)


async def ask_for(r: Recorder, calls: str, subject: str, name: str) -> None:
    default = await r.quietly(f"{calls}.GetDefault", subject, name)
    r.note(f"is {await r.quietly(f'{calls}.Get', subject, name)}; default {default}")


def test_the_properties_of_each_class_of_qube(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    """What is as with another class is said so."""
    first: dict[str, str] = {}          # a property's text -> the class that had it first

    for klass, subject in SUBJECTS.items():
        async def walk(r: Recorder, subject: str = subject) -> str:
            qube = r.app.system.qube(subject)
            found = await walk_properties(r, "admin.vm.property", subject, dict(qube.properties))
            return "".join(f"== {name}{described(text, subject, qube.qid)}\n" for name, text in found.items())

        def described(text: str, subject: str, qid: int, klass: str = klass) -> str:
            text = re.sub(rf"\b{subject}\b", "IT", text).replace(f" {qid} ", " QID ")
            other = first.setdefault(text, klass)
            return f"\n{text}\n" if other == klass else f": as of {other}"

        golden(f"settings/{klass}.txt", walked(tmp_path / klass, walk))


def test_the_properties_of_the_system(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    async def walk(r: Recorder) -> str:
        found = await walk_properties(r, "admin.property", "dom0", dict(r.app.system.properties))
        return "".join(f"== {name}\n{text}\n\n" for name, text in found.items())

    golden("settings/system.txt", walked(tmp_path, walk))


def test_features_and_tags(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    async def walk(r: Recorder) -> str:
        for name, value in (
            ("x", "1"), ("x", ""), ("service.cups", "1"), ("service." + "a" * 49, "1"), ("service.", "1"), ("service...", "1"),
            ("service.a", ""), ("vm-config.a", "1"), ("vm-config.1", "1"),
            ("vm-config." + "a" * 53, "1"), ("vm-config." + "a" * 52, "1"),
            ("custom-persist.a", "/a"), ("custom-persist.a", "a"), ("custom-persist.a", "dir:user:user:0755:/a"),
            ("custom-persist." + "a" * 55, "/a"), ("a" * 256, "1"), ("a" * 257, "1"), ("b c", "1"), ("internal", "1"),
            ("prohibit-start", "no"), ("boot-mode.active", "m"), ("boot-mode.active", "default"), ("boot-mode.name.m", "M"),
            ("preload-dispvm-max", "x"), ("preload-dispvm-max", "0"), ("preload-dispvm-threshold", "x"), ("preload-dispvm", "a"),
            ("preload-dispvm-delay", "86401"), ("preload-dispvm-delay", "86400"), ("deferred-netvm-original", "net"),
            ("menu-items", "a b"), ("tag-created-vm-with", "t"), ("set-created-guivm", "net"),
        ):
            for subject in ("work", "dvm", "dom0", "far"):
                await r.step("admin.vm.feature.Set", subject, name, value)
        for check in ("CheckWithTemplate", "CheckWithNetvm", "CheckWithAdminVM", "CheckWithTemplateAndAdminVM", "Get"):
            for name in ("x", "internal", "absent", "servicevm"):
                await r.step(f"admin.vm.feature.{check}", "work", name)
        for subject in ("work", "dom0", "far"):
            await r.step("admin.vm.feature.List", subject)
            await r.step("admin.vm.feature.Remove", subject, "x")
            await r.step("admin.vm.feature.Remove", subject, "x")
            for tag in ("mine", "a" * 256, "a" * 257, "b c", "created-by-work", "guivm-net", "disp-created-by-dom0"):
                for call in ("Set", "Get", "Remove", "Get"):
                    await r.step(f"admin.vm.tag.{call}", subject, tag)
        return re.sub("a{40,}", lambda found: f"a*{len(found[0])}", "\n".join(r.lines)) + "\n"

    golden("settings/features-and-tags.txt", walked(tmp_path, walk))


def test_what_points_to_a_qube_keeps_it(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    """Each reference of each class, set to `net` alone: whether `net` can be removed is asked by trying."""
    async def walk(r: Recorder) -> str:
        found = []
        await r.quietly("admin.vm.property.Set", "user", "netvm", "")
        await r.quietly("admin.vm.property.Set", "net", "template_for_dispvms", "True")
        for klass, name in [("", "dom0"), *sorted(SUBJECTS.items(), key=lambda each: each[0] == "DispVM")]:
            holder = r.app.system.qube(name) if klass else r.app.system
            calls = "admin.vm.property" if klass else "admin.property"
            for prop in sorted((each.name for each in holder.properties.values() if each.type == "vm"), key="template".__eq__):
                await r.quietly(f"{calls}.Set", name, prop, "net")
                if holder.values.get(prop) == "net":
                    found.append(f"{klass or 'system'} {prop}: {await r.quietly('admin.vm.Remove', 'net')}")
                    assert "net" in r.app.system.qubes
                    await r.quietly(f"{calls}.Reset", name, prop)
        assert await r.quietly("admin.vm.Remove", "named") == "ok "         # it keeps its template
        assert await r.quietly("admin.vm.Remove", "net") == "ok "
        return "\n".join(found) + "\n"

    golden("settings/references.txt", walked(tmp_path, walk))


def walked(tmp_path: Path, walk: Walk) -> str:
    async def run() -> str:
        r = await recorder(str(tmp_path))
        try:
            for klass, name in (("TemplateVM", "tpl"), ("TemplateVM", "other"), ("AppVM", "net"), ("AppVM", "dvm"),
                                ("AppVM", "work"), ("StandaloneVM", "alone"), ("RemoteVM", "far"), ("AppVM", "user")):
                await r.quietly(f"admin.vm.Create.{klass}", "dom0", "", f"name={name} label=red")
                if name == "tpl":
                    await r.quietly("admin.property.Set", "dom0", "default_template", "tpl")
            await r.quietly("admin.vm.property.Set", "net", "provides_network", "True")
            await r.quietly("admin.vm.property.Set", "dvm", "template_for_dispvms", "True")
            await r.quietly("admin.vm.property.Set", "user", "netvm", "net")
            await r.quietly("admin.vm.Create.DispVM", "dom0", "dvm", "name=named label=red")
            r.lines.clear()
            return await walk(r)
        finally:
            await close_app(r.app)

    return asyncio.run(run())
