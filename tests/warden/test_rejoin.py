"""The host's end of a new agent's coming, over a real socket pair."""
from __future__ import annotations

import asyncio
import socket

import pytest
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.warden.rejoin import EVERY, FREE, Turns, agent_back
from cloison.wire.rejoin import NONCE, AgentSide


def test_what_the_former_agent_left_is_thrown_away() -> None:
    async def work() -> None:
        host, guest = socket.socketpair()
        with host, guest:
            host.setblocking(False)
            agent = AgentSide(b"n" * NONCE)
            guest.sendall(b"half a frame" * 1000 + agent.announcement)
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                back = group.create_task(agent_back(host))
                last = await asyncio.to_thread(lambda: agent.feed(guest.recv(100)))
                assert last and not back.done()
                guest.sendall(last)

    asyncio.run(work())


def test_a_machine_that_hangs_up_ends_it() -> None:
    async def work() -> None:
        host, guest = socket.socketpair()
        with host:
            host.setblocking(False)
            guest.close()
            with pytest.raises(PeerError):
                await agent_back(host)

    asyncio.run(work())


def test_agents_that_end_again_and_again_wait_for_their_turn() -> None:
    turns = Turns()
    assert [turns.next(100.0) for _ in range(FREE)] == [0.0] * FREE
    assert 0 < turns.next(100.0) <= EVERY
    assert EVERY < turns.next(100.0) <= 2 * EVERY
    assert turns.next(100.0 + 10 * FREE * EVERY) == 0.0, "calm, it is heard at once again"
