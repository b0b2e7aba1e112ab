"""qubes.OpenInVM and qubes.OpenURL: another qube's file or address in this one's program for it (reference/qrexec.md 20.4)."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from cloison.errors import PeerError
from cloison.guest.rpc.stdin import copy, read_exactly, read_line
from cloison.values import InvalidValue, QubeName
from cloison.wire import opening

OPENER = "qubes-open"


def main(argv: Sequence[str]) -> int:
    """qubes.OpenInVM."""
    try:
        source = QubeName(os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
        name, view_only = opening.decode_name(read_exactly(opening.NAME_FIELD))
    except (PeerError, InvalidValue) as error:
        print(f"qubes.OpenInVM: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix=f"{source}-") as folder:
        return _open(os.path.join(folder, name), view_only=view_only)


def _open(path: str, *, view_only: bool) -> int:
    """Receive the file, show it until the person is done, send it back if it was changed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    copy(0, fd)
    if view_only:
        os.fchmod(fd, 0o400)
    os.close(fd)
    before = _state(path)
    status = subprocess.run([OPENER, path], stdin=subprocess.DEVNULL, stdout=2, check=False).returncode
    if status == 0 and not view_only and _state(path) != before:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        copy(fd, 1)
        os.close(fd)
    return status if status >= 0 else 128 - status


def _state(path: str) -> tuple[int, int, int]:
    """Editors write in place or put another file under the name."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def main_url(argv: Sequence[str]) -> int:
    """qubes.OpenURL."""
    try:
        address = opening.decode_address(read_line(opening.ADDRESS_MAX))
    except PeerError as error:
        print(f"qubes.OpenURL: {error}", file=sys.stderr)
        return 1
    os.execvp(OPENER, [OPENER, address])  # noqa: S606 a list, no shell
