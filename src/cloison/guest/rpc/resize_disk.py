"""qubes.ResizeDisk: the host has enlarged a disk; its file system follows.

On standard input: the volume's name and, from Cloison, a second line with the size in bytes, of which the kernel may hear a moment
after us.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cloison.errors import PeerError
from cloison.guest import volumes
from cloison.guest.rpc.stdin import read_line
from cloison.guest.tools.call import fail

PROG = "qubes.ResizeDisk"
RESIZE = "/usr/sbin/resize2fs"
MAX_NAME, MAX_DIGITS = 16, 19


def main(_argv: Sequence[str]) -> int:
    """The service; root only. Becomes resize2fs."""
    try:
        volume, size = read_line(MAX_NAME), read_line(MAX_DIGITS)
        if volume not in (b"private", b"root"):
            fail(PROG, "knows private and root, not this")
        if size and not size.isdigit():
            fail(PROG, "takes a size in bytes, not this")
        disk, wanted = volumes.device(volume.decode()), int(size or b"0")
        if not volumes.await_size(disk, lambda now: now >= wanted):
            fail(PROG, f"the disk has not grown to {wanted} bytes")
        os.execv(RESIZE, [RESIZE, "-f", disk])  # noqa: S606 a list, no shell
    except (PeerError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
