"""Between qubesd, zygote and warden: what a warden must know to run a qube, and the lines they exchange.

JSON objects, one a line, both ends ours and on this host; still bounded and checked, because a warden parses hostile
bytes elsewhere in the same process.
"""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloison.errors import PeerError

MAX_LINE = 1 << 20
MAX_DISKS = 16
MAX_LAYERS = 64
RESUME = 64 << 20       # bytes that must be free for a qube that waits for disk space: enough that it does not stop again at once


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
    process; if not `writable`, the uppermost layer is the disk, read-only. `ephemeral`: what is written to that overlay is
    encrypted with a key that nobody keeps.
    """

    role: str                       # root, private, volatile, modules
    size: int                       # bytes, as the guest sees it
    layers: tuple[Layer, ...] = ()
    top: Layer | None = None
    writable: bool = True
    blank: bool = False             # nobody has written to it yet: the file system that it was made with, and nothing in it
    ephemeral: bool = False
    commit: str = ""                # names the state the layers hold, for a snapshot: warm images are dropped by it


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
    disposables: int = 16           # that the qube's calls may have at once
    programs: int = 16              # of the host that they may have at once
    programs_each: int = 4          # and of one service


def no_space(where: str) -> str:
    """Why a machine stands still, and what helps."""
    return f"{where} is full; it goes on by itself when {RESUME >> 20} MB are free there"


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def launch_to_json(launch: Launch) -> dict[str, Any]:
    return dataclasses.asdict(launch)


def launch_from_json(data: object) -> Launch:
    """Inverse of `launch_to_json`. Raises PeerError for anything else: a field too many, too few, of another type or range."""
    fields = _fields(Launch, data)
    disks = _items(fields["disks"], MAX_DISKS)
    return Launch(**{**fields, "disks": tuple(map(_disk, disks)), "kernel": Kernel(**_fields(Kernel, fields["kernel"]))})


def _disk(data: object) -> DiskSource:
    fields = _fields(DiskSource, data)
    layers = tuple(map(_layer, _items(fields["layers"], MAX_LAYERS)))
    return DiskSource(**{**fields, "layers": layers, "top": None if fields["top"] is None else _layer(fields["top"])})


def _layer(data: object) -> Layer:
    return Layer(**_fields(Layer, data))


def _items(data: object, limit: int) -> list[object]:
    if not isinstance(data, list | tuple) or len(data) > limit:
        raise PeerError(f"not a list of at most {limit}")
    return list(data)


def _fields(kind: type, data: object) -> dict[str, Any]:
    """The data, if it's an object with exactly that dataclass's fields, each of its type. Nested ones are the caller's."""
    declared = {each.name: str(each.type) for each in dataclasses.fields(kind)}
    if not isinstance(data, dict) or data.keys() != declared.keys():
        raise PeerError(f"not a {kind.__name__}")
    for name, value in data.items():
        if declared[name] in _TYPES and not _TYPES[declared[name]](value):
            raise PeerError(f"{kind.__name__}.{name} has a wrong type")
        if name in _WORDS and value not in _WORDS[name]:
            raise PeerError(f"{kind.__name__}.{name} has no meaning")
        if name in _RANGES and not _RANGES[name][0] <= value <= _RANGES[name][1]:
            raise PeerError(f"{kind.__name__}.{name} is out of range")
    return data


def _is_text(value: object) -> bool:
    return type(value) is str and "\0" not in value


# By the words of the annotations above; `type(...) is` because True is an int to isinstance.
_TYPES: dict[str, Callable[[object], bool]] = {
    "str": _is_text,
    "int": lambda value: type(value) is int,
    "bool": lambda value: type(value) is bool,
    "str | None": lambda value: value is None or _is_text(value),
    "dict[str, str]": lambda value: isinstance(value, dict) and all(_is_text(text) for pair in value.items() for text in pair),
}
_WORDS = {"format": ("raw", "qcow2"), "accelerator": ("tcg", "kvm"), "role": ("root", "private", "volatile", "modules")}
_RANGES = {
    "size": (1, 1 << 50), "xid": (1, 0xFFFFFFFF), "memory": (1, 1 << 24), "vcpus": (1, 1024), "start_timeout": (1, 1 << 20),
    "disposables": (0, 256), "programs": (0, 256), "programs_each": (0, 256),
}


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
