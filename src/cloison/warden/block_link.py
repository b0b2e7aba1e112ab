"""The way from a qube's QEMU to a block device in another qube: a qrexec call there, whose bytes nobody here reads.

QEMU speaks NBD on one end of a socket pair. The other end is joined with the call `cloison.Block` in the other qube, as any
caller's input and output are: by a thread, since that is how `Caller` works, and it waits in `poll` only. Either end's going
ends both. The other qube is hostile: it may say nothing, anything, or stop reading; `cut` ends it whatever it does.

While QEMU holds NBD's handshake it does nothing else, and its qube stands still. So the handshake is held here, with the size that
the service has told; what the other qube says before QEMU's first request ends the link.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable

from cloison.client.ends import TERMINAL_TABLE
from cloison.errors import MachineError, PeerError
from cloison.qrexec.caller import STDOUT, Caller, ProtocolError, Sink
from cloison.qrexec.host import peer
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.paths import Paths
from cloison.wire import nbd
from cloison.wire.blocks import Block

SERVICE = "cloison.Block"
READY = re.compile(rb"ready ([1-9][0-9]{0,18})\n")         # the device is open, and has so many bytes
READY_TIME = 60.0           # s until the other qube has opened the device: a busy one takes long to start a program
END_TIME = 5.0              # s that the other qube has to write out what it was sent
CHUNK = 4096                # bytes of a handshake that are read at once
_SAID = 4096                # bytes of it that are waited for
_COMPLAINT = 300            # bytes of what it says instead that a person is shown


class _Disk(Caller):
    """The call, with the handshake before it. `server` is there before the machine has its end of the link."""

    server: nbd.Server | None = None

    def __init__(self, channel: socket.socket, machine: socket.socket, errors: socket.socket) -> None:
        self.output = machine.dup()             # each end is polled by a number of its own
        self._to_machine = Sink(self.output.fileno(), own=True)
        super().__init__(channel, machine.fileno(), self._to_machine, Sink(errors.fileno(), own=True))
        self._greeted = False

    def _read_source(self, source: int) -> None:
        """Raises ProtocolError for a machine that speaks something else."""
        if self._greeted or self.server is None:
            return super()._read_source(source)
        self.server.feed(data := os.read(source, CHUNK))
        try:
            rest = self.server.handshake()
        except PeerError as error:
            raise ProtocolError from error
        self._to_machine.put(memoryview(self.server.output()))
        if rest is not None:
            self._greeted = True
            if rest:
                self._message(rest)
        elif not data or self.server.over:
            raise ProtocolError

    def _put(self, kind: int, sink: Sink, untrusted: memoryview) -> None:
        """Raises ProtocolError for a service that speaks before it is asked something."""
        if kind == STDOUT and not self._greeted:
            raise ProtocolError
        super()._put(kind, sink, untrusted)


class BlockLink:
    """`open` it, hand `far` to the machine and close it; `over` is set when the link has ended, whoever ended it."""

    def __init__(self, paths: Paths, block: Block) -> None:
        self._path = os.path.join(paths.qubes, f"qrexec.uuid:{block.backend}")
        self._read_only = block.read_only
        self._command = f"root:QUBESRPC {SERVICE}+{block.port}+{'r' if block.read_only else 'w'} dom0"
        self._near, self.far = socket.socketpair()
        self._channel, self._far_channel = socket.socketpair()
        self._carried = False                       # by the thread, which closes what it has
        self._loop = asyncio.get_running_loop()
        self._unwatch: Callable[[], None] = lambda: None
        self.over = asyncio.Event()

    async def open(self) -> None:
        """Returns when the other qube has opened the device. Raises MachineError, and then it is over."""
        try:
            async with asyncio.timeout(READY_TIME):
                said = await self._call()
        except TimeoutError:
            said = b"it does not answer"
        except (OSError, PeerError) as error:
            said = str(error).encode()
        except BaseException:
            self.cut()
            raise
        if READY.fullmatch(said) is None:
            self.cut()
            words = " ".join(said.translate(TERMINAL_TABLE).decode("ascii").split())[-_COMPLAINT:]
            raise MachineError(f"the other qube does not serve the device: {words or 'it says nothing'}")

    async def _call(self) -> bytes:
        """Start the call and the thread that carries it; the first line that the service says, or all if it ends before."""
        with self._far_channel:
            called = await peer.execute(self._path, 0, self._command, self._far_channel)
        ours, errors = socket.socketpair()
        self._carried = True
        self._unwatch = watch_hangup(self._near, self._machine_left)
        disk = _Disk(self._channel, self._near, errors)
        threading.Thread(target=self._carry, args=(called, errors, disk), name=self._command, daemon=True).start()
        with ours:
            ours.setblocking(False)
            said = b""
            while len(said) < _SAID and not READY.fullmatch(said) and (data := await self._loop.sock_recv(ours, _SAID)):
                said += data
        ready = READY.fullmatch(said)
        if ready is not None:
            self._greet(disk, int(ready[1]))
        return said

    def _greet(self, disk: _Disk, size: int) -> None:
        """The machine finds the beginning of the handshake when it gets its end; the thread goes on with it."""
        server = nbd.Server(size, read_only=self._read_only)
        with contextlib.suppress(OSError):          # it has ended already: the machine will see that
            self._near.send(server.output())
        disk.server = server

    def _carry(self, called: peer.Peer, errors: socket.socket, disk: _Disk) -> None:
        """The thread: until either end has gone."""
        with called, errors, self._channel, self._near, disk.output:
            with contextlib.suppress(OSError):
                disk.run()
        with contextlib.suppress(RuntimeError):         # the loop has ended before
            self._loop.call_soon_threadsafe(self._ended)

    def _machine_left(self) -> None:
        """It has the disk no longer, or has thrown its server out: what is under way may end, and then the call does."""
        self._loop.call_later(END_TIME, self.cut)

    def _ended(self) -> None:
        self._unwatch()
        self.over.set()

    def cut(self) -> None:
        """End it now: for the machine the device is gone, for the other qube its caller. Idempotent."""
        self.far.close()
        self._far_channel.close()
        for end in (self._near, self._channel):
            if self._carried:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            else:
                end.close()
