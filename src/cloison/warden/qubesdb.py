"""The QubesDB of a warden's qube: filled with who it is, written and read for qubesd, watched for news of its devices."""
from __future__ import annotations

import asyncio
from collections.abc import Callable

from cloison.errors import MachineError
from cloison.qdb.server import Server
from cloison.runtime.port import Port
from cloison.wire.warden import MAX_LINE, Launch, encode

WATCHED = ("/qubes-block-devices", "/qubes-usb-devices")      # a guest writes here when its devices have changed
QUIET = 0.1                   # s between two events of one path: a guest that writes without end must not keep qubesd busy


class QubesDb:
    """`event`: sends one to every qubesd that listens; `on_violation`: the guest broke the protocol."""

    def __init__(
        self, port: Port, launch: Launch, event: Callable[[dict[str, object]], None], on_violation: Callable[[str], None]
    ) -> None:
        self._event = event
        self._loop = asyncio.get_running_loop()
        self._quiet: dict[str, asyncio.TimerHandle] = {}        # paths that were told of just now
        self._again: set[str] = set()                           # of these: those that have changed since
        self._server = Server(port, launch.xid, self._changed, on_violation)
        self._server.fill(launch.identity)
        self._server.watch(*WATCHED)
        self._server.connect()

    def reconnect(self, port: Port) -> None:
        """To a new agent in the qube."""
        self._server.reconnect(port)

    def close(self) -> None:
        """Tell no more. Idempotent."""
        for timer in self._quiet.values():
            timer.cancel()

    def write(self, entries: object) -> None:
        """qubesd's changes; None removes. Raises MachineError."""
        if not isinstance(entries, dict):
            raise MachineError("no entries")
        try:
            self._server.write(entries)
        except ValueError as error:
            raise MachineError(str(error)) from error

    def read(self, prefix: str) -> dict[str, str]:
        """Entries below a path, each byte as one character. Raises MachineError for more than an answer to qubesd may hold."""
        found = {path: value.decode("latin-1") for path, value in self._server.tree.entries(prefix)}
        if len(encode({"entries": found})) > MAX_LINE // 2:
            raise MachineError(f"too much in QubesDB below {prefix}")
        return found

    def _changed(self, path: str) -> None:
        if path in self._quiet:
            self._again.add(path)
        else:
            self._tell(path)

    def _tell(self, path: str) -> None:
        self._again.discard(path)
        self._event({"event": "qdb-change", "path": path})
        self._quiet[path] = self._loop.call_later(QUIET, self._quiet_over, path)

    def _quiet_over(self, path: str) -> None:
        del self._quiet[path]
        if path in self._again:
            self._tell(path)
