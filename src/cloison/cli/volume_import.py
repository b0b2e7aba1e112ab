"""Services admin.vm.volume.Import and .ImportWithSize: fill a volume from standard input (reference/admin-api.md 1.6).

qrexec, or Qubes OS's own client, runs the file of that name with the volume as its argument; who calls and for which qube is in the
environment. What goes to standard output is a reply of the Admin API.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from cloison.client.connection import Connection
from cloison.client.importing import import_volume
from cloison.errors import BadRequest, CloisonError
from cloison.values import InvalidValue, QubeName
from cloison.wire.admin import exception, ok

WITH_SIZE = "admin.vm.volume.ImportWithSize"
MAX_DIGITS = 19


def run(service: str, volume: str, environ: Mapping[str, str], untrusted: BinaryIO) -> tuple[int, bytes]:
    """Exit status and reply. `untrusted`: the volume's new content, after a line with its size for ImportWithSize."""
    try:
        connection = Connection(source=QubeName(environ.get("QREXEC_REMOTE_DOMAIN", "")))
        target = QubeName(environ.get("QREXEC_REQUESTED_TARGET", ""))
        size = _size(untrusted) if service == WITH_SIZE else None
        import_volume(connection, target, volume, untrusted, size)
    except InvalidValue as error:
        return 1, exception(BadRequest.wire, str(error))
    except CloisonError as error:
        return 1, exception(getattr(error, "class_name", error.wire), str(error))
    except OSError as error:
        return 1, exception(CloisonError.wire, f"the volume could not be written: {error.strerror}")
    return 0, ok()


def _size(untrusted: BinaryIO) -> int:
    """The first line."""
    line = untrusted.readline(MAX_DIGITS + 2)
    digits = line.removesuffix(b"\n")
    if digits == line or not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise BadRequest("the first line must be the size in bytes")
    return int(digits)


def main(argv: Sequence[str] | None = None) -> int:
    """argv: the path it was called by, whose last part is the service, and the volume."""
    words = list(sys.argv if argv is None else argv)
    status, reply = run(os.path.basename(words[0]), words[1] if len(words) > 1 else "", os.environ, sys.stdin.buffer)
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()
    return status
