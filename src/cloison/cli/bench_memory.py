"""What processes take of the host's memory: their proportional set size (a page that n processes share counts 1/n for each)."""
from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from cloison.errors import HostError
from cloison.runtime.paths import Paths
from cloison.runtime.unix import connect

ZYGOTE = b"cloison.warden.zygote"


class Usage(NamedTuple):
    """Bytes of one qube."""

    qemu: int                       # with bubblewrap around it
    warden: int


def qube(paths: Paths, uuid: str) -> Usage:
    """A running qube's processes. Raises HostError if they can't be found or seen."""
    warden = listener(os.path.join(paths.qubes, f"warden.{uuid}.sock"))
    return Usage(sum(map(pss, descendants(warden))), pss(warden))


def daemons(paths: Paths) -> tuple[int, int]:
    """Bytes of qubesd and of the zygote."""
    qubesd = listener(paths.socket("qubesd.sock"))
    zygote = [pid for pid in descendants(qubesd) if ZYGOTE in _read(pid, "cmdline") and _parent(pid) == qubesd]
    return pss(qubesd), sum(map(pss, zygote))


def listener(path: str) -> int:
    """The process that listens on a socket. Raises HostError."""
    try:
        with connect(path) as sock:
            pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except OSError as error:
        raise HostError(f"nobody answers at {path}: {error.strerror}") from error
    return pid


def descendants(pid: int) -> list[int]:
    """All processes below that one."""
    children = [int(word) for task in os.listdir(f"/proc/{pid}/task") for word in _read(pid, f"task/{task}/children").split()]
    return [*children, *(below for child in children for below in descendants(child))]


def pss(pid: int) -> int:
    """Bytes. Raises HostError if the process is not ours to look at."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    raise HostError(f"process {pid} does not tell its memory")


def _parent(pid: int) -> int:
    return int(_read(pid, "stat").rpartition(b")")[2].split()[1])


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        raise HostError(f"process {pid} can't be looked at: {error.strerror}") from error
