"""Asking another qube's daemon for a call, where nobody answers."""
from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.qrexec.host import peer


@pytest.mark.parametrize("backlog", ["free", "full"])
def test_a_silent_warden_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backlog: str) -> None:
    """As one that was stopped: the kernel takes connections for it, until its backlog is full."""
    monkeypatch.setattr(peer, "ANSWER_TIME", 0.1)
    path = str(tmp_path / "qrexec.work")
    waiting: list[socket.socket] = []

    async def ask() -> None:
        async with asyncio.timeout(PATIENCE):
            await peer.execute(path, 1, "user:true", None)

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen(0)
        if backlog == "full":
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[0].connect(path)
        with pytest.raises(PeerError, match="warden does not answer"):
            asyncio.run(ask())
    for each in waiting:
        each.close()
