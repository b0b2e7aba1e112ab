"""A block device of one qube in the hands of another, as qubesd and wardens speak of it: names with their bounds."""
from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from cloison.errors import PeerError

MAX_BLOCKS: Final = 32                  # of one qube, in its warden's answer
_NAME: Final = re.compile(r"xvd[a-z]{1,2}|sd[a-z]")
_PORT: Final = re.compile(r"[a-z0-9-]{1,12}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Block(NamedTuple):
    """`name`: what the qube that uses it calls it, such as `xvdi`; `backend`: uuid of the qube that has it, at `port`.

    `disc`: it was asked for as a disc in a drive, and is listed as one.
    """

    name: str
    backend: str
    port: str
    read_only: bool
    disc: bool = False


def is_name(untrusted: str) -> bool:
    """Whether an attached disk can be called so."""
    return _NAME.fullmatch(untrusted) is not None


def to_json(block: Block) -> dict[str, object]:
    return dict(block._asdict())


def from_json(data: object) -> Block:
    """Inverse of `to_json`; a warden that is older than `disc` leaves it out. Raises PeerError for anything else."""
    if not isinstance(data, dict) or {"disc", *data} != set(Block._fields):
        raise PeerError("not a block device")
    fields: dict[Any, Any] = {"disc": False} | data
    name, backend, port, read_only, disc = (fields[field] for field in Block._fields)
    texts = ((name, _NAME), (backend, _UUID), (port, _PORT))
    good = all(isinstance(text, str) and pattern.fullmatch(text) for text, pattern in texts)
    if not good or not all(type(flag) is bool for flag in (read_only, disc)):
        raise PeerError("not a block device")
    return Block(name, backend, port, read_only, disc)


def list_from_json(data: object) -> tuple[Block, ...]:
    """Raises PeerError."""
    if not isinstance(data, list) or len(data) > MAX_BLOCKS:
        raise PeerError(f"not a list of at most {MAX_BLOCKS} block devices")
    return tuple(map(from_json, data))
