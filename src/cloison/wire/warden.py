"""Between qubesd, zygote and warden: what a warden must know to run a qube, and the lines they exchange.

JSON objects, one a line, both ends ours and on this host; still bounded and checked, because a warden parses hostile
bytes elsewhere in the same process.
"""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from cloison.errors import PeerError

MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Layer:
    """One file of a disk. `format` is `raw` or `qcow2`: always stated, never probed."""

    path: str
    format: str


@dataclass(frozen=True)
class DiskSource:
    """What the hypervisor opens for one disk.

    `layers`: bottom first, all read-only commits, possibly none. `top`: the writable file (a volume that is saved at
    stop), or None: then, if `writable`, the warden makes a temporary overlay of `size` bytes without a name, gone with its
    process; if not `writable`, the uppermost layer is the disk, read-only.
    """

    role: str                       # root, private, volatile, modules
    size: int                       # bytes, as the guest sees it
    layers: tuple[Layer, ...] = ()
    top: Layer | None = None
    writable: bool = True


@dataclass(frozen=True)
class Kernel:
    """Boot files of one version, from the pool `linux-kernel`."""

    version: str
    vmlinuz: str
    initramfs: str
    modules: str


@dataclass(frozen=True)
class Launch:
    """A qube about to run."""

    name: str
    uuid: str
    xid: int
    memory: int                     # MiB
    vcpus: int
    disks: tuple[DiskSource, ...]   # in the order root, private, volatile, modules
    kernel: Kernel
    kernelopts: str = ""
    warm: str | None = None         # folder of a warm image, or None for a cold start
    accelerator: str = "tcg"        # tcg or kvm
    identity: dict[str, str] = field(default_factory=dict)  # QubesDB entries at start: path -> value
    default_user: str = "user"
    start_timeout: int = 300        # seconds until the agent must have answered
    debug: bool = False


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def launch_to_json(launch: Launch) -> dict[str, Any]:
    return dataclasses.asdict(launch)


def launch_from_json(data: dict[str, Any]) -> Launch:
    """Inverse of `launch_to_json`. Raises PeerError for anything else."""
    try:
        disks = tuple(
            DiskSource(
                role=disk["role"], size=disk["size"], layers=tuple(Layer(**layer) for layer in disk["layers"]),
                top=Layer(**disk["top"]) if disk["top"] else None, writable=disk["writable"],
            )
            for disk in data["disks"]
        )
        return Launch(**{**data, "disks": disks, "kernel": Kernel(**data["kernel"])})
    except (KeyError, TypeError) as error:
        raise PeerError("not a launch", str(error)) from error


class Lines:
    """Bytes in, JSON objects out. Raises PeerError for a line too long or not an object."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        if len(rest) > MAX_LINE:
            raise PeerError("line too long", len(rest))
        return [self._parse(line) for line in lines]

    @staticmethod
    def _parse(line: bytes) -> dict[str, Any]:
        if len(line) > MAX_LINE:
            raise PeerError("line too long", len(line))
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PeerError("not JSON", str(error)) from error
        if not isinstance(message, dict):
            raise PeerError("not an object")
        return message
