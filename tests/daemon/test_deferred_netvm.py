"""A netvm that is changed while its qube is paused waits, and is announced when the qube runs on (reference/admin-api.md 15)."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_app, fake_parts
from cloison.daemon.recovery import bring_up

FEATURE = "deferred-netvm-original"
Heard = list[tuple[str, str, dict[str, str]]]


async def ok(app: App, method: str, dest: str = "dom0", argument: str = "", payload: str = "") -> str:
    answer = await ask(app, method, dest, argument, payload)
    assert not answer.failure, (method, answer)
    return answer.content


def run(tmp_path: Path, scenario: Callable[[App, Heard], Awaitable[None]]) -> None:
    """`scenario` gets an app whose qube `work` is paused, connected to `net`; `other` provides network and runs, too."""
    async def go() -> None:
        app = await fake_app(str(tmp_path))
        await ok(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")
        for name in ("net", "other", "work"):
            await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload=f"name={name} label=red")
            await ok(app, "admin.vm.property.Set", name, "provides_network", str(name != "work"))
        await ok(app, "admin.vm.property.Set", "work", "netvm", "net")
        for name in ("other", "work"):
            await ok(app, "admin.vm.Start", name)
        await ok(app, "admin.vm.Pause", "work")
        heard: Heard = []
        app.listen(app.system.dom0, None, lambda subject, name, pairs: heard.append((subject, name, dict(pairs))))
        await scenario(app, heard)
        await close_app(app)

    asyncio.run(go())


async def original(app: App) -> str | None:
    """What the feature says; None if it is not there."""
    answer = await ask(app, "admin.vm.feature.Get", "work", FEATURE)
    return answer.content if not answer.failure else None


def of_netvm(heard: Heard) -> list[tuple[str, ...]]:
    """Subject, event and, of a property, the new and the old value."""
    return [(subject, name, *(value for key, value in pairs.items() if key in ("newvalue", "oldvalue", "value")))
            for subject, name, pairs in heard if name.endswith((":netvm", FEATURE)) or name == "net-domain-connect"]


def test_the_first_change_is_remembered_and_the_last_one_announced_when_it_runs_on(tmp_path: Path) -> None:
    async def scenario(app: App, heard: Heard) -> None:
        await ok(app, "admin.vm.property.Set", "work", "netvm", "")
        await ok(app, "admin.vm.property.Set", "work", "netvm", "other")
        assert await original(app) == "net"
        assert "default=False type=vm other" == await ok(app, "admin.vm.property.Get", "work", "netvm")
        heard.clear()
        await ok(app, "admin.vm.Unpause", "work")
        assert [name for _, name, _ in heard[:2]] == ["domain-pre-unpaused", "domain-unpaused"]
        assert of_netvm(heard) == [
            ("work", "property-pre-set:netvm", "other", "net"), ("other", "net-domain-connect"),
            ("work", "property-set:netvm", "other", "net"),
            ("work", f"domain-feature-pre-delete:{FEATURE}"), ("work", f"domain-feature-delete:{FEATURE}")]
        assert await original(app) is None
        heard.clear()
        await ok(app, "admin.vm.Pause", "work")
        await ok(app, "admin.vm.Unpause", "work")
        assert of_netvm(heard) == [], "once"

    run(tmp_path, scenario)


def test_while_paused_the_change_is_noted_between_its_own_events(tmp_path: Path) -> None:
    async def scenario(app: App, heard: Heard) -> None:
        await ok(app, "admin.vm.property.Set", "work", "netvm", "other")
        assert of_netvm(heard) == [
            ("work", "property-pre-set:netvm", "other", "net"),
            ("work", f"domain-feature-pre-set:{FEATURE}", "net"), ("work", f"domain-feature-set:{FEATURE}", "net"),
            ("other", "net-domain-connect"), ("work", "property-set:netvm", "other", "net")]
        refused = await ask(app, "admin.vm.feature.Remove", "work", FEATURE)
        assert refused.failure == "PermissionDenied"

    run(tmp_path, scenario)


def test_without_network_there_is_nothing_to_set_but_it_is_told(tmp_path: Path) -> None:
    async def scenario(app: App, heard: Heard) -> None:
        await ok(app, "admin.vm.property.Set", "work", "netvm", "")
        heard.clear()
        await ok(app, "admin.vm.Unpause", "work")
        assert of_netvm(heard)[0] == ("work", "property-pre-set:netvm", "None", "net")
        assert [event for event in of_netvm(heard) if event[1] == "property-set:netvm"] == []
        assert await original(app) is None

    run(tmp_path, scenario)


def test_it_waits_for_a_netvm_that_is_off(tmp_path: Path) -> None:
    async def scenario(app: App, heard: Heard) -> None:
        refused = await ask(app, "admin.vm.property.Set", "work", "netvm", "net")
        assert not refused.failure
        await ok(app, "admin.vm.property.Set", "work", "netvm", "other")
        await ok(app, "admin.vm.Kill", "other")
        await ok(app, "admin.vm.Unpause", "work")
        assert await original(app) == "net"
        heard.clear()
        await ok(app, "admin.vm.Start", "other")
        assert ("work", "property-set:netvm", "other", "net") in of_netvm(heard)
        assert await original(app) is None

    run(tmp_path, scenario)


def test_a_paused_qube_takes_no_netvm_that_is_off(tmp_path: Path) -> None:
    async def scenario(app: App, heard: Heard) -> None:
        await ok(app, "admin.vm.Kill", "other")
        heard.clear()
        assert (await ask(app, "admin.vm.property.Set", "work", "netvm", "other")).failure == "QubesVMNotStartedError"
        assert heard == [] and await original(app) is None

    run(tmp_path, scenario)


def test_the_end_of_the_qube_ends_the_waiting_also_while_no_daemon_watches(tmp_path: Path) -> None:
    async def scenario(app: App, _heard: Heard) -> None:
        await ok(app, "admin.vm.property.Set", "work", "netvm", "other")
        await ok(app, "admin.vm.Kill", "work")
        assert await original(app) is None
        await ok(app, "admin.vm.property.Set", "work", "netvm", "net")
        await ok(app, "admin.vm.Start", "work")
        await ok(app, "admin.vm.Pause", "work")
        await ok(app, "admin.vm.property.Set", "work", "netvm", "other")
        assert await original(app) == "net"

    run(tmp_path, scenario)

    async def next_daemon() -> None:
        app = App(fake_parts(str(tmp_path)))        # whose wardens know of no machine any more
        await bring_up(app)
        assert await original(app) is None
        await close_app(app)

    asyncio.run(next_daemon())
