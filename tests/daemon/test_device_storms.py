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
