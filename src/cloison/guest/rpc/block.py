"""cloison.Block: serves one of this qube's block devices as NBD on its standard input and output, for another qube.

Only the host calls it: it joins the two qubes when a person, or a rule of theirs, attaches the device. The argument is the
device's port and `r` or `w`, such as `sda1+w`. The device is opened exclusively: what is mounted or in use is refused, and
while it is served nothing else mounts it. `ready SIZE` on standard error says that it is open, and how many bytes it has: the
host holds NBD's handshake itself, so that no machine waits for this qube, and the requests come here.
"""
from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import sys
from collections.abc import Sequence

from cloison.errors import CloisonError
from cloison.guest.devices import node
from cloison.wire import nbd

_ARGUMENT = re.compile(r"([a-z0-9-]{1,12})\+([rw])")
_BLKGETSIZE64 = 0x80081272
_READ = 1 << 17


class NotServed(CloisonError):
    """The device can't be served."""


def main(argv: Sequence[str]) -> int:
    """The service; root only, and of the host only."""
    try:
        if os.environ.get("QREXEC_REMOTE_DOMAIN") != "dom0":
            raise NotServed("only the host may call it")
        fd, size, read_only = open_device(argv[1] if len(argv) > 1 else "")
        os.write(2, f"ready {size}\n".encode())
        serve(fd, nbd.Server(size, read_only=read_only, greeted=True))
    except (CloisonError, OSError) as error:
        print(f"cloison.Block: {error}", file=sys.stderr)
        return 1
    return 0


def open_device(argument: str) -> tuple[int, int, bool]:
    """Descriptor, size in bytes, whether it is read-only. Raises NotServed."""
    match = _ARGUMENT.fullmatch(argument)
    if match is None:
        raise NotServed("it takes a device and r or w, such as sda1+w")
    read_only = match[2] == "r"
    try:
        fd = os.open(node(match[1]), (os.O_RDONLY if read_only else os.O_RDWR) | os.O_EXCL | os.O_CLOEXEC)
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise NotServed(f"{match[1]} is no block device")
        size = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    except OSError as error:
        why = "it is in use in its qube" if error.errno == errno.EBUSY else error.strerror
        raise NotServed(f"{match[1]} can't be opened: {why}") from error
    if not size:
        raise NotServed(f"{match[1]} is empty")
    return fd, size, read_only


def serve(fd: int, server: nbd.Server, source: int = 0, sink: int = 1) -> None:
    """Until the client has gone. Raises PeerError for one that leaves the protocol, OSError when it can't be answered."""
    _send(sink, server.output())
    while not server.over and (untrusted := os.read(source, _READ)):
        server.feed(untrusted)
        while (request := server.next_request()) is not None:
            data, error = _do(fd, request)
            server.reply(request, data, error)
            _send(sink, server.output())
        _send(sink, server.output())
    os.fsync(fd)


def _do(fd: int, request: nbd.Request) -> tuple[bytes, int]:
    """What was read, and the error for the reply."""
    try:
        if request.do is nbd.Do.READ:
            data = os.pread(fd, request.length, request.offset)
            return (data, 0) if len(data) == request.length else (b"", nbd.IO_ERROR)
        if request.do is nbd.Do.WRITE and os.pwrite(fd, request.data, request.offset) != request.length:
            return b"", nbd.IO_ERROR
        if request.sync or request.do is nbd.Do.FLUSH:
            os.fsync(fd)
    except OSError as error:
        return b"", nbd.NO_SPACE if error.errno == errno.ENOSPC else nbd.IO_ERROR
    return b"", 0


def _send(sink: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sink, rest):]
