"""Channels over Unix sockets: the same promises as over a port, and those of the paths in the folder."""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.descriptors import watchers
from tests.patience import PATIENCE
from tests.runtime.ports import News, Recorder, at_rest

from cloison.runtime import vchan_dialer, vchan_socket
from cloison.runtime.vchan_dialer import file_name
from cloison.runtime.vchan_socket import MAX_EARLY, GivenVchan, VchanSocket, folder
from cloison.wire.mux import WINDOW, Address

ADDRESS, OTHER = Address(0, 7, 513), Address(0, 7, 514)
MEGABYTE = 1 << 20


class End(News):
    """One end of a channel that may come later."""

    def __init__(self, vchans: VchanSocket, *, stuck: bool = False) -> None:
        super().__init__()
        self.vchans, self._stuck = vchans, stuck
        self.recorder: Recorder | None = None

    def accept(self, channel: int) -> Recorder:
        self.recorder = Recorder(self.vchans, channel, stuck=self._stuck)
        self.tell()
        return self.recorder

    def open(self, address: Address = ADDRESS) -> Recorder:
        recorder = Recorder(self.vchans, stuck=self._stuck)
        recorder.channel = self.vchans.open(address, recorder)
        return recorder

    async def accepted(self) -> Recorder:
        await self.until(lambda: self.recorder is not None)
        assert self.recorder is not None
        return self.recorder


def with_vchans(place: Path, work: Callable[[VchanSocket, VchanSocket], Awaitable[None]]) -> None:
    async def run() -> None:
        server, client = VchanSocket(str(place)), VchanSocket(str(place))
        fds = len(os.listdir("/proc/self/fd"))
        try:
            await work(server, client)
        finally:
            server.end()
            client.end()
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) <= fds

    asyncio.run(run())
    assert os.listdir(place) == []


@pytest.mark.parametrize("server_first", [True, False])
def test_bytes_both_ways_whoever_comes_first(tmp_path: Path, server_first: bool) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        end = End(server)
        if server_first:
            server.listen(ADDRESS, end.accept)
        ours = End(client).open()
        ours.send(bytes(MEGABYTE))
        if not server_first:
            server.listen(ADDRESS, end.accept)
        theirs = await end.accepted()
        theirs.send(b"x" * MEGABYTE)
        await theirs.heard(MEGABYTE)
        await ours.heard(MEGABYTE)
        assert (theirs.got, ours.got) == (bytes(MEGABYTE), b"x" * MEGABYTE)

    with_vchans(tmp_path, work)


def test_path_is_gone_as_soon_as_the_client_is_accepted(tmp_path: Path) -> None:
    """qrexec.md 2.2: a path that stays lets the port's next user meet the former one."""
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        end = End(server)
        server.listen(ADDRESS, end.accept)
        assert os.listdir(tmp_path) == [file_name(ADDRESS)] == ["vchan.0.7.513.sock"]
        End(client).open()
        await end.accepted()
        assert os.listdir(tmp_path) == []

    with_vchans(tmp_path, work)


def test_a_port_used_again_at_once_reaches_its_new_server(tmp_path: Path) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        for number in range(300):
            end = End(server)
            server.listen(ADDRESS, end.accept)
            ours = End(client).open()
            theirs = await end.accepted()
            theirs.send(b"%d" % number)
            server.close(theirs.channel)
            await ours.until_ended()
            assert ours.got == b"%d" % number

    with_vchans(tmp_path, work)


@pytest.mark.parametrize("connected", [True, False])
def test_what_was_sent_before_the_close_arrives(tmp_path: Path, connected: bool) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        end = End(server)
        if connected:
            server.listen(ADDRESS, end.accept)
        ours = End(client).open()
        if connected:
            await end.accepted()
        assert client.send(ours.channel, bytes(65536)) == 65536
        client.close(ours.channel)
        assert client.send(ours.channel, b"swallowed") == 9
        if not connected:
            server.listen(ADDRESS, end.accept)
        theirs = await end.accepted()
        await theirs.until_ended()
        assert theirs.got == bytes(65536)

    with_vchans(tmp_path, work)


def test_a_peer_that_still_sends_to_who_has_closed_meets_no_error(tmp_path: Path) -> None:
    """Other transports have none there: what it sends is read, and thrown away."""
    async def work(server: VchanSocket, _client: VchanSocket) -> None:
        end, loop = End(server), asyncio.get_running_loop()
        server.listen(ADDRESS, end.accept)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)
            peer.connect(str(tmp_path / file_name(ADDRESS)))
            theirs = await end.accepted()
            server.send(theirs.channel, b"last words")
            server.close(theirs.channel)
            assert await loop.sock_recv(peer, 100) == b"last words"
            assert await loop.sock_recv(peer, 100) == b""
            async with asyncio.timeout(PATIENCE):
                await loop.sock_sendall(peer, bytes(MEGABYTE))
        assert not theirs.got

    with_vchans(tmp_path, work)


