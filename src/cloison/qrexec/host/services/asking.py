"""A host service's questions: who called, and what a service in a qube answers."""
from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping

from cloison.client import qrexec
from cloison.client.connection import Connection
from cloison.client.domains import DOM0
from cloison.errors import PeerError
from cloison.values import QubeName

PATIENCE = 60.0                          # seconds
_CHUNK = 1 << 16


def caller(environ: Mapping[str, str]) -> QubeName:
    """The qube that called. Raises InvalidValue."""
    return QubeName(environ.get("QREXEC_REMOTE_DOMAIN", ""))


def ask(connection: Connection, qube: str, service: str, limit: int, patience: float = PATIENCE) -> bytes:
    """Output of a service in a running qube. Raises QubeNotRunning, QrexecError, and PeerError if it fails, says more than `limit`
    bytes, or takes longer than `patience` seconds.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    name = service if "+" in service else service + "+"
    try:
        call = qrexec.start(connection.paths, qube, f"DEFAULT:QUBESRPC {name} {DOM0}", qrexec.Ends(stdout=writer))
        try:
            untrusted = _collect(call, reader, limit, time.monotonic() + patience)
        finally:
            call.close()
    finally:
        os.close(reader)
        os.close(writer)
    if call.status or untrusted is None:
        raise PeerError(f"{service} in {qube} gave no good answer")
    return untrusted


def _collect(call: qrexec.Call, reader: int, limit: int, end: float) -> bytes | None:
    """What the call brings, read as fast as it comes; None if that is too much or too late."""
    untrusted = bytearray()
    while call.status is None:
        poll = select.poll()
        for fd, mask in call.wants().items():
            poll.register(fd, mask)
        ready = poll.poll(max(0, end - time.monotonic()) * 1000)
        call.ready({fd for fd, _ in ready})
        untrusted += _read(reader)
        if len(untrusted) > limit or not ready:
            return None
    while piece := _read(reader):
        untrusted += piece
    return bytes(untrusted) if len(untrusted) <= limit else None


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, _CHUNK)
    except BlockingIOError:
        return b""
