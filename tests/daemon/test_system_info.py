"""What policy asks about is what is true now: the text that is kept of it is thrown away by whatever changes it."""
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloison.daemon.fake import ask, close_app, fake_app
from cloison.daemon.fake_wardens import FakeWardens
from cloison.errors import MachineError
from cloison.model import facts
from cloison.wire.warden import Launch

SYSTEM = (
    ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"),
    ("admin.vm.Create.TemplateVM", "dom0", "", "name=other label=black"),
    ("admin.property.Set", "dom0", "default_template", "tpl"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=gui label=blue"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=work label=blue"),
    ("admin.vm.Create.RemoteVM", "dom0", "", "name=rem label=gray"),
)
CHANGES = (
    ("admin.vm.property.Set", "work", "label", "red"),
    ("admin.vm.property.Set", "work", "template_for_dispvms", "True"),
    ("admin.vm.property.Set", "work", "default_dispvm", "work"),
    ("admin.vm.property.Reset", "work", "default_dispvm"),
    ("admin.property.Set", "dom0", "default_dispvm", "work"),
    ("admin.vm.property.Set", "work", "guivm", "gui"),
    ("admin.vm.property.Reset", "work", "guivm"),
    ("admin.property.Set", "dom0", "default_guivm", "gui"),
    ("admin.vm.property.Set", "rem", "relayvm", "gui"),
    ("admin.vm.property.Set", "rem", "transport_rpc", "test.Relay"),
    ("admin.vm.tag.Set", "work", "mine"),
    ("admin.vm.tag.Remove", "work", "mine"),
    ("admin.vm.feature.Set", "work", "internal", "1"),
    ("admin.vm.feature.Remove", "work", "internal"),
    ("admin.vm.property.Set", "gui", "template", "other"),
    ("admin.vm.Create.DispVM", "dom0", "work", "name=disp label=green"),
    ("admin.vm.Start", "work"),
    ("admin.vm.Pause", "work"),
    ("admin.vm.Unpause", "work"),
    ("admin.vm.Shutdown", "work"),
    ("admin.vm.Start", "gui"),
    ("admin.vm.Kill", "gui"),
    ("admin.vm.Remove", "disp"),
)


def test_after_each_change(tmp_path: Path) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        for step in SYSTEM:
            assert not (await ask(app, *step)).failure, step
        seen = {app.system_info()}
        for step in CHANGES:
            answer = await ask(app, *step)
            assert not answer.failure, (step, answer)
            assert app.system_info() == facts.system_info(app.system), step
            seen.add(app.system_info())
        assert len(seen) > len(CHANGES) // 2             # most of them do change it
        await close_app(app)

    asyncio.run(run())


@pytest.mark.parametrize("event", ["halting", "silent", "ending", "stopped"])
def test_after_what_a_warden_says(tmp_path: Path, event: str) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        for step in (*SYSTEM, ("admin.vm.Start", "work")):
            assert not (await ask(app, *step)).failure, step
        before = app.system_info()
        work = app.system.qube("work")
        app.parts.wardens.on_event(work.uuid, event, {})
        await app.machines.settled(work)
        assert before != app.system_info() == facts.system_info(app.system)
        await close_app(app)

    asyncio.run(run())


def test_before_and_after_a_start_that_fails(tmp_path: Path) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        for step in SYSTEM:
            assert not (await ask(app, *step)).failure, step
        wardens, during = app.parts.wardens, []
        assert isinstance(wardens, FakeWardens)
        before = app.system_info()

        async def fail(_launch: Launch, _lease: object = None) -> str:
            during.append(app.system_info())
            raise MachineError("no")

        wardens.start = fail                             # type: ignore[method-assign,assignment]
        assert (await ask(app, "admin.vm.Start", "work")).failure
        assert during != [before] and app.system_info() == before
        await close_app(app)

    asyncio.run(run())
