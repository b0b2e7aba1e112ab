"""What a warden and the agent in its qube tell each other about the qube itself (multiplexer CONTROL frames).

To the guest: one JSON object with `do`. From the guest, which is hostile: one word of a fixed list and a bounded text, no JSON.

    seal      -> sealed          the boot is over, nothing personal is mounted, no generator keeps state: take the snapshot
    become    -> running TEXT    be this qube: entropy, clock, names, volumes, QubesDB (`Identity`)
                                 the text, if there is one: what is wrong, for a person
                 failed TEXT     it can't
    rejoin    -> running         be again the qube that this guest is already: a new agent in the place of one that ended
    time                         what time it is now: after a restore, and after a pause; no answer
    shutdown  -> halting         power off in order
    ping      -> pong
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloison.errors import PeerError

MAX_TEXT = 1024
MAX_ENTRIES = 24_000            # bytes of QubesDB that go with `become`: with the rest of it less than a CONTROL frame holds
NO_PRIVATE = "the private volume can't be mounted"      # how a text begins that tells that: the host spares its revisions then
WORDS = (b"sealed", b"running", b"failed", b"halting", b"pong")


class Identity(NamedTuple):
    """Who a restored or booted guest is. `entropy` is hexadecimal, 64 bytes; `time` nanoseconds since the epoch."""

    xid: int
    time: int
    entropy: str
    machine_id: str
    boot_id: str
    qubesdb: dict[str, str]
    private_size: int               # bytes; a restored guest may still believe another
    private_blank: bool             # nothing was ever written to it


class Report(NamedTuple):
    """What the agent said: a word of WORDS, and a text with control characters replaced."""

    word: str
    text: str


def seal() -> bytes:
    return b'{"do":"seal"}'


def ping() -> bytes:
    return b'{"do":"ping"}'


def shutdown() -> bytes:
    return b'{"do":"shutdown"}'


def clock(now: int) -> bytes:
    """`now`: nanoseconds since the epoch."""
    return json.dumps({"do": "time", "time": now}).encode()


def at_once(entries: Mapping[str, str]) -> dict[str, str]:
    """What of a QubesDB goes with `become`, a person's own entries last. The agent gets all of it over QubesDB's own channel."""
    room, chosen = MAX_ENTRIES, {}
    for path in sorted(entries, key=lambda path: path.startswith("/vm-config/")):
        room -= len(json.dumps({path: entries[path]}))
        if room < 0:
            break
        chosen[path] = entries[path]
    return chosen


def become(identity: Identity) -> bytes:
    return json.dumps({"do": "become", **identity._asdict()}, separators=(",", ":")).encode()


def rejoin(identity: Identity) -> bytes:
    """To a new agent in a guest that is this qube; entropy is not drawn again."""
    return json.dumps({"do": "rejoin", **identity._asdict()}, separators=(",", ":")).encode()


def identity(fields: Mapping[str, Any]) -> Identity:
    """In the guest: the fields of a `become` or `rejoin`, which the host made with the function above."""
    return Identity(**fields)


def parse_order(message: bytes) -> tuple[str, dict[str, object]]:
    """In the guest: what the host wants, and the object's other fields."""
    data = json.loads(message)
    return data.pop("do"), data


def report(word: str, text: str = "") -> bytes:
    """In the guest."""
    return f"{word} {text}".encode()[:MAX_TEXT] if text else word.encode()


def parse_report(untrusted: bytes) -> Report:
    """On the host. Raises PeerError for a word that does not exist or a text too long."""
    if len(untrusted) > MAX_TEXT:
        raise PeerError("agent report too long", len(untrusted))
    word, _, text = untrusted.partition(b" ")
    if word not in WORDS:
        raise PeerError("agent report with an unknown word")
    clean = "".join(chr(byte) if 0x20 <= byte < 0x7F else "_" for byte in text)
    return Report(word.decode(), clean)
