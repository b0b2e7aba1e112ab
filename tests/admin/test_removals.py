"""What may not be removed because something else needs it, and that nothing of it is gone then."""
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_app

SYSTEM = (
    ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"),
    ("admin.vm.Create.TemplateVM", "dom0", "", "name=other label=black"),
    ("admin.property.Set", "dom0", "default_template", "tpl"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=work label=blue"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=spare label=blue"),
    ("admin.vm.property.Set", "spare", "provides_network", "True"),
    ("admin.vm.property.Set", "spare", "netvm", ""),
    ("admin.vm.property.Set", "spare", "template_for_dispvms", "True"),
)
SPARE_BECOMES_NEEDED = [
    *((("admin.vm.property.Set", "work", name, "spare"), "work") for name in
      ("netvm", "guivm", "audiovm", "default_dispvm", "management_dispvm")),
    *((("admin.property.Set", "dom0", name, "spare"), "the system") for name in
      ("default_netvm", "default_dispvm", "management_dispvm", "clockvm", "updatevm", "default_guivm", "default_audiovm")),
    (("admin.vm.Create.DispVM", "dom0", "spare", "name=disp label=red"), "disp"),
    (("admin.vm.device.block.Assign", "work", "spare+sda", "mode='auto-attach'"), "work"),
]


async def _system(root: Path, *steps: tuple[str, ...]) -> App:
    app = await fake_app(str(root))
    for step in (*SYSTEM, *steps):
        made = await ask(app, *step)
        assert not made.failure, (step, made)
    return app


@pytest.mark.parametrize(("step", "who"), SPARE_BECOMES_NEEDED)
def test_what_something_points_to_stays(tmp_path: Path, step: tuple[str, ...], who: str) -> None:
    async def run() -> None:
        app = await _system(tmp_path, step)
        answer = await ask(app, "admin.vm.Remove", "spare")
        assert answer.failure == "QubesVMInUseError" and who in answer.content
        assert "spare" in app.system.qubes and not (await ask(app, "admin.vm.volume.Info", "spare", "private")).failure
        await close_app(app)

    asyncio.run(run())


@pytest.mark.parametrize(("qube", "who"), [("tpl", "work"), ("dom0", "dom0")])
def test_a_template_and_dom0_stay(tmp_path: Path, qube: str, who: str) -> None:
    async def run() -> None:
        app = await _system(tmp_path)
        answer = await ask(app, "admin.vm.Remove", qube)
        assert answer.failure == "QubesVMInUseError" and who in answer.content
        await close_app(app)

    asyncio.run(run())


def test_what_a_package_manager_installed_stays_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        app = await _system(tmp_path, ("admin.vm.property.Set", "other", "installed_by_rpm", "True"))
        assert (await ask(app, "admin.vm.Remove", "other")).failure == "QubesVMInUseError"
        assert not (await ask(app, "admin.vm.property.Set", "other", "installed_by_rpm", "False")).failure
        assert not (await ask(app, "admin.vm.Remove", "other")).failure
        await close_app(app)

    asyncio.run(run())


def test_what_nothing_points_to_any_more_goes(tmp_path: Path) -> None:
    async def run() -> None:
        app = await _system(tmp_path, ("admin.vm.property.Set", "work", "netvm", "spare"),
                            ("admin.vm.property.Set", "work", "netvm", ""))
        assert not (await ask(app, "admin.vm.Remove", "spare")).failure
        assert "spare" not in app.system.qubes
        await close_app(app)

    asyncio.run(run())


@pytest.mark.parametrize("default", ["default_pool", "default_pool_private", "default_pool_root", "default_pool_volatile"])
def test_a_pool_that_new_volumes_go_to_or_that_holds_some_stays(tmp_path: Path, default: str) -> None:
    async def run() -> None:
        app = await _system(tmp_path, ("admin.pool.Add", "dom0", "qcow2", f"name=second\ndir_path={tmp_path}/second"),
                            ("admin.property.Set", "dom0", default, "second"))
        assert (await ask(app, "admin.pool.Remove", "dom0", "second")).failure == "QubesPoolInUseError"
        assert not (await ask(app, "admin.property.Set", "dom0", default, "varlibqubes")).failure
        create = ("admin.vm.CreateInPool.AppVM", "dom0", "tpl", "name=there label=red pool:private=second")
        assert not (await ask(app, *create)).failure
        assert (await ask(app, "admin.pool.Remove", "dom0", "second")).failure == "QubesPoolInUseError"
        assert not (await ask(app, "admin.vm.Remove", "there")).failure
        assert not (await ask(app, "admin.pool.Remove", "dom0", "second")).failure
        await close_app(app)

    asyncio.run(run())
