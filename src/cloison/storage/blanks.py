"""Empty file systems, one for each size: every private volume of that size begins as a hard link to it.

    DIR/.blank/ext4-2147483648.raw

Immutable as every commit; a qube writes to an overlay or a copy. No guest runs mkfs at its first start, and a thousand empty
volumes take the space of one.
"""
from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress

from cloison.runtime.faults import point
from cloison.runtime.files import rename
from cloison.storage import images
from cloison.storage.flatten import program, run


class Blanks:
    """The folder of a pool's blanks. Raises OSError, PoolError; whoever calls says what it was about."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def setup(self) -> None:
        """Make the folder; drop what nothing is made of, and temporaries."""
        images.make_folder(self.folder)
        for entry in os.scandir(self.folder):
            if entry.stat().st_nlink == 1:
                os.unlink(entry.path)

    def destroy(self) -> None:
        """Volumes that were made of one have names of their own for it."""
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                os.unlink(entry.path)
            os.rmdir(self.folder)

    def holds(self, path: str, size: int) -> bool:
        """Whether an image is still the blank of that size, and so nobody's content."""
        with suppress(FileNotFoundError):
            return os.path.samefile(path, self._path(size))
        return False

    def link(self, size: int, path: str) -> None:
        """Give the blank of that size one more name. It is made at its first use, and anew when it has too many links."""
        blank = self._path(size)
        try:
            os.link(blank, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EMLINK):
                raise
            make_blank(blank, size)
            os.link(blank, path, follow_symlinks=False)

    def _path(self, size: int) -> str:
        return os.path.join(self.folder, f"ext4-{size}.raw")


def make_blank(path: str, size: int) -> None:
    """An empty ext4 of `size` bytes at `path`, ready for its first mount: sparse, nothing reserved for root, and no inode
    table left for the guest's kernel to zero (the file is all holes). Raises PoolError, OSError."""
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"
    try:
        images.sparse_file(temporary, size)
        options = "lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0"
        run(
            [program("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-m", "0", "-E", options, temporary],
            f"can't make an empty file system of {size} bytes",
        )
        images.seal(temporary, "raw")
        point("storage:blank:made")
        rename(temporary, path)
    finally:
        images.unlink(temporary)
