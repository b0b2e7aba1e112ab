"""What a qube is shown of others: exactly what policy lets it ask, of the qube an event is about, and nothing in doubt."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.daemon.test_starts import furnish
from tests.patience import PATIENCE

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_app
from cloison.model.journal import Event

RULES = """
admin.Events * work net allow target=dom0
admin.Events +domain-start work tpl allow target=dom0
admin.Events +property-set_label work @adminvm allow target=dom0
admin.vm.List * work net allow target=dom0
admin.vm.List * work @tag:seen allow target=dom0
"""


def play(tmp_path: Path, rules: str, scenario: Callable[[App], Awaitable[None]]) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        await furnish(app)
        (tmp_path / "config" / "policy.d" / "10-test.policy").write_text(rules)
        try:
            async with asyncio.timeout(PATIENCE):
                await scenario(app)
        finally:
            await close_app(app)

    asyncio.run(run())


EVENTS = [
    (Event("net", "domain-stopped", ()), True), (Event("net", "property-set:label", ()), True),
    (Event("tpl", "domain-start", ()), True), (Event("tpl", "domain-stopped", ()), False),
    (Event("work", "domain-start", ()), False),
    (Event("", "domain-add", (("vm", "net"),)), True), (Event("", "domain-add", (("vm", "tpl"),)), False),
    (Event("", "property-set:label", ()), True), (Event("", "domain-start", ()), False),
]


@pytest.mark.parametrize(("event", "shown"), EVENTS, ids=str)
def test_an_event_is_asked_for_by_the_qube_it_is_about(tmp_path: Path, event: Event, shown: bool) -> None:
    async def scenario(app: App) -> None:
        assert app.visibility.allows_event(app.system.qube("work"), event) is shown
        assert app.visibility.allows_event(app.system.dom0, event)
        assert not app.visibility.allows_event(app.system.qube("net"), event)

    play(tmp_path, RULES, scenario)


@pytest.mark.parametrize("rules", ["", "this is no rule", "admin.vm.List * work net ask default_target=net", "!include /nowhere"])
def test_in_doubt_nothing_is_shown(tmp_path: Path, rules: str) -> None:
    async def scenario(app: App) -> None:
        assert (await ask(app, "admin.vm.List", source="work")).content == ""
        assert not app.visibility.allows(app.system.qube("work"), "admin.vm.List", "net")
        assert app.visibility.allows(app.system.dom0, "admin.vm.List", "net")

    play(tmp_path, rules, scenario)


def test_facts_are_those_of_now(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        async def shown() -> list[str]:
            return [line.split()[0] for line in (await ask(app, "admin.vm.List", source="work")).content.splitlines()]

        assert await shown() == ["net"]
        assert not (await ask(app, "admin.vm.tag.Set", "tpl", "seen")).failure
        assert await shown() == ["net", "tpl"]
        assert not (await ask(app, "admin.vm.tag.Remove", "tpl", "seen")).failure
        assert await shown() == ["net"]
        assert not (await ask(app, "admin.vm.Create.AppVM", payload="name=new label=red")).failure
        assert "new" in json.loads(app.system_info())["domains"] and await shown() == ["net"]
        assert not (await ask(app, "admin.vm.tag.Set", "new", "seen")).failure
        assert await shown() == ["net", "new"]

    play(tmp_path, RULES, scenario)
