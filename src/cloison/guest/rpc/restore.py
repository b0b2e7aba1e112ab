"""Parts of a tar archive as a file copy stream: how a backup comes back from the qube that keeps it."""
from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Sequence
from typing import IO

from cloison.qrexec.filecopy.pack import BUFFER, CopyFailed, PeerGone, Sender
from cloison.wire import filecopy as wire

PROG = "qubes.Restore"


def send(archive: IO[bytes], paths: Sequence[bytes], output: int, answers: int) -> int:
    """Send the members named by `paths`, and what lies below them (all if there are none). The exit status; errors are told."""
    try:
        sender = Sender(output, answers)
        with tarfile.open(fileobj=archive, mode="r|", bufsize=BUFFER, encoding="utf-8") as tar:
            for member in tar:
                name = os.fsencode(member.name).removeprefix(b"./").rstrip(b"/")
                if name and _wanted(name, paths):
                    _send(sender, tar, member, name)
        sender.finish()
        return 0
    except PeerGone:
        return 1
    except (CopyFailed, tarfile.TarError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1


def _wanted(name: bytes, paths: Sequence[bytes]) -> bool:
    return not paths or any(name == path or name.startswith(path.rstrip(b"/") + b"/") for path in paths)


def _send(sender: Sender, tar: tarfile.TarFile, member: tarfile.TarInfo, name: bytes) -> None:
    time = max(int(member.mtime), 0) * wire.NANOSECONDS
    if member.isreg():
        content = tar.extractfile(member)
        assert isinstance(content, io.BufferedReader)    # as the library documents
        sender.put_file(wire.Entry(name, wire.REGULAR | member.mode & 0o777, member.size, accessed=time, modified=time), content)
    elif member.isdir():
        sender.put(wire.Entry(name, wire.FOLDER | member.mode & 0o777, accessed=time, modified=time).encode())
    elif member.issym():
        target = os.fsencode(member.linkname)
        sender.put(wire.Entry(name, wire.LINK | 0o777, accessed=time, modified=time, target=target).encode())
    else:
        raise CopyFailed(f"{name!r} is no file, folder or link")
