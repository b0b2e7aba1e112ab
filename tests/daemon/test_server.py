"""The sockets: framing and limits, streams, and a disposable's lease, over real connections."""
from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from tests.daemon.sockets import request, served

from cloison.admin.methods import ADMIN
from cloison.daemon import connection as connection_module
from cloison.daemon import server as server_module
from cloison.daemon.app import App
from cloison.daemon.fake import ask
from cloison.errors import CloisonError, StorageError
from cloison.wire.admin import EventDecoder

FRAMING = b"2\0ProtocolError\0\0"


@pytest.mark.parametrize(("data", "reply"), [
    (b"", b""),
    (b"\0", FRAMING + b"a request must have four words and a NUL: 1\0"),
    (b"admin.vm.List", FRAMING + b"a request must have four words and a NUL: 1\0"),
    (b"admin.vm.List dom0 name dom0", FRAMING + b"a request must have four words and a NUL: 4\0"),
    (b"admin.vm.List dom0 name\0", FRAMING + b"a request must have four words and a NUL: 3\0"),
    (b"admin.vm.List dom0 keyword dispvm\0", FRAMING + b"the destination must be a name or the keyword adminvm\0"),
    (b"admin.vmclass.List+ dom0 keyword adminvm\0", b"0\0AppVM\nTemplateVM\nStandaloneVM\nAdminVM\nDispVM\nRemoteVM\n"),
    (b"admin.vm.feature.Set+x dom0 name dom0\0" + b"x" * 65536, FRAMING + b"the request has more than 65536 bytes\0"),
    (b"x" * (3 << 20), FRAMING + b"the request has more than 65536 bytes\0"),
    (b"x" * (5 << 20), b""),
])
def test_framing(tmp_path: Path, data: bytes, reply: bytes) -> None:
    async def scenario(_: App, path: str) -> None:
        assert await request(path, data) == reply

    served(tmp_path, scenario)


@pytest.mark.parametrize(("call", "failure"), [
    (b"admin.nope+ dom0 name dom0\0", b"ProtocolError"),
    (b"admin.vm.List+ nobody name dom0\0", b"QubesVMNotFoundError"),
    (b"admin.vm.List+ dom0 name nobody\0", b"QubesVMNotFoundError"),
    (b"admin.vm.List+ dom0 name uuid:xx\0", b"QubesVMInvalidUUIDError"),
    (b"admin.vm.List+x dom0 name dom0\0", b"ProtocolError"),
    (b"admin.vm.List+ dom0 name dom0\0x", b"ProtocolError"),
    (b"admin.vm.firewall.Get+ dom0 name dom0\0", b"ProtocolError"),
    (b"internal.GetSystemInfo+ dom0 name dom0\0", b"ProtocolError"),
    (b"admin.vm.tag.Set+%s%n dom0 name dom0\0", b"QubesInvalidTagError"),
])
def test_refusals(tmp_path: Path, call: bytes, failure: bytes) -> None:
    async def scenario(_: App, path: str) -> None:
        reply = await request(path, call)
        kind, told, sentence, rest = reply.removeprefix(b"2\0").split(b"\0")
        assert kind == failure and sentence and not rest
        assert told == (b"hint: qvm-ls lists the qubes." if failure == b"QubesVMNotFoundError" and b" dom0 name" in call else b"")
        assert b"%" not in reply.replace(b"%%", b"")

    served(tmp_path, scenario)


class Failing(CloisonError):
    hint = "Do this: 100% of it."


async def _fail(cause: Exception | None) -> str:
    raise (StorageError("it is so") if cause else Failing("it is so")) from cause


