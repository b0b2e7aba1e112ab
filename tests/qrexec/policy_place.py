"""A policy daemon in the test's own loop, beside a real qubesd on fake parts, and an agent that answers as it is told."""
from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from cloison.qrexec.call_log import path, recent
from cloison.qrexec.policyd.ask import Agents
from cloison.qrexec.policyd.policy_files import folders, make_folders
from cloison.qrexec.policyd.server import PolicyDaemon
from cloison.runtime.paths import Paths
from cloison.wire import ask as ask_wire
from cloison.wire.policy import Query, encode_query


class Place:
    """Folders of an installation; `write` puts a policy file into one."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths.from_environment({"CLOISON_ROOT": str(root)})
        self.paths.ensure()
        make_folders(folders(self.paths))
        self.user = Path(self.paths.config, "policy.d")
        self.runtime = Path(self.paths.run, "policy.d")

    def write(self, text: str, name: str = "30-user.policy") -> None:
        (self.user / name).write_text(text)

    def log(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return [dict(entry) for entry in recent(path(self.paths))][::-1]


@contextlib.asynccontextmanager
async def serving(place: Place, agents: Agents | None = None) -> AsyncIterator[PolicyDaemon]:
    daemon = PolicyDaemon(place.paths, agents)
    daemon.listen()
    try:
        yield daemon
    finally:
        await daemon.close()


async def send(place: Place, request: bytes, *, end: bool = False, at: str = "policy.sock") -> bytes:
    """All that comes back."""
    reader, writer = await asyncio.open_unix_connection(place.paths.socket(at))
    writer.write(request)
    if end:
        writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def call(place: Place, service: str, target: str, source: str = "work", **more: Any) -> str:
    return (await send(place, encode_query(Query(source, target, service, **more)))).decode()


Answer = Callable[[dict[str, Any]], Awaitable[bytes]]


class FakeAgent:
    """Records what it is asked and told. `answer`: what it says to a question."""

    def __init__(self, place: Place, answer: bytes | Answer) -> None:
        self._path, self._answer = place.paths.socket("policy-agent.sock"), answer
        self.questions: list[dict[str, Any]] = []
        self.notices: list[dict[str, Any]] = []
        self.hung_up = asyncio.Event()

    async def __aenter__(self) -> FakeAgent:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        descriptor, _, body = (await reader.read()).partition(b"\0")
        service = descriptor.split(b" ")[0].decode()
        if service == ask_wire.NOTIFY:
            self.notices.append(json.loads(body))
        else:
            self.questions.append(json.loads(body))
            answer = self._answer
            writer.write(answer if isinstance(answer, bytes) else await answer(self.questions[-1]))
        writer.close()
