"""What qubesd knows of qubes, for decisions: fetched when something changed, kept while nothing does.

Each decision first looks whether events have come since the last fetch. qubesd sends an event before it answers the call
that caused it, so who has seen a change made is judged by it. Without qubesd there are no facts, and so nothing is allowed.
"""
from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloison.errors import CloisonError
from cloison.policy.facts import HOST, BadFacts, Facts, facts_from_system_info
from cloison.runtime.paths import Paths
from cloison.runtime.unix_async import connect
from cloison.wire.admin import Failure, Request, encode_request, parse_reply

TIMEOUT = 5.0             # seconds qubesd may take
MAX_REPLY = 64 << 20      # bytes; qubesd is trusted, this only keeps a fault from eating the host
_CHUNK = 1 << 16
_EVENT = b"1\0"


class NoFacts(CloisonError):
    """qubesd can't be asked, so nothing can be decided."""

    hint = "Start it with: cloison up"


class Snapshot(NamedTuple):
    """The system at one moment. `guivms` and `icons` are by name; a qube whose windows nobody shows is not in `guivms`."""

    facts: Facts
    guivms: Mapping[str, str]
    icons: Mapping[str, str]

    def identity(self, name: str) -> str | None:
        """What stays with a qube when another takes its name: None for one that doesn't exist."""
        qube = self.facts.qubes.get(name.removeprefix("@dispvm:"))
        return None if qube is None else qube.alias


def snapshot(reply: bytes) -> Snapshot:
    """Raises NoFacts, BadFacts."""
    result = parse_reply(reply)
    if isinstance(result, Failure):
        raise NoFacts(f"qubesd does not tell of its qubes: {result.message}")
    try:
        data = json.loads(result)
    except (ValueError, RecursionError) as error:
        raise BadFacts("the system's description is not JSON") from error
    facts = facts_from_system_info(data)
    return Snapshot(facts, _texts(data["domains"], "guivm"), _icons(data["domains"]))


def _texts(domains: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, str]:
    return {name: entry[key] for name, entry in domains.items() if isinstance(entry.get(key), str) and entry[key]}


def _icons(domains: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of each qube, and of the disposables that can be made."""
    icons = _texts(domains, "icon")
    disposables = {f"@dispvm:{name}": icon.replace("app", "disp") for name, icon in icons.items()
                   if domains[name].get("template_for_dispvms")}
    return icons | disposables


async def fetch(paths: Paths) -> Snapshot:
    """The system now. Raises NoFacts, BadFacts."""
    request = encode_request(Request("internal.GetSystemInfo", "", HOST, "name", HOST))
    try:
        async with asyncio.timeout(TIMEOUT):
            with await _call(paths.socket("qubesd.internal.sock"), request) as sock:
                return snapshot(await _read_all(sock))
    except (OSError, TimeoutError) as error:
        raise NoFacts(f"qubesd can't be asked: {str(error) or 'it does not answer'}") from error


async def _call(path: str, request: bytes) -> socket.socket:
    sock = await connect(path)
    try:
        await asyncio.get_running_loop().sock_sendall(sock, request)
        sock.shutdown(socket.SHUT_WR)
    except BaseException:
        sock.close()
        raise
    return sock


async def _read_all(sock: socket.socket) -> bytes:
    loop, reply = asyncio.get_running_loop(), bytearray()
    while data := await loop.sock_recv(sock, _CHUNK):
        reply += data
        if len(reply) > MAX_REPLY:
            raise NoFacts("qubesd's answer does not end")
    return bytes(reply)


class SystemInfo:
    """`current` if nothing changed, else `fetch`. Close it."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._events: socket.socket | None = None
        self._snapshot: Snapshot | None = None
        self._fetching: asyncio.Task[Snapshot] | None = None

    def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
        self._forget()

    def current(self) -> Snapshot | None:
        """None when it must be fetched. One system call."""
        self._see_events()
        return self._snapshot

    async def fetch(self) -> Snapshot:
        """The system at a moment after this was called. Raises NoFacts, BadFacts."""
        self._see_events()
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(_ignore_failure)
        return await asyncio.shield(self._fetching)

    async def _fetch(self) -> Snapshot:
        me = self._fetching
        try:
            if self._events is None:
                self._events = await self._subscribe()
            found = await fetch(self._paths)
            if self._fetching is me and self._events is not None:
                self._snapshot = found   # if an event has come meanwhile, `current` sees it
            return found
        finally:
            if self._fetching is me:
                self._fetching = None

    async def _subscribe(self) -> socket.socket:
        request = encode_request(Request("admin.Events", "", HOST, "name", HOST))
        try:
            async with asyncio.timeout(TIMEOUT):
                sock = await _call(self._paths.socket("qubesd.sock"), request)
                try:
                    first = await asyncio.get_running_loop().sock_recv(sock, _CHUNK)
                    if not first.startswith(_EVENT):
                        raise NoFacts("qubesd does not tell of changes")
                except BaseException:
                    sock.close()
                    raise
        except (OSError, TimeoutError) as error:
            raise NoFacts(f"qubesd can't be asked: {str(error) or 'it does not answer'}") from error
        return sock

    def _see_events(self) -> None:
        """Whatever happened, the facts may have changed; a fetch under way may have missed it, so others don't join it."""
        if self._events is None:
            self._snapshot = None
            return
        with contextlib.suppress(BlockingIOError):
            try:
                while data := self._events.recv(_CHUNK):
                    self._snapshot = self._fetching = None
                    if len(data) < _CHUNK:
                        return
            except ConnectionError:
                pass
            self._forget()

    def _forget(self) -> None:
        self._snapshot = self._fetching = None
        if self._events is not None:
            self._events.close()
            self._events = None


def _ignore_failure(task: asyncio.Task[Snapshot]) -> None:
    """Who waits for it is told; that everyone has gone is no fault."""
    if not task.cancelled():
        task.exception()
