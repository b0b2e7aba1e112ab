"""Questions in windows: each one a process of its own, so that a fault of the toolkit refuses that call and no other."""
from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Sequence

from cloison.client.connection import Connection
from cloison.errors import PeerError
from cloison.runtime.programs import ProgramMissing, find
from cloison.ui.colours import colours
from cloison.wire import ask as wire

log = logging.getLogger(__name__)
DIALOG = (sys.executable, "-P", "-m", "cloison.ui.dialog")
_WORDS = {"allow": "allowed", "deny": "denied", "fail": "failed"}
NOTIFY_TIME = 5.0


class Windows:
    """An `Asker` on the session's display. `dialog`: the program that asks one question."""

    def __init__(self, connection: Connection, dialog: Sequence[str] = DIALOG) -> None:
        self._connection, self._dialog = connection, dialog

    async def ask(self, question: wire.Question) -> str | None:
        shades = await asyncio.to_thread(colours, question.icons, self._connection)
        order = {"request": wire.encode_question(question).decode("ascii"), "colours": shades}
        process = await asyncio.create_subprocess_exec(
            *self._dialog, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(json.dumps(order).encode("ascii") + b"\n")
                await process.stdin.drain()
            answer = await process.stdout.read(wire.MAX_ANSWER + 1)
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise PeerError("the dialog failed with status", status)
        return wire.parse_answer(answer)

    async def tell(self, notice: wire.Notice) -> None:
        """Names only, checked by `wire.parse`: a notification may be shown with markup."""
        service = f"{notice.service}{notice.argument}".removesuffix("+")[:120]
        text = f"{notice.source} to {notice.target}: {service}"
        try:
            program = find("notify-send")
        except ProgramMissing:
            log.debug("%s: %s", notice.resolution, text)
            return
        process = await asyncio.create_subprocess_exec(
            program, "--app-name=Cloison", "--", f"Call {_WORDS[notice.resolution]}", text,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(NOTIFY_TIME):
                await process.wait()
        except TimeoutError:
            log.debug("nobody shows notifications")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
