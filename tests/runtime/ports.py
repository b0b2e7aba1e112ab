"""Two ports wired together, and a handler that writes down what it hears: for tests of everything that speaks over a Port."""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from tests.patience import PATIENCE

from cloison.runtime.port import Channels, Handler, Port
from cloison.wire.mux import GUEST, HOST, Address


async def at_rest() -> None:
    """Fails for a loop in which something is ready for ever: it would keep a processor busy."""
    loop: Any = asyncio.get_running_loop()
    quiet = 0
    for _ in range(1000):
        await asyncio.sleep(0)
        quiet = 0 if loop._selector.select(0) else quiet + 1
        if quiet > 3:
            return
    raise AssertionError("the loop never rests")


class News:
    """Waiting for a condition that callbacks bring about; whoever changes something calls `tell`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        self._event.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._event.clear()
                await self._event.wait()


class Recorder(News):
    """A Handler that keeps all it gets, and reads at once unless `stuck`."""

    def __init__(self, port: Channels, channel: int = 0, *, stuck: bool = False) -> None:
        super().__init__()
        self.port, self.channel, self.stuck = port, channel, stuck
        self.got = bytearray()
        self.ended = False
        self.to_send = memoryview(b"")

    def send(self, data: bytes) -> None:
        self.to_send = memoryview(bytes(self.to_send) + data)
        self.writable()

    def data(self, untrusted: bytes) -> None:
        self.got += untrusted
        if not self.stuck:
            self.port.consumed(self.channel, len(untrusted))
        self.tell()

    async def heard(self, size: int) -> None:
        """Until so many bytes have come."""
        await self.until(lambda: len(self.got) >= size)

    async def until_ended(self) -> None:
        await self.until(lambda: self.ended)

    def writable(self) -> None:
        if self.to_send:
            self.to_send = self.to_send[self.port.send(self.channel, self.to_send):]
        self.tell()

    def closed(self) -> None:
        self.ended = True
        self.tell()


class Side(News):
    """One port: what its peer opened and said, and why it ended. `accept` gives the handler of a new channel."""

    def __init__(self, stream: socket.socket, side: int) -> None:
        super().__init__()
        stream.setblocking(False)
        self.stream = stream
        self.controls: list[bytes] = []
        self.opened: list[tuple[int, Address]] = []
        self.reasons: list[str] = []
        self.accept: Callable[[int, Address], Handler | None] = lambda _channel, _address: None
        self.port = Port(stream.fileno(), side, on_control=self._control, on_open=self._open, on_end=self._end)

    def _control(self, message: bytes) -> None:
        self.controls.append(message)
        self.tell()

    def _open(self, channel: int, address: Address) -> Handler | None:
        self.opened.append((channel, address))
        self.tell()
        return self.accept(channel, address)

    def _end(self, reason: str) -> None:
        self.reasons.append(reason)
        self.tell()

    def recorder(self, address: Address, *, stuck: bool = False) -> Recorder:
        """A channel opened from here, and its recorder."""
        recorder = Recorder(self.port, stuck=stuck)
        recorder.channel = self.port.open(address, recorder)
        return recorder

    def record_all(self, made: dict[int, Recorder], *, stuck: bool = False) -> None:
        """Every channel the peer opens gets a recorder, kept in `made` by the address's port."""
        def accept(channel: int, address: Address) -> Handler:
            made[address.port] = Recorder(self.port, channel, stuck=stuck)
            self.tell()
            return made[address.port]
        self.accept = accept


class Wire:
    """A host's and a guest's port over one socket pair, inside a running loop."""

    def __enter__(self) -> tuple[Side, Side]:
        ours, theirs = socket.socketpair()
        self._sides = Side(ours, HOST), Side(theirs, GUEST)
        return self._sides

    def __exit__(self, *_: object) -> None:
        for side in self._sides:
            side.port.end("the test is over")
            side.stream.close()


class Hostile(News):
    """The raw other end of a Port: sends any bytes, collects any bytes."""

    def __init__(self, stream: socket.socket) -> None:
        super().__init__()
        stream.setblocking(False)
        self.stream = stream
        self.got = bytearray()
        self.hung_up = False
        asyncio.get_running_loop().add_reader(stream, self._readable)

    def _readable(self) -> None:
        try:
            data = self.stream.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self.got += data
        if not data:
            self.hung_up = True
            self.close()
        self.tell()

    async def heard(self, size: int) -> None:
        """Until so many bytes have come."""
        await self.until(lambda: len(self.got) >= size)

    async def gone(self) -> None:
        """Until the other side has hung up."""
        await self.until(lambda: self.hung_up)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.stream, data)

    def close(self) -> None:
        if self.stream.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.stream)
            self.stream.close()
