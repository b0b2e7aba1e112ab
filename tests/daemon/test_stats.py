"""The stream of statistics: its frames, its arithmetic, and its end."""
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.daemon.sockets import request, served

from cloison.admin.calls import listing
from cloison.admin.qubesd import Call
from cloison.daemon.app import App
from cloison.daemon.fake import FakeHost, ask
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.wardens import Usage
from cloison.model.domains import Qube
from cloison.wire.admin import Event, EventDecoder

FIELDS = ["memory_kb", "memory_assigned_total", "memory_assigned_usable", "memory_with_swap_used", "cpu_time", "cpu_usage",
          "online_vcpus"]


async def furnish(app: App) -> None:
    await ask(app, "admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black")
    for name in ("one", "two", "off"):
        await ask(app, "admin.vm.Create.AppVM", "dom0", "tpl", f"name={name} label=red")
    for name in ("one", "two"):
        assert not (await ask(app, "admin.vm.Start", name)).failure
    await ask(app, "admin.property.Set", "dom0", "stats_interval", "1")


async def read(reader: asyncio.StreamReader, decoder: EventDecoder, count: int) -> list[Event]:
    events: list[Event] = []
    while len(events) < count:
        event = decoder.next_event()
        if event is not None:
            events.append(event)
        else:
            decoder.feed(await reader.read(4096))
    return events


def test_running_qubes_are_reported_round_by_round(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        await furnish(app)
        host, wardens = app.parts.host, app.parts.wardens
        assert isinstance(host, FakeHost) and isinstance(wardens, FakeWardens)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"admin.vm.Stats+ dom0 name dom0\0")
        writer.write_eof()
        decoder = EventDecoder()
        hello, dom0, one, two = await read(reader, decoder, 4)
        assert (hello.subject, hello.event) == ("", "connection-established")
        assert [event.subject for event in (dom0, one, two)] == ["dom0", "one", "two"]
        assert all([key for key, _ in event.pairs] == FIELDS for event in (dom0, one))
        assert dict(one.pairs)["cpu_usage"] == dict(dom0.pairs)["cpu_usage"] == "0"
        assert dict(dom0.pairs)["cpu_time"] == "98000", "of 100 s two were the qubes'"
        assert dict(dom0.pairs)["memory_kb"] == str(host.dom0_memory * 1024)
        host.time += 2                          # two seconds, in which one of two processors was half busy
        wardens.used = Usage(409600, 2 * 10**9)
        host.worked += 6 * 10**9                # and 4 of the host's 8 processors half, for itself
        host_later, later = (dict(event.pairs) for event in await read(reader, decoder, 2))
        assert (later["cpu_usage"], later["cpu_time"], later["online_vcpus"]) == ("25", "2000", "2")
        assert (host_later["cpu_usage"], host_later["cpu_time"], host_later["online_vcpus"]) == ("25", "102000", "8")
        writer.close()

    served(tmp_path, scenario)


def test_what_a_qube_did_is_not_the_hosts_when_it_has_ended_and_a_new_start_counts_anew(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        await furnish(app)
        host = app.parts.host
        assert isinstance(host, FakeHost)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"admin.vm.Stats+ dom0 name dom0\0")
        writer.write_eof()
        decoder = EventDecoder()
        await read(reader, decoder, 4)
        await request(path, b"admin.vm.Kill+ dom0 name two\0")
        host.time += 1
        dom0, one = await read(reader, decoder, 2)
        assert (dom0.subject, one.subject, dict(dom0.pairs)["cpu_time"]) == ("dom0", "one", "98000")
        assert dict(dom0.pairs)["cpu_usage"] == "0"
        await request(path, b"admin.vm.Start+ dom0 name two\0")
        host.time += 1
        host.worked += 10**9                    # what the new machine has used
        dom0, _, two = await read(reader, decoder, 3)
        assert (two.subject, dict(two.pairs)["cpu_usage"], dict(dom0.pairs)["cpu_time"]) == ("two", "0", "98000")
        writer.close()

    served(tmp_path, scenario)


def test_a_qube_is_told_of_those_alone_that_a_list_would_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(app: App, _path: str) -> None:
        await furnish(app)
        asked: list[tuple[str, str]] = []

        def allows(source: Qube, method: str, target: str, argument: str = "") -> bool:
            asked.append((source.name, method))
            return target == "two"

        monkeypatch.setattr(app.visibility, "allows", allows)
        for dest, seen in (("dom0", ["", "two"]), ("one", ["", "one"])):     # of one qube: the call itself was decided on
            told: list[str] = []
            one, to = app.system.qube("one"), app.system.qube(dest)
            call = Call(app, one, to, "", b"", lambda subject, *_, told=told: told.append(subject))
            reporting = asyncio.ensure_future(listing.stats(call))
            await asyncio.sleep(0)
            call.hangup.set()
            await reporting
            assert told == seen
        assert set(asked) == {("one", "admin.vm.List")}

    served(tmp_path, scenario)


def test_a_stream_of_one_qube_ends_with_it(tmp_path: Path) -> None:
    async def scenario(app: App, path: str) -> None:
        await furnish(app)
        halted = await request(path, b"admin.vm.Stats+ dom0 name off\0")
        assert halted.startswith(b"1\0\0connection-established\0\0002\0QubesVMNotRunningError\0hint: Start or unpause it first.\0")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"admin.vm.Stats+ dom0 name one\0")
        writer.write_eof()
        await reader.readuntil(b"vm-stats")
        assert (await request(path, b"admin.vm.Kill+ dom0 name one\0")) == b"0\0"
        assert b"2\0QubesVMNotRunningError\0hint: " in await reader.read()
        writer.close()

    served(tmp_path, scenario)
