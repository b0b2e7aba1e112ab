"""Who waits for a session: so many, and all of them go on when the wait ends."""
from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.session_waiter import MAX_WAITING, Waiter


def test_one_more_than_may_wait_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, service = tmp_path / "gate", tmp_path / "qubes.WaitForSession"
    os.mkfifo(gate)
    service.write_text(f"#!/bin/sh\nread go < {gate}\n")
    service.chmod(0o755)
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path))
    served = []

    async def work() -> None:
        waiter, all_served = Waiter(), asyncio.Event()

        def serve() -> None:
            served.append(1)
            if len(served) == MAX_WAITING:
                all_served.set()

        for _ in range(MAX_WAITING):
            waiter.wait("user", "work", serve)
        for user in ("user", "other"):
            with pytest.raises(CannotStart, match="too many"):
                waiter.wait(user, "work", serve)
        assert served == []
        await asyncio.to_thread(gate.write_text, "go\n")
        async with asyncio.timeout(PATIENCE):
            await all_served.wait()

    asyncio.run(work())
    assert len(served) == MAX_WAITING
