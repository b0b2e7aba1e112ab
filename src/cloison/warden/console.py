"""The serial console of a running qube as a terminal of the host: for `admin.vm.Console` (reference/admin-api.md 1.7).

The machine's console is moved from its memory of last words to a socket, and pumped to a pseudo-terminal. Bytes of the guest
are not looked at. Whoever opens the terminal gets them; while nobody reads, the latest KEPT bytes wait, and older ones go.
"""
from __future__ import annotations

import asyncio
import os
import socket
import tty

from cloison.hypervisor.base import Machine

KEPT = 65536            # bytes of the guest's output that wait for a reader
_CHUNK = 4096


class Console:
    """Opened once in a machine's life; ends with it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._stream: socket.socket | None = None
        self._master = self._slave = -1
        self._waiting = b""

    async def open(self) -> str:
        """Path of the terminal. Raises MachineError."""
        async with self._lock:
            if self._stream is None:
                await self._attach()
            return os.ttyname(self._slave)

    async def _attach(self) -> None:
        history = await self._machine.console()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await self._machine.attach_console(theirs)
            ours.setblocking(False)
            self._master, self._slave = os.openpty()
        except BaseException:
            ours.close()
            raise
        tty.setraw(self._slave)                 # no echo: it would go to the guest as if typed
        os.set_blocking(self._master, False)
        self._stream = ours
        self._loop.add_reader(ours, self._from_guest, ours)
        self._loop.add_reader(self._master, self._from_person, ours)
        self._show(history)

    def _from_guest(self, stream: socket.socket) -> None:
        try:
            untrusted = stream.recv(_CHUNK)
        except OSError:
            return
        if untrusted:
            self._show(untrusted)
        else:
            self._loop.remove_reader(stream)

    def _show(self, untrusted: bytes) -> None:
        if not self._waiting and untrusted:
            self._loop.add_writer(self._master, self._flush)
        self._waiting = (self._waiting + untrusted)[-KEPT:]

    def _flush(self) -> None:
        try:
            self._waiting = self._waiting[os.write(self._master, self._waiting[:_CHUNK]):]
        except BlockingIOError:
            return
        if not self._waiting:
            self._loop.remove_writer(self._master)

    def _from_person(self, stream: socket.socket) -> None:
        """What the guest does not take is lost, as on a serial line."""
        try:
            typed = os.read(self._master, _CHUNK)
            stream.send(typed)
        except OSError:
            return

    def close(self) -> None:
        """Idempotent."""
        if self._stream is None:
            return
        self._loop.remove_reader(self._stream)
        self._loop.remove_reader(self._master)
        self._loop.remove_writer(self._master)
        self._stream.close()
        os.close(self._master)
        os.close(self._slave)
        self._stream = None
