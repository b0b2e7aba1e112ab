"""Qubes that wait for disk space, through the Admin API: how they are called, what is said of them, and how it ends."""
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.daemon.test_life import Life, live
from tests.warden.test_space import come

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up

WHERE = "/data/pools"
SENTENCE = f"work waits for disk space: {WHERE} is full; it goes on by itself when 64 MB are free there; qvm-kill ends it"


async def full(life: Life) -> str:
    """`work` runs, and waits; its uuid."""
    await life.ok("admin.vm.Start", "work")
    uuid = life.app.system.qube("work").uuid
    life.heard.clear()
    life.wardens.fill(uuid, WHERE)
    return uuid


async def waiting(life: Life) -> list[str]:
    return list((await life.app.status())["problems"].values())


def test_it_is_called_paused_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(life: Life) -> None:
        uuid = await full(life)
        assert life.heard == [("work", "domain-paused"), ("work", "domain-space-wanted")]
        assert await life.state("work") == "Paused" and SENTENCE in caplog.text
        assert await waiting(life) == [SENTENCE]
        life.heard.clear()
        life.wardens.fill(uuid, WHERE)
        assert life.heard == [], "told once"
        life.wardens.free(uuid)
        assert life.heard == [("work", "domain-unpaused")]
        assert await life.state("work") == "Running" and await waiting(life) == []
        life.wardens.free(uuid)
        assert life.heard == [("work", "domain-unpaused")]
        assert not (await ask(life.app, "admin.vm.Shutdown", "work")).failure

    live(tmp_path, scenario)


@pytest.mark.parametrize("call", ["admin.vm.Unpause", "admin.vm.Shutdown"])
def test_what_can_not_be_done_meanwhile_says_what_it_waits_for(tmp_path: Path, call: str) -> None:
    async def scenario(life: Life) -> None:
        await full(life)
        answer = await ask(life.app, call, "work")
        assert (answer.content, answer.failure) == (SENTENCE, "QubesVMError")
        assert await life.state("work") == "Paused"
        await life.ok("admin.vm.Kill", "work")
        assert await life.state("work") == "Halted" and await waiting(life) == []
        await life.ok("admin.vm.Start", "work")
        assert await life.state("work") == "Running" and await waiting(life) == []

    live(tmp_path, scenario)


def test_paused_by_a_person_it_waits_for_the_person(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await full(life)
        await life.ok("admin.vm.Pause", "work")
        assert await life.state("work") == "Paused" and await waiting(life) == []
        await life.ok("admin.vm.Unpause", "work")
        assert await life.state("work") == "Running"

    live(tmp_path, scenario)


def test_by_force_it_is_ended(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await full(life)
        await life.ok("admin.vm.Shutdown", "work", "force")
        await life.app.machines.settled(life.app.system.qube("work"))
        assert await life.state("work") == "Halted"

    live(tmp_path, scenario)


def test_who_waits_for_a_shutdown_hears_at_once_that_there_is_no_space(tmp_path: Path) -> None:
    async def scenario(life: Life) -> None:
        await life.ok("admin.vm.Start", "work")
        uuid = life.app.system.qube("work").uuid
        life.wardens.deaf.add("work")
        shutdown = asyncio.ensure_future(ask(life.app, "admin.vm.Shutdown", "work", "wait"))
        await come(lambda: life.app.system.qube("work").power == "Halting")
        life.wardens.fill(uuid, WHERE)
        async with asyncio.timeout(30):
            answer = await shutdown
        assert answer.content == SENTENCE
        life.wardens.free(uuid, "halting")
        assert await life.state("work") == "Halting", "it goes on with its shutdown"
        life.wardens.stop(uuid)

    live(tmp_path, scenario)


def test_the_next_qubesd_knows_it_too(tmp_path: Path) -> None:
    async def run() -> None:
        async def app() -> App:
            made = App(fake_parts(str(tmp_path), wardens=FakeWardens(str(tmp_path / "wardens"))))
            await bring_up(made)
            return made

        first = await app()
        for method, payload in (
            ("admin.vm.Create.TemplateVM", "name=tpl label=black"), ("admin.property.Set+default_template", "tpl"),
            ("admin.vm.Create.AppVM", "name=work label=red"),
        ):
            name, _, argument = method.partition("+")
            assert not (await ask(first, name, "dom0", argument, payload)).failure
        await ask(first, "admin.vm.Start", "work")
        wardens = first.parts.wardens
        assert isinstance(wardens, FakeWardens)
        wardens.fill(first.system.qube("work").uuid, WHERE)
        await close_app(first)
        second = await app()
        assert second.system.qube("work").power == "Paused"
        assert (await ask(second, "admin.vm.Unpause", "work")).content == SENTENCE
        await close_app(second)

    asyncio.run(run())
