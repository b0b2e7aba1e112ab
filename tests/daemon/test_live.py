"""What running qubes are told as settings change, when firewall rules end, and which changes policy's facts follow."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cloison.daemon.app import App
from cloison.daemon.fake import FakeHost, ask, fake_app
from cloison.daemon.fake_wardens import FakeWardens
from cloison.model.domains import Qube

INTERNAL = "qubesd.internal.sock"
HASHED = "fQxnpBDFexAHGZZ3Gs2UmHbKpNwazSfybcqW4CbHU_Y"       # of org.mozilla.firefox


async def ok(
    app: App, method: str, dest: str = "dom0", argument: str = "", payload: str = "", *, socket: str = "qubesd.sock",
) -> str:
    answer = await ask(app, method, dest, argument, payload, socket=socket)
    assert not answer.failure, (method, answer)
    return answer.content


def live(tmp_path: Path, scenario: Callable[[App], Awaitable[None]]) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        await ok(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")
        for name in ("net", "work"):
            await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload=f"name={name} label=red")
        await ok(app, "admin.vm.property.Set", "net", "provides_network", "True")
        await ok(app, "admin.vm.property.Set", "work", "netvm", "net")
        await scenario(app)
        await app.live.close()
        await app.preloads.close()
        await app.machines.close()
        await app.parts.wardens.close()
        app.parts.store.close()

    asyncio.run(run())


def told(app: App, name: str) -> dict[str, str]:
    assert isinstance(app.parts.wardens, FakeWardens)
    return app.parts.wardens.qdb[app.system.qube(name).uuid]


def clock(app: App) -> FakeHost:
    assert isinstance(app.parts.host, FakeHost)
    return app.parts.host


def test_a_provider_is_told_new_rules_and_loses_the_old(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.Start", "work")
        tree = f"/qubes-firewall/{app.system.qube('work').get('ip')}"
        await ok(app, "admin.vm.firewall.Set", "work", "", "action=accept proto=tcp\naction=accept proto=udp\naction=drop\n")
        await app.live.settled()
        rules = {path: value for path, value in told(app, "net").items() if path.startswith(tree)}
        assert rules == {f"{tree}/policy": "drop", f"{tree}/0000": "action=accept proto=tcp",
                         f"{tree}/0001": "action=accept proto=udp", f"{tree}/0002": "action=drop", tree: ""}
        await ok(app, "admin.vm.firewall.Set", "work", "", "")
        await app.live.settled()
        rules = {path: value for path, value in told(app, "net").items() if path.startswith(tree)}
        assert rules == {f"{tree}/policy": "drop", tree: ""}

    live(tmp_path, scenario)


def test_the_signal_comes_after_all_rules(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.Start", "work")
        await ok(app, "admin.vm.firewall.Set", "work", "", "action=accept\n")
        await app.live.settled()
        assert isinstance(app.parts.wardens, FakeWardens)
        assert app.parts.wardens.qdb_writes[-1][-1] == f"/qubes-firewall/{app.system.qube('work').get('ip')}"

    live(tmp_path, scenario)


def test_rules_end_when_they_say_so(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        now = int(clock(app).time)
        rules = f"action=accept expire={now + 10} proto=tcp\naction=accept expire={now + 20} proto=udp\naction=drop\n"
        await ok(app, "admin.vm.firewall.Set", "work", "", rules)
        assert await ok(app, "admin.vm.firewall.Get", "work") == rules
        heard: list[tuple[str, str]] = []
        app.listen(app.system.dom0, None, lambda subject, name, _: heard.append((subject, name)))
        for later, left in ((10, 2), (15, 2), (20, 1), (10**6, 1)):
            clock(app).time = now + later
            app.live.expire()
            assert len((await ok(app, "admin.vm.firewall.Get", "work")).splitlines()) == left
            assert len(app.system.qube("work").texts["firewall"].splitlines()) == left
        assert heard == [("work", "firewall-changed")] * 2

    live(tmp_path, scenario)


@pytest.mark.parametrize("expire", [0, 1, 253402300799])
def test_any_time_of_expiry_can_be_waited_for(tmp_path: Path, expire: int) -> None:
    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.firewall.Set", "work", "", f"action=accept expire={expire}\n")
        app.live.expire()
        kept = app.system.qube("work").texts["firewall"]
        assert bool(kept) == (expire > clock(app).time)

    live(tmp_path, scenario)


async def facts(app: App) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(await ok(app, "internal.GetSystemInfo", socket=INTERNAL))["domains"]
    return found


CHANGES = (
    ("admin.vm.Create.RemoteVM", "dom0", "", "name=far label=gray"),
    ("admin.vm.property.Set", "far", "relayvm", "net"),
    ("admin.vm.property.Set", "far", "transport_rpc", "qubes.Relay"),
    ("admin.vm.Start", "work", "", ""),
    ("admin.vm.Pause", "work", "", ""),
    ("admin.vm.Unpause", "work", "", ""),
    ("admin.vm.Kill", "work", "", ""),
    ("admin.vm.tag.Set", "work", "t", ""),
    ("admin.vm.tag.Remove", "work", "t", ""),
    ("admin.vm.feature.Set", "work", "internal", "1"),
    ("admin.vm.feature.Remove", "work", "internal", ""),
    ("admin.vm.property.Set", "work", "label", "blue"),
    ("admin.vm.property.Set", "work", "template_for_dispvms", "True"),
    ("admin.property.Set", "dom0", "default_dispvm", "work"),
    ("admin.vm.property.Set", "net", "default_dispvm", ""),
    ("admin.vm.property.Reset", "net", "default_dispvm", ""),
    ("admin.vm.property.Set", "work", "guivm", "net"),
    ("admin.vm.property.Reset", "work", "guivm", ""),
    ("admin.property.Set", "dom0", "default_guivm", "net"),
    ("admin.property.Reset", "dom0", "default_guivm", ""),
    ("admin.vm.CreateDisposable", "work", "", ""),
    ("admin.property.Reset", "dom0", "default_dispvm", ""),
    ("admin.vm.Remove", "far", "", ""),
)


def test_every_change_that_policy_asks_about_is_seen_at_once(tmp_path: Path) -> None:
    """The kept text is dropped by events: what it says must be what is made anew, after each change, and must have changed."""

    async def scenario(app: App) -> None:
        before = await facts(app)
        for method, dest, argument, payload in CHANGES:
            await ok(app, method, dest, argument, payload)
            kept = await facts(app)
            assert kept != before, (method, dest, argument)
            app.cache.clear()
            assert await facts(app) == kept, (method, dest, argument)
            before = kept

    live(tmp_path, scenario)


def test_what_policy_does_not_ask_about_keeps_the_text(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await facts(app)
        await ok(app, "admin.vm.property.Set", "work", "memory", "500")
        await ok(app, "admin.vm.feature.Set", "work", "other", "1")
        await ok(app, "admin.vm.firewall.Set", "work", "", "action=drop\n")
        assert "system_info" in app.cache

    live(tmp_path, scenario)


def test_a_failed_start_of_an_unnamed_disposable_removes_it(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.property.Set", "work", "template_for_dispvms", "True")
        name = await ok(app, "admin.vm.CreateDisposable", "work")
        assert isinstance(app.parts.wardens, FakeWardens)
        app.parts.wardens.refuse.add(name)
        assert (await ask(app, "admin.vm.Start", name)).failure == "QubesException"
        assert name not in app.system.qubes

    live(tmp_path, scenario)


def test_a_prohibited_start_says_why_and_leaves_a_running_qube_alone(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        heard: list[tuple[str, str, dict[str, str]]] = []
        app.listen(app.system.dom0, None, lambda subject, name, pairs: heard.append((subject, name, dict(pairs))))
        await ok(app, "admin.vm.Start", "work")
        await ok(app, "admin.vm.feature.Set", "work", "prohibit-start", "broken disk 100%")
        await ok(app, "admin.vm.Start", "work")
        await ok(app, "admin.vm.Kill", "work")
        answer = await ask(app, "admin.vm.Start", "work")
        assert (answer.failure, answer.content) == ("QubesException", "work may not be started: broken disk 100%")
        assert heard[-1] == ("work", "domain-start-failed", {"reason": answer.content})

    live(tmp_path, scenario)


def test_what_a_starting_qube_is_told_beyond_its_name(tmp_path: Path) -> None:
    """Services by hash, video memory, a GuiVM's prefix, and what a relay calls the qubes of other machines."""

    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.Create.RemoteVM", payload="name=far label=gray")
        await ok(app, "admin.vm.property.Set", "far", "relayvm", "work")
        for dest, feature, value in (("work", "service.app-dispvm.org.mozilla.firefox", "1"), ("dom0", "gui-videoram-min", "4096"),
                                     ("tpl", "gui-videoram-overhead", "5"), ("work", "service.guivm", "1")):
            await ok(app, "admin.vm.feature.Set", dest, feature, value)
        await ok(app, "admin.vm.Start", "work")
        entries = told(app, "work")
        hashed = [path for path, value in entries.items() if value == "org.mozilla.firefox"]
        assert hashed == ["/hash-app-dispvm/" + HASHED]
        assert (entries["/qubes-gui-videoram-min"], entries["/qubes-gui-videoram-overhead"]) == ("4096", "5")
        assert (entries["/guivm-windows-prefix"], entries["/remote/far"]) == ("GuiVM", "far")
        await ok(app, "admin.vm.property.Set", "far", "remote_name", "there")
        await app.live.settled()
        assert told(app, "work")["/remote/far"] == "there"
        await ok(app, "admin.vm.feature.Set", "work", "service.app-dispvm.org.mozilla.firefox", "")
        await ok(app, "admin.vm.property.Set", "work", "keyboard_layout", "de++")
        await app.live.settled()
        assert hashed[0] not in told(app, "work")
        assert told(app, "work")["/keyboard-layout"] == "de++"

    live(tmp_path, scenario)