def test_what_nobody_comes_for_is_not_waited_for_longer_than_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vchan_dialer, "PATIENCE", 0.01)

    async def work(_server: VchanSocket, client: VchanSocket) -> None:
        kept, closed = End(client).open(), End(client).open(Address(0, 7, 999))
        client.send(closed.channel, b"for nobody")
        client.close(closed.channel)
        async with asyncio.timeout(PATIENCE):
            await client.flushed()
        await kept.until_ended()
        assert not closed.ended, "who has closed hears nothing more"

    with_vchans(tmp_path, work)


@pytest.mark.parametrize("much", [1, MAX_EARLY])
def test_early_bytes_that_have_left_keep_the_loop_busy_no_longer(tmp_path: Path, much: int) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        ours, end = End(client).open(), End(server)
        ours.send(bytes(much))
        server.listen(ADDRESS, end.accept)
        await (await end.accepted()).heard(much)
        stream = client._channels[ours.channel]._stream
        assert stream is not None and not asyncio.get_running_loop().remove_writer(stream)

    with_vchans(tmp_path, work)


def test_stuck_reader_stops_its_writer_and_hears_all_after_a_hangup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vchan_socket, "PARTING", 0.01)

    async def work(server: VchanSocket, client: VchanSocket) -> None:
        end = End(server, stuck=True)
        server.listen(ADDRESS, end.accept)
        ours = End(client).open()
        theirs = await end.accepted()
        total = 0
        while sent := client.send(ours.channel, bytes(65536)):
            total += sent
            await theirs.heard(min(total, WINDOW))
        assert total >= 65536
        client.close(ours.channel)
        await theirs.until_ended()
        assert len(theirs.got) == total

    with_vchans(tmp_path, work)


def test_stuck_reader_goes_on(tmp_path: Path) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        end = End(server, stuck=True)
        server.listen(ADDRESS, end.accept)
        ours = End(client).open()
        theirs = await end.accepted()
        ours.send(bytes(8 * MEGABYTE))
        await theirs.heard(WINDOW)
        assert ours.to_send
        theirs.stuck = False
        server.consumed(theirs.channel, len(theirs.got))
        await theirs.heard(8 * MEGABYTE)
        await at_rest()

    with_vchans(tmp_path, work)


def test_early_bytes_are_bounded(tmp_path: Path) -> None:
    async def work(_server: VchanSocket, client: VchanSocket) -> None:
        ours = End(client).open()
        assert client.send(ours.channel, bytes(2 * MAX_EARLY)) == MAX_EARLY
        assert client.send(ours.channel, b"x") == 0

    with_vchans(tmp_path, work)


def test_a_foreign_listener_that_listens_late_is_found(tmp_path: Path) -> None:
    """It binds first and listens then, as the reference's library does: in between it refuses."""
    async def work(_server: VchanSocket, client: VchanSocket) -> None:
        ours = End(client).open()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / file_name(ADDRESS)))
            refused = socket.socket(socket.AF_UNIX)
            with refused, pytest.raises(ConnectionRefusedError):
                refused.connect(str(tmp_path / file_name(ADDRESS)))
            await asyncio.to_thread(len, "")
            listener.listen(1)
            listener.settimeout(PATIENCE)
            stream, _ = await asyncio.to_thread(listener.accept)
            with stream:
                stream.sendall(b"late")
                await ours.heard(4)
        (tmp_path / file_name(ADDRESS)).unlink()

    with_vchans(tmp_path, work)


def test_giving_up_before_the_server_comes(tmp_path: Path) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        ours = End(client).open()
        client.close(ours.channel)
        end = End(server)
        server.listen(ADDRESS, end.accept)
        other = End(client).open()
        (await end.accepted()).send(b"for the second")
        await other.heard(14)
        assert not ours.got

    with_vchans(tmp_path, work)


def test_a_new_listener_replaces_the_former_one(tmp_path: Path) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        first, second = End(server), End(server)
        server.listen(ADDRESS, first.accept)
        server.listen(ADDRESS, second.accept)
        End(client).open()
        await second.accepted()
        assert first.recorder is None
        server.listen(ADDRESS, first.accept)
        server.unlisten(ADDRESS)
        server.unlisten(ADDRESS)
        assert os.listdir(tmp_path) == []

    with_vchans(tmp_path, work)


def test_end_tells_every_handler(tmp_path: Path) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        end = End(server)
        server.listen(ADDRESS, end.accept)
        ours = [End(client).open(), End(client).open(Address(0, 7, 999))]
        theirs = await end.accepted()
        client.end()
        assert [each.ended for each in ours] == [True, True]
        await theirs.until_ended()

    with_vchans(tmp_path, work)


@contextlib.asynccontextmanager
async def raw_peer(place: Path, server: VchanSocket, *, stuck: bool = False) -> AsyncIterator[tuple[Recorder, socket.socket]]:
    """The server's end of a channel, and the socket of a client that is none of ours."""
    end = End(server, stuck=stuck)
    server.listen(ADDRESS, end.accept)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        peer.connect(str(place / file_name(ADDRESS)))
        yield await end.accepted(), peer


