"""How much a qube may say of itself, or be told to by another; and that it keeps the host's person from nothing."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_app
from cloison.model.features import MAX_BYTES, MAX_FEATURES, MAX_NAME, MAX_TAGS
from cloison.model.requests import MAX_REQUESTED

MISC = "qubesd.misc.sock"


def with_app(tmp_path: Path, scenario: Callable[[App], Awaitable[None]]) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        await ask(app, "admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black")
        await ask(app, "admin.vm.Create.AppVM", "dom0", "tpl", "name=work label=red")
        await scenario(app)
        await close_app(app)

    asyncio.run(run())


def test_features_that_a_qube_sets_have_a_number_and_the_hosts_person_has_none(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        work = app.system.qube("work")
        with app.transaction():
            for number in range(MAX_FEATURES - 1):
                work.set_feature(f"f{number}", "")
        assert not (await ask(app, "admin.vm.feature.Set", "work", "last", "x", source="work")).failure
        refused = await ask(app, "admin.vm.feature.Set", "work", "more", "x", source="work")
        assert refused.failure == "PermissionDenied" and "more" not in work.features
        assert not (await ask(app, "admin.vm.feature.Set", "work", "last", "another", source="work")).failure
        assert not (await ask(app, "admin.vm.feature.Set", "work", "more", "x")).failure

    with_app(tmp_path, scenario)


def test_features_that_a_qube_sets_have_a_size(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        work = app.system.qube("work")
        size = min(60_000, MAX_BYTES) // 2
        left = MAX_BYTES - sum(len(name) + len(value) for name, value in work.features.items())
        names = iter(f"{number:03}" for number in range(1000))
        while left > size + 3:
            assert not (await ask(app, "admin.vm.feature.Set", "work", next(names), "v" * size, source="work")).failure
            left -= size + 3
        refused = await ask(app, "admin.vm.feature.Set", "work", "end", "v" * (left - 2), source="work")
        assert refused.failure == "PermissionDenied" and "end" not in work.features
        assert not (await ask(app, "admin.vm.feature.Set", "work", "end", "v" * (left - 3), source="work")).failure

    with_app(tmp_path, scenario)


def test_tags_that_a_qube_sets_have_a_number(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        work = app.system.qube("work")
        with app.transaction():
            for number in range(MAX_TAGS - len(work.tags)):
                work.add_tag(f"t{number}")
        refused = await ask(app, "admin.vm.tag.Set", "work", "more", source="work")
        assert refused.failure == "PermissionDenied" and "more" not in work.tags
        assert not (await ask(app, "admin.vm.tag.Set", "work", "more")).failure

    with_app(tmp_path, scenario)


@pytest.mark.parametrize("prefixes", [("supported-rpc", "supported-service", "supported-feature")])
def test_what_a_qube_requests_counts_too_and_a_request_too_many_changes_nothing(tmp_path: Path, prefixes: tuple[str, ...]) -> None:
    async def scenario(app: App) -> None:
        tpl = app.system.qube("tpl")
        assert not (await ask(app, "admin.vm.Start", "tpl")).failure
        failures = []
        for prefix in prefixes:
            before = dict(tpl.features)
            entries: dict[str, str | None] = dict.fromkeys(f"/features-request/{path}" for path in await old(app))
            width = MAX_NAME - len(prefix) - 1
            entries |= {f"/features-request/{prefix}.{number:0{width}}": "1" for number in range(MAX_REQUESTED)}
            await app.parts.wardens.qdb_write(tpl.uuid, entries)
            answer = await ask(app, "qubes.FeaturesRequest", source="tpl", socket=MISC)
            failures.append(answer.failure)
            if answer.failure:
                assert dict(tpl.features) == before
        assert failures[-1] == "PermissionDenied"

    with_app(tmp_path, scenario)


async def old(app: App) -> list[str]:
    found = await app.parts.wardens.qdb_read(app.system.qube("tpl").uuid, "/features-request/")
    return [path.removeprefix("/features-request/") for path in found]
