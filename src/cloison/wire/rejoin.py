"""How a new agent and the host find each other again in a byte stream that the former agent left in the middle of anything.

    agent -> host    ANNOUNCE nonce     until the host has seen that, it throws away what it reads
    host -> agent    nonce              until the agent has seen that, it throws away what it reads: it can't be guessed, so nothing
                                        that another qube had on its way into this one is taken for it
    agent -> host    CONFIRM nonce      from here on both ends speak the multiplexer's protocol (mux.py), from its beginning

No I/O here. What the host reads is untrusted, but has always been: an agent may hang up and begin anew as often as it likes.
"""
from __future__ import annotations

from typing import Final

ANNOUNCE: Final = b"\0cloison agent: begin anew\n\0\0\0\0"
CONFIRM: Final = b"\0cloison agent: here we are\n\0\0\0"
NONCE: Final = 16
_LENGTH: Final = len(ANNOUNCE) + NONCE


class HostSide:
    """Feed it what comes; send what it gives. `done`: the next byte is the multiplexer's."""

    def __init__(self) -> None:
        self._untrusted = b""
        self._nonce = b""
        self.done = False

    def feed(self, untrusted: bytes) -> bytes:
        """What to send now, perhaps nothing. The last announcement counts: its agent may have ended, too."""
        seen = self._untrusted + untrusted
        self._untrusted = seen[-_LENGTH:]
        at = seen.rfind(ANNOUNCE)
        nonce = seen[at + len(ANNOUNCE):at + _LENGTH] if at >= 0 else b""
        if len(nonce) == NONCE and nonce != self._nonce:
            self._nonce = nonce
            return nonce
        self.done = bool(self._nonce) and seen.endswith(CONFIRM + self._nonce)
        return b""


class AgentSide:
    """The other end: send `announcement`, then feed it what comes until it gives what is to be sent last."""

    def __init__(self, nonce: bytes) -> None:
        """`nonce`: NONCE random bytes, never used before."""
        self._nonce = nonce
        self._read = b""
        self.announcement = ANNOUNCE + nonce

    def feed(self, data: bytes) -> bytes:
        self._read = (self._read + data)[-NONCE:]
        if self._read.endswith(self._nonce):
            return CONFIRM + self._nonce
        return b""
