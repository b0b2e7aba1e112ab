"""Asks the person which qube is to have a device: the socket service `device-agent.GUI` (reference/devices.md 4).

One JSON object there, `allow:QUBE` back. No such service, no answer in time, any other answer: no qube has it.
"""
from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cloison.errors import PeerError
from cloison.runtime.paths import Paths
from cloison.runtime.unix_async import connect
from cloison.wire import ask

log = logging.getLogger(__name__)
SERVICE = "device-agent.GUI"
ASK_TIME = 300.0            # s a person has


class Question(NamedTuple):
    """Which of `targets` is to have the device on `port` of `backend`? `icons`: icon name by qube."""

    backend: str
    port: str
    description: str
    targets: Sequence[str]
    icons: Mapping[str, str]


async def choose(paths: Paths, question: Question) -> str | None:
    """One of the targets, or None."""
    targets = list(question.targets)
    request = json.dumps({
        "source": question.backend, "device_name": question.description, "argument": question.port, "targets": targets,
        "default_target": targets[0] if len(targets) == 1 else "", "icons": dict(question.icons),
    })
    try:
        async with asyncio.timeout(ASK_TIME):
            answer = ask.parse_answer(await _ask(os.path.join(paths.qubes, SERVICE), request))
    except (OSError, PeerError, TimeoutError) as error:
        log.warning("nobody could be asked about %s:%s: %s", question.backend, question.port, error or "no answer")
        return None
    return answer if answer in targets else None


async def _ask(path: str, request: str) -> bytes:
    """Raises OSError, PeerError."""
    stream = await connect(path)
    reader, writer = await asyncio.open_unix_connection(sock=stream)
    try:
        writer.write(f"{SERVICE} dom0\0{request}".encode("ascii"))
        writer.write_eof()
        await writer.drain()
        answer = await reader.read(ask.MAX_ANSWER + 1)
        while len(answer) <= ask.MAX_ANSWER and (more := await reader.read(ask.MAX_ANSWER)):
            answer += more
        return answer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