@pytest.mark.parametrize("cause", [None, Failing("below"), Failing()])
@pytest.mark.parametrize("method", ["admin.vm.Start", "admin.vm.Stats", "admin.vm.feature.List"])
def test_a_hint_reaches_the_host_s_tools_and_no_qube(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, cause: Exception | None,
) -> None:
    """Whether the call waits, streams or is answered at once, and whether the failure or its cause says what helps. In the place
    that Qubes OS's clients don't look at: what they see of a failure is as it was.
    """
    monkeypatch.setitem(ADMIN, method, replace(ADMIN[method], handler=lambda call: _fail(cause)))
    sentence = b"it is so\0"
    kind = b"2\0StoragePoolException\0" if cause else b"2\0QubesException\0"

    async def scenario(app: App, path: str) -> None:
        assert not (await ask(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")).failure
        call = method.encode() + b"+ %s name tpl\0"
        assert await request(path, call % b"dom0") == kind + b"hint: Do this: 100% of it.\0" + sentence
        assert await request(path, call % b"tpl") == kind + b"\0" + sentence

    served(tmp_path, scenario)


def test_no_answer_before_the_half_close(tmp_path: Path) -> None:
    async def scenario(_: App, path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"admin.label.List+ dom0 name dom0\0")
        assert await request(path, b"admin.label.Index+red dom0 name dom0\0") == b"0\x001"
        assert reader.at_eof() is False
        writer.write_eof()
        assert (await reader.read()).startswith(b"0\0red\n")
        writer.close()

    served(tmp_path, scenario)


def test_of_too_many_unfinished_callers_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_UNFINISHED", 3)

    async def scenario(_: App, path: str) -> None:
        idle = [await asyncio.open_unix_connection(path) for _ in range(5)]
        assert (await request(path, b"admin.label.Index+red dom0 name dom0\0")) == b"0\x001"
        assert await idle[0][0].read() == b""
        for _, writer in idle:
            writer.close()

    served(tmp_path, scenario)


def test_events_until_the_caller_hangs_up(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"admin.Events+ dom0 name dom0\0")
        writer.write_eof()
        assert await reader.readexactly(len(b"1\0\0connection-established\0\0")) == b"1\0\0connection-established\0\0"
        await request(path, b"admin.vm.tag.Set+new dom0 name dom0\0")
        decoder = EventDecoder()
        while (event := decoder.next_event()) is None:
            decoder.feed(await reader.read(4096))
        assert (event.subject, event.event, event.pairs) == ("dom0", "domain-tag-add:new", (("tag", "new"),))
        writer.close()
        while app.events.listeners:
            await request(path, b"admin.label.Index+red dom0 name dom0\0")

    served(tmp_path, scenario)


def test_a_listener_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_BACKLOG", 1000)

    async def scenario(app: App, path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        writer.write(b"admin.Events+ dom0 name dom0\0")
        writer.write_eof()
        await reader.readexactly(10)
        while not app.events.listeners:
            await request(path, b"admin.label.Index+red dom0 name dom0\0")
        for _ in range(40000):
            if not app.events.listeners:
                break
            with app.transaction():
                app.system.journal.emit("dom0", "firewall-changed", number="x" * 1000)
        assert not app.events.listeners
        writer.close()

    served(tmp_path, scenario)


async def furnish(app: App) -> None:
    for method, dest, argument, payload in (
        ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"),
        ("admin.vm.Create.AppVM", "dom0", "tpl", "name=dvm label=red"),
        ("admin.vm.property.Set", "dvm", "template_for_dispvms", "True"),
    ):
        assert not (await ask(app, method, dest, argument, payload)).failure


def test_a_disposable_lives_as_long_as_its_caller(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        await furnish(app)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"cloison.Disposable+ dom0 name dvm\0uuid")
        writer.write_eof()
        decoder = EventDecoder()
        while (event := decoder.next_event()) is None:
            decoder.feed(await reader.read(4096))
        pairs = dict(event.pairs)
        assert (event.event, pairs["name"], pairs["start"]) == ("disposable-ready", event.subject, "warm")
        qube = app.system.qube(event.subject)
        assert (qube.uuid, str(qube.power)) == (pairs["uuid"], "Running")
        writer.close()
        await app.stopped(qube)
        assert qube.name not in app.system.qubes

    served(tmp_path, scenario)


def test_a_disposable_that_powers_off_ends_the_call(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        await furnish(app)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"cloison.Disposable+ dom0 name dvm\0")
        writer.write_eof()
        await reader.readuntil(b"warm\0\0")
        name = next(name for name in app.system.qubes if name.startswith("disp"))
        assert await request(path, b"admin.vm.Kill+ dom0 name %b\0" % name.encode()) == b"0\0"
        assert await reader.read() == b""
        assert name not in app.system.qubes
        writer.close()

    served(tmp_path, scenario)


def test_sockets_are_for_this_user_only(tmp_path: Path) -> None:
    async def scenario(_: App, path: str) -> None:
        assert os.stat(path).st_mode & 0o077 == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    served(tmp_path, scenario)


def test_a_task_of_the_server_that_fails_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ValueError("unforeseen")

    async def scenario(app: App, _: str) -> None:
        server = server_module.Server(app, app.parts.paths, {})
        await asyncio.wait({server.keep(fails())})
        await asyncio.sleep(0)
        assert not server._tasks

    served(tmp_path, scenario)
    assert "fails has ended: unforeseen" in caplog.text
