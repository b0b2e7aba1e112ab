"""Waiting for a new agent in a running qube, whose former one has ended or broken the protocol."""
from __future__ import annotations

import asyncio
import socket

from cloison.errors import PeerError
from cloison.runtime.token_bucket import TokenBucket
from cloison.wire import rejoin

READ = 1 << 16
FREE, EVERY = 3, 10.0      # so many agents in a row are heard at once, then one each so many seconds


class Turns:
    """How long a qube's next agent waits until it is heard: one that ends again and again costs the host little."""

    def __init__(self) -> None:
        self._bucket = TokenBucket(FREE, 1 / EVERY)

    def next(self, now: float) -> float:
        wait = self._bucket.wait(now)
        self._bucket.spend(now)
        return wait


async def agent_back(stream: socket.socket) -> None:
    """Returns when both ends of the agent's port may begin anew. Raises PeerError when the machine hangs up."""
    loop = asyncio.get_running_loop()
    side = rejoin.HostSide()
    while not side.done:
        try:
            untrusted = await loop.sock_recv(stream, READ)
        except OSError:
            untrusted = b""
        if not untrusted:
            raise PeerError("the machine has hung up")
        answer = side.feed(untrusted)
        if answer:
            await loop.sock_sendall(stream, answer)
