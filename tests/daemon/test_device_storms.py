"""Lesson 19: a qube whose devices come and go without end keeps nobody busy, neither qubesd nor the person."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.daemon.test_devices import SDA, plug, scene
from tests.patience import PATIENCE

from cloison.daemon.app import App
from cloison.daemon.attachments import MAX_SETTLING
from cloison.daemon.fake import ask
from cloison.daemon.live import QUIET, TELLINGS, TELLINGS_RATE
from cloison.runtime import unix

FOLDER = "/qubes-block-devices"


class Person:
    """Behind the socket of the device agent: is asked, and says nothing until told to."""

    def __init__(self, app: App) -> None:
        self.questions: list[bytes] = []
        self.asked, self.enough = asyncio.Event(), asyncio.Event()
        self._path = app.parts.paths.qubes + "/device-agent.GUI"

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, sock=unix.listen(self._path, 64))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.questions.append(await reader.read())
        self.asked.set()
        await self.enough.wait()
        writer.write(b"deny\n")
        writer.close()


def asking(tmp_path: Path, scenario: Callable[[App, Person], Awaitable[None]]) -> None:
    """`work` may have any block device of `usb`, if the person says so."""
    async def whole(app: App) -> None:
        rule = await ask(app, "admin.vm.device.block.Assign", "work", "usb+_+_", "mode='ask-to-attach'")
        assert not rule.failure, rule
        person = Person(app)
        async with asyncio.timeout(PATIENCE), await person.listen():
            await scenario(app, person)
            person.enough.set()
            await app.attachments.settled()

    scene(tmp_path, whole)


def test_lesson_19_a_device_list_that_never_rests_is_told_of_less_and_less_often(tmp_path: Path) -> None:
    """Each telling may be hundreds of events; none is lost, the last state is told of in the end."""
    async def scenario(app: App) -> None:
        told: list[str] = []
        app.listen(app.system.dom0, None, lambda _subject, name, _pairs: told.append(name))
        usb = app.system.qube("usb")
        waits: list[float] = []
        for number in range(2 * TELLINGS):
            entries = {f"{FOLDER}/sd{number}/size": "1000"}
            await app.parts.wardens.qdb_write(usb.uuid, dict(entries))
            app.live.qdb_changed(usb, FOLDER)
            await asyncio.wait(app.live._tasks)
            waits.append(app.live._quiet[usb].when() - asyncio.get_running_loop().time())
            app.live._quiet_over(usb)                # as if the time were over
        assert told.count("device-list-change:block") == 2 * TELLINGS
        assert max(waits[:TELLINGS - 1]) <= QUIET
        assert waits[-1] > (TELLINGS - 2) / TELLINGS_RATE
        await ask(app, "admin.vm.Kill", "usb")
        assert usb not in app.live._tellings         # another machine begins anew

    scene(tmp_path, scenario)


def test_lesson_19_a_device_that_flickers_is_asked_about_once_at_a_time(tmp_path: Path) -> None:
    async def scenario(app: App, person: Person) -> None:
        for _ in range(20):
            await plug(app, dict(SDA))
            await plug(app, dict.fromkeys(SDA))
        await person.asked.wait()
        assert len(person.questions) == 1
        person.enough.set()
        await app.attachments.settled()
        await plug(app, dict(SDA))                   # now it is news again
        await app.attachments.settled()
        assert len(person.questions) == 2

    asking(tmp_path, scenario)


def test_lesson_19_a_qube_with_very_many_devices_is_asked_about_so_many(tmp_path: Path) -> None:
    async def scenario(app: App, person: Person) -> None:
        await plug(app, {f"{FOLDER}/sd{number}/size": "1000" for number in range(200)})
        person.enough.set()
        await app.attachments.settled()
        assert len(person.questions) == MAX_SETTLING

    asking(tmp_path, scenario)