async def foreign_server(place: Path, address: Address) -> socket.socket:
    """The server's end of a channel, without our kind of server."""
    path = place / file_name(address)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(1)
        async with asyncio.timeout(PATIENCE):
            stream, _ = await asyncio.get_running_loop().sock_accept(listener)
    path.unlink()
    return stream


async def turns() -> None:
    """Whatever is ready has its turn."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_closes_what_it_accepts_hangs_up_on_the_client(tmp_path: Path) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        def accept(channel: int) -> Recorder:
            server.close(channel)
            return Recorder(server, channel)

        server.listen(ADDRESS, accept)
        ours = End(client).open()
        await ours.until_ended()
        async with asyncio.timeout(PATIENCE):
            await server.flushed()

    with_vchans(tmp_path, work)


def test_bytes_for_a_server_that_has_gone_are_waited_for_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It listens, takes nothing and goes: who has closed with bytes on their way is not kept."""
    monkeypatch.setattr(vchan_dialer, "BUFFER", 1)

    async def work(_server: VchanSocket, client: VchanSocket) -> None:
        closed, kept = End(client).open(), End(client).open(OTHER)
        for channel in (closed.channel, kept.channel):
            client.send(channel, bytes(MAX_EARLY))
        client.close(closed.channel)
        flushed = asyncio.ensure_future(client.flushed())
        servers = [await foreign_server(tmp_path, address) for address in (ADDRESS, OTHER)]
        await turns()
        assert not flushed.done(), "the kernel does not take it all"
        for server in servers:
            server.close()
        async with asyncio.timeout(PATIENCE):
            await flushed
        await kept.until_ended()
        assert client.send(kept.channel, b"swallowed") == 9

    with_vchans(tmp_path, work)


@pytest.mark.parametrize("how", ["its time", "the end"])
def test_a_peer_that_never_hangs_up_after_us_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(vchan_socket, "PARTING", 0.01 if how == "its time" else 3600.0)

    async def work(server: VchanSocket, _client: VchanSocket) -> None:
        async with raw_peer(tmp_path, server) as (theirs, peer):
            server.close(theirs.channel)
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""
                if how == "the end":
                    await asyncio.get_running_loop().sock_sendall(peer, b"still read")
                    server.end()
                with pytest.raises(ConnectionError):
                    while True:
                        await asyncio.get_running_loop().sock_sendall(peer, b"x")
                        await asyncio.sleep(0)

    with_vchans(tmp_path, work)


def test_reading_goes_on_when_less_than_half_a_window_waits_and_is_watched_only_while_it_stands(tmp_path: Path) -> None:
    async def work(server: VchanSocket, _client: VchanSocket) -> None:
        async with raw_peer(tmp_path, server, stuck=True) as (theirs, peer):
            before = watchers()
            sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(peer, bytes(8 * MEGABYTE)))
            await theirs.heard(WINDOW)
            await turns()
            got = len(theirs.got)
            assert got < WINDOW + vchan_socket.READ and watchers() == before + 1
            await at_rest()
            server.consumed(theirs.channel, got - WINDOW // 2)
            await turns()
            assert len(theirs.got) == got, "half a window still waits"
            server.consumed(theirs.channel, 1)
            assert watchers() == before
            await theirs.heard(got + 1)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    with_vchans(tmp_path, work)


def test_the_end_is_told_once_to_each_who_has_not_closed(tmp_path: Path) -> None:
    async def work(server: VchanSocket, client: VchanSocket) -> None:
        ends: list[str] = []

        class Told(Recorder):
            def closed(self) -> None:
                ends.append(f"{self.channel}")
                client.close(self.channel)
                assert client.send(self.channel, b"swallowed") == 9
                client.consumed(self.channel, 1)

        server.listen(ADDRESS, End(server).accept)
        for address in (ADDRESS, OTHER, Address(0, 7, 515)):
            told = Told(client)
            told.channel = client.open(address, told)
        client.close(told.channel)
        await turns()
        client.end()
        client.end()
        assert ends == ["1", "2"]

    with_vchans(tmp_path, work)


def test_a_socket_that_came_with_a_request_is_the_one_channel(tmp_path: Path) -> None:
    async def run() -> None:
        ours, peer = socket.socketpair()
        peer.setblocking(False)
        given = GivenVchan(ours)
        recorder = Recorder(given)
        recorder.channel = given.open(ADDRESS, recorder)
        with peer:
            recorder.send(b"question")
            assert peer.recv(100) == b"question"
            peer.send(b"answer")
            await recorder.heard(6)
        await recorder.until_ended()
        assert recorder.got == b"answer"
        given.end()

    asyncio.run(run())


def test_folder_and_long_paths(tmp_path: Path) -> None:
    assert folder({}) == "/var/run/vchan"
    assert folder({"VCHAN_SOCKET_DIR": "/x"}) == "/x"
    deep = tmp_path / ("d" * 120)
    deep.mkdir()

    async def work(server: VchanSocket, client: VchanSocket) -> None:
        end = End(server)
        server.listen(ADDRESS, end.accept)
        End(client).open().send(b"x")
        await (await end.accepted()).heard(1)

    with_vchans(deep, work)
