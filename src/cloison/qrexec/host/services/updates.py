"""qubes.ReceiveUpdates: packages for the host, downloaded by the qube that may; nothing counts before its signature is checked.

They come as a file copy of plain files. A package whose signature `rpmkeys` does not find good ends the whole transfer. Good ones
are kept in `data/updates`, for the person to install; nothing is installed here.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from cloison.client.connection import Connection
from cloison.client.domains import get_property
from cloison.errors import CloisonError, NotPermitted
from cloison.qrexec.filecopy.unpack import Options, open_descriptors, receive
from cloison.qrexec.host.services.asking import caller
from cloison.runtime import programs
from cloison.runtime.files import fsync_dir, rename
from cloison.values import InvalidValue

FILES_MAX = 4096
BYTES_MAX = 4 << 30
_SHARE = 0.9                             # of the free space
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+^~-]{0,255}\.rpm")


class BadPackage(CloisonError):
    """What came is no package with a good signature."""


def main(argv: Sequence[str]) -> int:
    """The service."""
    try:
        connection = Connection()
        if caller(os.environ) != get_property(connection, None, "updatevm").value:
            raise NotPermitted("only the qube that is property updatevm may send updates")
        verifier = programs.find("rpmkeys")
        folder = os.path.join(connection.paths.data, "updates")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return take(folder, verifier, 0, 1)
    except (CloisonError, InvalidValue, OSError) as error:
        print(f"qubes.ReceiveUpdates: {error}", file=sys.stderr)
        return 1


def take(folder: str, verifier: str, source: int, sink: int) -> int:
    """Receive into a folder of its own, check, and only then move the packages into `folder`. Raises BadPackage, OSError."""
    incoming = tempfile.mkdtemp(prefix="incoming-", dir=folder)
    try:
        space = os.statvfs(folder)
        limit = min(BYTES_MAX, int(space.f_bavail * space.f_frsize * _SHARE)) or 1
        root = os.open(incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        options = Options(folders=False, links=False, max_bytes=limit, max_files=FILES_MAX)
        result = receive(source, root, open_descriptors(), options)
        if result.code == 0:
            check(incoming, verifier)
        os.write(sink, result.encode())
        if result.code == 0:
            for name in os.listdir(incoming):
                rename(os.path.join(incoming, name), os.path.join(folder, name))
            fsync_dir(folder)
        return result.code & 255
    finally:
        shutil.rmtree(incoming)


def check(folder: str, verifier: str) -> None:
    """Every file is a package with a good signature. Raises BadPackage."""
    for name in sorted(os.listdir(folder)):
        if not _NAME.fullmatch(name):
            raise BadPackage("a file that is not named as a package")
        path = os.path.join(folder, name)
        os.chmod(path, 0o600)
        words = [verifier, "--define", "_pkgverify_level all", "--checksig", "--", path]
        said = subprocess.run(words, env={"PATH": os.environ.get("PATH", "/usr/bin"), "LC_ALL": "C"},
                              stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout
        if said != os.fsencode(f"{path}: digests signatures OK\n"):
            raise BadPackage(f"{name} has no good signature")
