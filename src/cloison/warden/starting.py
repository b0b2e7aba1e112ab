"""Who a starting guest becomes, and the end of its console, which a person is shown if it does not become it."""
from __future__ import annotations

import hashlib
import secrets
import time
import uuid

from cloison.wire import agent
from cloison.wire.warden import Launch

NOBODY = "00000000-0000-0000-0000-000000000001"   # a warm image's uuid: its clones get their own from the agent
CONSOLE_TAIL = 600            # characters of a failed guest's console that a person is shown


def identity(launch: Launch) -> agent.Identity:
    """Who the guest is to become: all its randomness and ids are drawn here, on the host, now."""
    private = next((disk for disk in launch.disks if disk.role == "private"), None)
    own_id = hashlib.sha256(b"machine-id " + launch.uuid.encode()).hexdigest()[:32]
    return agent.Identity(
        xid=launch.xid, time=time.time_ns(), entropy=secrets.token_hex(64), machine_id=own_id, boot_id=str(uuid.uuid4()),
        qubesdb=agent.at_once(launch.identity), private_size=private.size if private else 0,
        private_blank=private is not None and private.blank)


def console_tail(untrusted: bytes) -> str:
    """The end of a guest's console as the end of a sentence; empty if there is nothing."""
    clean = "".join(chr(c) if 0x20 <= c < 0x7F else " " for c in untrusted)
    text = " ".join(clean.split())[-CONSOLE_TAIL:]
    return f"; last on its console: {text}" if text else ""