def test_a_qube_is_told_before_it_sleeps_and_when_it_wakes(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        await ok(app, "admin.vm.feature.Set", "tpl", "qrexec", "1")
        await ok(app, "admin.vm.Start", "work")
        await ok(app, "admin.vm.Suspend", "work")
        assert (await ok(app, "admin.vm.CurrentState", "work")).endswith("power_state=Paused")
        await ok(app, "admin.vm.Resume", "work")
        await ok(app, "admin.vm.Pause", "work")
        await ok(app, "admin.vm.Resume", "work")
        assert isinstance(app.parts.wardens, FakeWardens)
        assert [service for _, service, _ in app.parts.wardens.services] == ["qubes.SuspendPre", "qubes.SuspendPost"]

    live(tmp_path, scenario)


@pytest.mark.parametrize(("size", "failure"), [(0, ""), (1, ""), (256_000, ""), (256_001, "ProtocolError")])
def test_lesson_16_notes_at_their_lengths(tmp_path: Path, size: int, failure: str) -> None:
    async def scenario(app: App) -> None:
        assert (await ask(app, "admin.vm.notes.Set", "work", "", b"n" * size)).failure == failure
        assert len(await ok(app, "admin.vm.notes.Get", "work")) == (0 if failure else size)

    live(tmp_path, scenario)


def _mentions(value: object, wanted: set[object]) -> bool:
    """Whether a container of containers has one of these in it."""
    if isinstance(value, dict):
        return any(_mentions(each, wanted) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(_mentions(each, wanted) for each in value)
    return isinstance(value, Qube | str) and value in wanted


def test_nothing_is_kept_of_a_removed_qube(tmp_path: Path) -> None:
    """Also of one that has had news of devices, was to sleep, was being imported to, or has preloaded disposables."""
    async def scenario(app: App) -> None:
        wanted: set[object] = set()
        for number in range(8):
            name = f"q{number}"
            await ok(app, "admin.vm.Create.AppVM", argument="tpl", payload=f"name={name} label=red")
            qube = app.system.qube(name)
            await ok(app, "admin.vm.property.Set", name, "template_for_dispvms", "True")
            await ok(app, "admin.vm.Start", name)
            app.live.qdb_changed(qube, "/qubes-block-devices")
            if number % 2:
                await app.live.settled()
            app.asleep.add(qube.uuid)
            app.suspended.add(qube.uuid)
            app.preloads._later(3600.0, qube)
            app.preloads._lock(qube)
            await ok(app, "admin.vm.Kill", name)
            app.live.qdb_changed(qube, "/qubes-block-devices")      # its warden's last words, read late
            if number < 4:
                await app.live.settled()
            else:
                while app.live._tasks:
                    await asyncio.wait(app.live._tasks)
            await ok(app, "internal.vm.volume.ImportBegin", name, "private", socket=INTERNAL)
            await ok(app, "admin.vm.volume.CloneFrom", name, "private")
            wanted |= {qube, qube.uuid, name}
            await ok(app, "admin.vm.Remove", name)
        parts = (app, app.live, app.devices, app.attachments, app.machines, app.machines.waiting, app.machines.beginning,
                 app.machines.launches, app.preloads, app.making, app.volumes, app.space, app.visibility, app.system)
        held = [f"{type(part).__name__}.{name}" for part in parts for name, value in vars(part).items() if _mentions(value, wanted)]
        assert held == []

    live(tmp_path, scenario)
