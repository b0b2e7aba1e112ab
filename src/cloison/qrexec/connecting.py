"""Waiting until a socket service takes a connection."""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from cloison.qrexec.process import Connected

BUSY_AGAIN = 0.02                        # s until a service with a full queue is tried again: nothing tells when that changes


class Connecting:
    """Calls `made` with the stream, the caller's from then on, or `failed` with an error number: once, and not after `stop`."""

    def __init__(self, service: Connected, made: Callable[[socket.socket], None], failed: Callable[[int], None]) -> None:
        self._service, self._made, self._failed = service, made, failed
        self._loop = asyncio.get_running_loop()
        self._stream: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        if service.stream is None:
            self._later()
        else:
            self._await(service.stream)

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._loop.remove_writer(self._stream)
            self._stream.close()
            self._stream = None

    def _later(self) -> None:
        self._timer = self._loop.call_later(BUSY_AGAIN, self._again)

    def _again(self) -> None:
        try:
            self._await(self._service.connect())
        except BlockingIOError:
            self._later()
        except OSError as error:
            self._failed(error.errno or 0)

    def _await(self, stream: socket.socket) -> None:
        self._stream = stream
        self._loop.add_writer(stream, self._writable, stream)

    def _writable(self, stream: socket.socket) -> None:
        failure = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            self.stop()
            self._failed(failure)
            return
        self._loop.remove_writer(stream)
        self._stream = None
        self._made(stream)
