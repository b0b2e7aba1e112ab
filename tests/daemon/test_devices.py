"""Devices as qubes and the host expose them: listings, events as they come and go, and what may not be attached."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.patience import PATIENCE

from cloison.daemon import pci
from cloison.daemon.app import App
from cloison.daemon.fake import ask, fake_app

SDA = {"/qubes-block-devices/sda/desc": "USB_DISK (MYLABEL)", "/qubes-block-devices/sda/size": "1000"}


def scene(tmp_path: Path, scenario: Callable[[App], Awaitable[None]]) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        await ask(app, "admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black")
        for name in ("usb", "work"):
            await ask(app, "admin.vm.Create.AppVM", "dom0", "tpl", f"name={name} label=red")
            assert not (await ask(app, "admin.vm.Start", name)).failure
        await scenario(app)
        await app.live.close()
        await app.machines.close()
        app.parts.store.close()

    asyncio.run(run())


async def plug(app: App, entries: dict[str, str | None]) -> None:
    """What the agent in `usb` does when a device comes or goes."""
    uuid = app.system.qube("usb").uuid
    await app.parts.wardens.qdb_write(uuid, entries)
    app.parts.wardens.on_event(uuid, "qdb-change", {"path": "/qubes-block-devices"})
    await app.live.settled()


def test_what_comes_and_goes_is_listed_and_told(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        heard: list[tuple[str, str, dict[str, str]]] = []
        app.listen(app.system.dom0, None, lambda subject, name, pairs: heard.append((subject, name, dict(pairs))))
        assert (await ask(app, "admin.vm.device.block.Available", "usb")).content == ""
        await plug(app, dict(SDA))
        listing = (await ask(app, "admin.vm.device.block.Available", "usb")).content
        assert listing.startswith("sda::None device_id=':None' port_id='sda' devclass='block' backend_domain='usb' ")
        assert (await ask(app, "admin.vm.device.block.Available", "usb", "sda")).content == listing
        assert (await ask(app, "admin.vm.device.block.Available", "usb", "sdb")).content == ""
        await plug(app, dict.fromkeys(SDA))
        assert (await ask(app, "admin.vm.device.block.Available", "usb")).content == ""
        change = [("usb", "domain-qdb-change:/qubes-block-devices", {"path": "/qubes-block-devices"}),
                  ("usb", "device-list-change:block", {})]
        assert heard == [*change, ("usb", "device-added:block", {"device": "usb:sda::None"}),
                         *change, ("usb", "device-removed:block", {"port": "usb:sda"})]

    scene(tmp_path, scenario)


def test_a_path_that_is_not_watched_is_no_event(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        heard: list[str] = []
        app.listen(app.system.dom0, None, lambda _subject, name, _pairs: heard.append(name))
        app.parts.wardens.on_event(app.system.qube("usb").uuid, "qdb-change", {"path": "/x\n\x1b[31m"})
        assert heard == []

    scene(tmp_path, scenario)


def test_attach_says_what_is_wrong_first(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        async def attach(dest: str, argument: str) -> str:
            return (await ask(app, "admin.vm.device.block.Attach", dest, argument)).failure

        assert await attach("work", "usb+sda") == "ProtocolError"
        assert await attach("work", "nobody+sda") == "QubesVMNotFoundError"
        await plug(app, dict(SDA))
        await ask(app, "admin.vm.device.denied.Add", "work", "", "b******")
        assert await attach("work", "usb+sda") == "PermissionDenied"
        await ask(app, "admin.vm.Kill", "work")
        assert await attach("work", "usb+sda") == "QubesVMNotRunningError"
        assert (await ask(app, "admin.vm.device.block.Detach", "work", "usb+sda")).failure == "DeviceNotAssigned"

    scene(tmp_path, scenario)


def make_pci(bus: Path, path: str, **files: str) -> None:
    folder = bus.parent / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    (bus / folder.name).symlink_to(folder)


def test_the_hosts_pci_devices_have_the_way_to_them_as_port(tmp_path: Path) -> None:
    bus = tmp_path / "bus"
    bus.mkdir()
    make_pci(bus, "pci0000:00/0000:00:1f.2", vendor="0x8086", device="0x2922", **{"class": "0x010601"})
    make_pci(bus, "pci0000:00/0000:00:0d.0", vendor="0x8086", device="0x1111", secondary_bus_number="1", **{"class": "0x060400"})
    make_pci(bus, "pci0000:00/0000:00:0d.0/0000:01:00.0", vendor="0x10de", device="0x2222", **{"class": "0x030000"})
    make_pci(bus, "pci0001:00/0001:00:02.0", vendor="0x1af4", device="0x1000", **{"class": "0x020000"})
    (bus / "junk").mkdir()
    (bus / "0000:09:00.0").symlink_to(tmp_path / "gone")
    found = pci.devices(str(bus))
    assert [each.device.port for each in found] == ["0001_00_02.0", "00_0d.0", "00_0d.0-00_00.0", "00_1f.2"]
    assert found[3].line == ("00_1f.2:0x8086:0x2922::p010601 device_id='0x8086:0x2922::p010601' port_id='00_1f.2' devclass='pci' "
                             "backend_domain='dom0' _sbdf='0000:00:1f.2' interfaces='p010601'\n")
    assert pci.devices(str(tmp_path / "none")) == []


def test_lesson_19_a_qube_that_writes_without_end_is_told_of_now_and_then(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        heard: list[str] = []
        app.listen(app.system.dom0, None, lambda _subject, name, _pairs: heard.append(name))
        uuid = app.system.qube("usb").uuid
        for _ in range(10_000):
            app.parts.wardens.on_event(uuid, "qdb-change", {"path": "/qubes-block-devices"})
        await app.live.settled()
        assert heard == ["domain-qdb-change:/qubes-block-devices", "device-list-change:block"]
        app.parts.wardens.on_event(uuid, "qdb-change", {"path": "/qubes-usb-devices"})
        await app.live.settled()
        assert heard[2:] == ["domain-qdb-change:/qubes-usb-devices", "device-list-change:usb"]

    scene(tmp_path, scenario)


def test_lesson_19_what_comes_while_it_is_told_is_told_afterwards(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        uuid, twice = app.system.qube("usb").uuid, asyncio.Event()
        times = iter([lambda: app.parts.wardens.on_event(uuid, "qdb-change", {"path": "/qubes-usb-devices"}), twice.set])
        app.listen(app.system.dom0, None, lambda _subject, name, _pairs: next(times)())
        app.parts.wardens.on_event(uuid, "qdb-change", {"path": "/qubes-usb-devices"})
        async with asyncio.timeout(PATIENCE):
            await twice.wait()

    scene(tmp_path, scenario)


def test_denied_interfaces(tmp_path: Path) -> None:
    async def scenario(app: App) -> None:
        for method, payload, failure in (
            ("Add", "b******u03****", ""), ("Add", "b******", ""), ("Add", "b*****", "QubesValueError"),
            ("Add", "b******b******", "ProtocolError"), ("Add", "x******", "QubesPropertyValueError"), ("Add", "", ""),
            ("Remove", "m******", ""), ("Remove", "zzzzzzz", ""), ("Remove", "b*****", "QubesValueError"),
            ("Remove", "b******", ""),
        ):
            assert (await ask(app, f"admin.vm.device.denied.{method}", "work", "", payload)).failure == failure, (method, payload)
        assert (await ask(app, "admin.vm.device.denied.List", "work")).content == "u03****"
        await ask(app, "admin.vm.device.denied.Remove", "work", "", "all")
        assert (await ask(app, "admin.vm.device.denied.List", "work")).content == ""

    scene(tmp_path, scenario)
