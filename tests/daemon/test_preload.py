"""Preloaded disposables: filled up, handed out, refreshed, and never a way to more network or a rest after a crash."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.admin.qubesd import Driver
from cloison.daemon.app import App
from cloison.daemon.fake import Answer, ask, fake_app, fake_drivers, fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up
from cloison.model.creation import preloaded
from cloison.storage.fake import FakePool

RPCS = ("supported-rpc.qubes.WaitForRunningSystem", "supported-rpc.qubes.WaitForSession")
Scenario = Callable[[App], Awaitable[None]]


def wardens(app: App) -> FakeWardens:
    assert isinstance(app.parts.wardens, FakeWardens)
    return app.parts.wardens


async def ok(app: App, method: str, dest: str = "dom0", argument: str = "", payload: str = "", *, source: str = "dom0") -> str:
    answer: Answer = await ask(app, method, dest, argument, payload, source=source)
    assert not answer.failure, (method, answer)
    return answer.content


async def set_max(app: App, value: str, dest: str = "dvm") -> list[str]:
    await ok(app, "admin.vm.feature.Set", dest, "preload-dispvm-max", value)
    await app.preloads.settled()
    return preloaded(app.system.qube("dvm"))


def write_root(app: App, name: str) -> None:
    """As its system does: a root that nothing was written to is no new commit."""
    pool = app.pool("varlibqubes")
    assert isinstance(pool, FakePool)
    with open(pool.path(app.volumes.config(app.system.qube(name).volumes["root"])), "r+b") as file:
        file.write(b"updated")


async def furnish(app: App) -> None:
    await ok(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")
    for feature in ("qrexec", *RPCS):
        await ok(app, "admin.vm.feature.Set", "tpl", feature, "1")
    await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload="name=dvm label=red")
    await ok(app, "admin.vm.property.Set", "dvm", "template_for_dispvms", "True")
    await ok(app, "admin.vm.feature.Set", "dvm", "preload-dispvm-delay", "0")


def preloading(tmp_path: Path, scenario: Scenario) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        await furnish(app)
        async with asyncio.timeout(PATIENCE):
            await scenario(app)
        await app.preloads.close()
        await app.machines.close()
        await app.parts.wardens.close()
        app.parts.store.close()

    asyncio.run(run())


def heard(app: App) -> list[tuple[str, str, dict[str, str]]]:
    events: list[tuple[str, str, dict[str, str]]] = []
    app.listen(app.system.dom0, None, lambda subject, name, pairs: events.append((subject, name, dict(pairs))))
    return events


def test_they_are_made_started_and_paused(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        events = heard(app)
        names = await set_max(app, "2")
        assert len(names) == 2
        for name in names:
            qube = app.system.qube(name)
            assert str(qube.power) == "Paused"
            assert await ok(app, "admin.vm.property.Get", name, "is_preload") == "default=True type=bool True"
            assert (qube.features["internal"], qube.features["preload-dispvm-completed"]) == ("1", "1")
            assert "created-by-dom0" not in [tag for tag in qube.tags if tag.startswith("disp-")]
            assert (qube.uuid, "qubes.WaitForRunningSystem", b"") in wardens(app).services
        start = next(pairs for subject, name, pairs in events if (subject, name) == ("dvm", "domain-preload-dispvm-start"))
        assert start == {"reason": "feature preload-dispvm-max has changed"}
        assert await set_max(app, "1") == names[:1]
        assert names[1] not in app.system.qubes

    preloading(tmp_path, scenario)


def test_one_is_handed_out_and_replaced(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        first = (await set_max(app, "1"))[0]
        await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload="name=work label=blue")
        events = heard(app)
        assert await ok(app, "admin.vm.CreateDisposable", "dvm", source="work") == first
        qube = app.system.qube(first)
        assert str(qube.power) == "Running"
        assert {"created-by-work", "disp-created-by-work"} <= set(qube.tags)
        assert not {"internal", "preload-dispvm-in-progress"} & set(qube.features)
        assert qube.features["preload-dispvm-completed"] == "1", "as Qubes OS leaves it"
        assert ("dvm", "domain-preload-dispvm-used", {"dispvm": first, "delay": "0.0"}) in events
        await app.preloads.settled()
        second = preloaded(app.system.qube("dvm"))
        assert len(second) == 1 and second != [first]
        await ok(app, "admin.vm.Kill", first)
        assert first not in app.system.qubes

    preloading(tmp_path, scenario)


def test_the_next_one_is_made_after_the_delay(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        first = (await set_max(app, "1"))[0]
        await ok(app, "admin.vm.feature.Set", "dvm", "preload-dispvm-delay", "0.05")
        ready, completed = asyncio.Event(), "domain-feature-set:preload-dispvm-completed"
        app.listen(app.system.dom0, None, lambda _subject, name, _pairs: ready.set() if name == completed else None)
        assert await ok(app, "admin.vm.CreateDisposable", "dvm") == first
        async with asyncio.timeout(PATIENCE):
            await ready.wait()
        assert len(preloaded(app.system.qube("dvm"))) == 1

    preloading(tmp_path, scenario)


def test_one_that_waits_for_its_delay_ends_with_the_daemon(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        first = (await set_max(app, "1"))[0]
        await ok(app, "admin.vm.feature.Set", "dvm", "preload-dispvm-delay", "86400")
        assert await ok(app, "admin.vm.CreateDisposable", "dvm") == first
        await app.preloads.settled()
        assert preloaded(app.system.qube("dvm")) == []

    preloading(tmp_path, scenario)


def test_without_one_a_disposable_is_made(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        name = await ok(app, "admin.vm.CreateDisposable", "dvm")
        assert str(app.system.qube(name).power) == "Halted"
        assert await ok(app, "admin.vm.CreateDisposable", "dvm", "preload") == ""

    preloading(tmp_path, scenario)


def test_lesson_28_an_offline_qube_gets_no_preloaded_one_with_network(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload="name=net label=red")
        await ok(app, "admin.vm.property.Set", "net", "netvm")
        await ok(app, "admin.vm.property.Set", "net", "provides_network", "True")
        await ok(app, "admin.vm.property.Set", "dvm", "netvm", "net")
        await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload="name=vault label=black")
        waiting = await set_max(app, "1")
        name = await ok(app, "admin.vm.CreateDisposable", "dvm", source="vault")
        assert [name] != waiting
        assert app.system.qube(name).get("netvm") is None
        assert preloaded(app.system.qube("dvm")) == waiting

    preloading(tmp_path, scenario)


def test_unpausing_by_hand_uses_it(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        first = (await set_max(app, "1"))[0]
        await ok(app, "admin.vm.Unpause", first)
        await app.preloads.settled()
        assert first not in preloaded(app.system.qube("dvm"))
        assert len(preloaded(app.system.qube("dvm"))) == 1
        qube = app.system.qube(first)
        assert qube.features["preload-dispvm-in-progress"] == "" and "internal" not in qube.features
        assert not [tag for tag in qube.tags if tag.startswith("disp-created-by")], "nobody has asked for it"

    preloading(tmp_path, scenario)


def test_one_that_waits_can_be_shut_down_without_force(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        first = (await set_max(app, "1"))[0]
        await ok(app, "admin.vm.Shutdown", first)
        await app.preloads.settled()
        assert first not in app.system.qubes and preloaded(app.system.qube("dvm")) == []
        await ok(app, "admin.vm.CreateDisposable", "dvm", "preload")
        await app.preloads.settled()
        assert len(preloaded(app.system.qube("dvm"))) == 1

    preloading(tmp_path, scenario)


START = "domain-preload-dispvm-start"


@pytest.mark.parametrize(("calls", "told"), [
    # A value of 0 is one, too; the same value again is none.
    ([("admin.vm.feature.Set", "dvm", "preload-dispvm-max", "0")], 1),
    ([("admin.vm.feature.Set", "dvm", "preload-dispvm-max", value) for value in ("1", "1", "")], 2),
    ([("admin.vm.feature.Set", "dvm", "preload-dispvm-max", "1"), ("admin.vm.feature.Remove", "dvm", "preload-dispvm-max")], 1),
    # dom0's stands for the default template, whatever its own says; there is one to be told of it or nobody.
    ([("admin.vm.feature.Set", "dom0", "preload-dispvm-max", "0")], 0),
    ([("admin.property.Set", "dom0", "default_dispvm", "dvm"), ("admin.vm.feature.Set", "dom0", "preload-dispvm-max", "0"),
      ("admin.vm.feature.Set", "dvm", "preload-dispvm-max", "1"), ("admin.vm.feature.Remove", "dvm", "preload-dispvm-max"),
      ("admin.vm.feature.Remove", "dom0", "preload-dispvm-max")], 2),
    # It goes over with the property, to whom that makes a difference.
    ([("admin.vm.feature.Set", "dom0", "preload-dispvm-max", "0"), ("admin.property.Set", "dom0", "default_dispvm", "dvm")], 0),
    ([("admin.vm.feature.Set", "dom0", "preload-dispvm-max", "1"), ("admin.property.Set", "dom0", "default_dispvm", "dvm"),
      ("admin.property.Set", "dom0", "default_dispvm", "")], 2),
    # Asked for, it is always told; changed, only if it can be anybody's matter.
    ([("admin.vm.CreateDisposable", "dvm", "preload", "")], 1),
    ([("admin.vm.property.Set", "dvm", "template_for_dispvms", "True")], 0),
    ([("admin.vm.feature.Set", "dvm", "preload-dispvm-max", "1"), ("admin.vm.property.Set", "dvm", "label", "green")], 2),
    ([("admin.vm.feature.Set", "dvm", "preload-dispvm-max", "1"), ("admin.vm.property.Set", "dvm", "label", "red")], 1),
    ([("admin.vm.feature.Set", "dvm", "preload-dispvm-max", "1"),
      ("admin.vm.property.Set", "dvm", "template_for_dispvms", "False")], 1),
])
def test_when_preloading_is_told(tmp_path: Path, calls: list[tuple[str, str, str, str]], told: int) -> None:
    async def scenario(app: App) -> None:
        events = heard(app)
        for method, dest, argument, payload in ((*each, "")[:4] for each in calls):
            await ok(app, method, dest, argument, payload)
            await app.preloads.settled()
        assert [subject for subject, name, _ in events if name == START] == ["dvm"] * told

    preloading(tmp_path, scenario)


def test_what_a_change_makes_useless_goes_at_once_and_is_replaced_later(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        names = await set_max(app, "2")
        events = heard(app)
        await ok(app, "admin.vm.property.Set", "dvm", "label", "green")
        await app.preloads.settled()
        assert not set(names) & set(app.system.qubes) and preloaded(app.system.qube("dvm")) == []
        assert [pairs["delay"] for _, name, pairs in events if name == START] == ["30"]

    preloading(tmp_path, scenario)


def test_who_meets_a_gap_has_it_filled_after_a_while(tmp_path: Path) -> None:
    """The one who asks is not slowed down by it; however often somebody asks, it is done once."""
    async def scenario(app: App) -> None:
        host = app.parts.host
        await ok(app, "admin.vm.feature.Set", "dom0", "preload-dispvm-threshold", str(host.memory))
        assert await set_max(app, "1") == []
        events = heard(app)
        for _ in range(3):
            await ok(app, "admin.vm.CreateDisposable", "dvm")
        await app.preloads.settled()
        assert [pairs["delay"] for _, name, pairs in events if name == START] == ["5"] * 3
        await ok(app, "admin.vm.feature.Set", "dvm", "preload-dispvm-delay", "-1")
        await ok(app, "admin.vm.CreateDisposable", "dvm")
        await app.preloads.settled()
        assert preloaded(app.system.qube("dvm")) == []

    preloading(tmp_path, scenario)


def test_only_the_disposables_concerned_are_told_to_wait_or_not(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.Create.DispVM", argument="dvm", payload="name=mine label=red")
        events = heard(app)
        names = await set_max(app, "2")
        assert sorted(subject for subject, name, _ in events if name == "property-reset:is_preload") == sorted(names)

    preloading(tmp_path, scenario)


@pytest.mark.parametrize(("method", "argument", "payload"), [
    ("admin.vm.feature.Remove", "preload-dispvm-max", ""),
    ("admin.vm.property.Set", "template_for_dispvms", "False"),
    ("admin.vm.Remove", "", ""),
])
def test_they_go_with_their_reason(tmp_path: Path, method: str, argument: str, payload: str) -> None:
    async def scenario(app: App) -> None:
        names = await set_max(app, "2")
        await ok(app, method, "dvm", argument, payload)
        await app.preloads.settled()
        assert not set(names) & set(app.system.qubes)

    preloading(tmp_path, scenario)


def test_a_template_that_was_updated_refreshes_them(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        old = await set_max(app, "1")
        await ok(app, "admin.vm.Start", "tpl")
        write_root(app, "tpl")
        events = heard(app)
        await ok(app, "admin.vm.Shutdown", "tpl", "wait")
        await app.preloads.settled()
        assert old[0] not in app.system.qubes
        assert [(subject, pairs["delay"]) for subject, name, pairs in events if name == START] == [("dvm", "4")]
        await ok(app, "admin.vm.CreateDisposable", "dvm", "preload")
        await app.preloads.settled()
        assert len(preloaded(app.system.qube("dvm"))) == 1

    preloading(tmp_path, scenario)


def test_the_system_wide_feature_stands_for_the_default_template(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await set_max(app, "3")
        await ok(app, "admin.property.Set", argument="default_dispvm", payload="dvm")
        assert len(await set_max(app, "1", "dom0")) == 1
        assert len(await set_max(app, "", "dom0")) == 0
        await ok(app, "admin.vm.feature.Remove", "dom0", "preload-dispvm-max")
        await app.preloads.settled()
        assert len(preloaded(app.system.qube("dvm"))) == 3

    preloading(tmp_path, scenario)


def test_memory_left_free_is_respected(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        host = app.parts.host
        await ok(app, "admin.vm.feature.Set", "dom0", "preload-dispvm-threshold", str(host.memory - 1000))
        assert len(await set_max(app, "5")) == 2      # 1,000 MiB of room, 400 each

    preloading(tmp_path, scenario)


@pytest.mark.parametrize("trouble", ["refuse", "deaf"])
def test_one_that_fails_is_gone_and_not_tried_for_ever(tmp_path: Path, trouble: str) -> None:
    async def scenario(app: App) -> None:
        getattr(wardens(app), trouble).add("disp1000")      # the first that the fake host makes
        assert await set_max(app, "1") == []
        assert "disp1000" not in app.system.qubes
        assert wardens(app).running() == []

    preloading(tmp_path, scenario)


def test_the_maximum_needs_the_services(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.feature.Remove", "tpl", RPCS[1])
        assert (await ask(app, "admin.vm.feature.Set", "dvm", "preload-dispvm-max", "1")).failure == "QubesValueError"
        assert (await ask(app, "admin.vm.feature.Set", "dvm", "preload-dispvm", "x")).failure == "PermissionDenied"

    preloading(tmp_path, scenario)


def test_lesson_39_a_restart_keeps_the_good_ones_only(tmp_path: Path) -> None:
    """No rogue preload: what was under way when qubesd died goes; what is ready is kept and used."""

    async def run() -> None:
        folder = str(tmp_path / "wardens")
        pool = FakePool("varlibqubes", str(tmp_path / "pool"))          # it outlives the daemon, as files do
        drivers = {**fake_drivers(), "qcow2": Driver(("dir_path",), ("dir_path",), lambda *_: pool)}
        parts = fake_parts(str(tmp_path), wardens=FakeWardens(folder), drivers=drivers)
        app = App(parts)
        await bring_up(app)
        await furnish(app)
        good, half, dead = await set_max(app, "3")
        with app.transaction():
            app.system.qube(half).remove_feature("preload-dispvm-completed")
        wardens(app).on_event = lambda *_: None
        await wardens(app).kill(app.system.qube(dead).uuid)
        await app.preloads.close()
        parts.store.close()
        second = App(fake_parts(str(tmp_path), wardens=FakeWardens(folder), drivers=drivers))
        await bring_up(second)
        await second.machines.close()
        assert preloaded(second.system.qube("dvm")) == [good]
        assert not {half, dead} & set(second.system.qubes)
        assert await ok(second, "admin.vm.CreateDisposable", "dvm") == good
        await second.preloads.close()
        await second.machines.close()
        second.parts.store.close()

    asyncio.run(run())


def test_suspend_drops_them_and_resume_brings_them_back(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        old = await set_max(app, "1")
        await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload="name=work label=blue")
        await ok(app, "admin.vm.Start", "work")
        for method in ("SuspendPre", "SuspendPost"):
            answer = await ask(app, f"internal.{method}", socket="qubesd.internal.sock")
            assert not answer.failure
            assert str(app.system.qube("work").power) == ("Paused" if method == "SuspendPre" else "Running")
            assert not set(old) & set(app.system.qubes)
        await app.preloads.settled()
        assert len(preloaded(app.system.qube("dvm"))) == 1
        asked = [service for uuid, service, _ in wardens(app).services if uuid == app.system.qube("work").uuid]
        assert asked == ["qubes.SuspendPreAll", "qubes.SuspendPostAll"]

    preloading(tmp_path, scenario)
