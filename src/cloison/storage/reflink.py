"""Driver `file-reflink`: every commit is a whole raw file, and files share their blocks (btrfs, XFS).

    DIR/appvms/mail/private.4.raw       commits: immutable, mode 0400
    DIR/appvms/mail/private.5.raw       dirty copy of 4: the manifest says that 5 is not a commit yet

No chain, nothing to merge, no qcow2 between the guest and its disk: a start is one FICLONE. See `image_pool` for the rest.
On a file system that can't share blocks `setup` refuses, unless the pool was made with setup_check=False: then each start of a
volume copies it, holes kept, which is slow and takes the space twice.
"""
from __future__ import annotations

import errno
import fcntl
import os
import secrets

from cloison.storage import images
from cloison.storage.base import PoolError, explained
from cloison.storage.image_pool import ImagePool
from cloison.storage.manifest import Manifest
from cloison.storage.volume import VolumeFiles
from cloison.wire.warden import Layer

_FICLONE = 0x40049409
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)


class ReflinkPool(ImagePool):
    """See the module. `check`: refuse a file system whose files can't share blocks."""

    driver = "file-reflink"
    format = "raw"

    def __init__(self, name: str, folder: str, *, check: bool = True) -> None:
        super().__init__(name, folder)
        self._check = check

    def setup(self) -> None:
        super().setup()
        if self._check:
            try:
                with explained(f"can't set up pool {self.name}"):
                    self._probe()
            except PoolError:
                self.destroy()
                raise

    def _probe(self) -> None:
        """Raises OSError(EOPNOTSUPP) if files here can't share blocks."""
        source, target = (os.path.join(self.folder, f".probe-{secrets.token_hex(8)}.tmp") for _ in range(2))
        try:
            images.sparse_file(source, 1 << 16)
            self._clone_file(source, target)
        finally:
            images.unlink(source)
            images.unlink(target)

    def _clone_file(self, path: str, target: str) -> None:
        """A new file with the content of another, sharing its blocks. Not durable yet."""
        with images.opened(path) as source, images.created(target) as copy:
            try:
                fcntl.ioctl(copy, _FICLONE, source)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                if self._check:
                    raise OSError(errno.EOPNOTSUPP, "its file system can't share blocks between files (no reflinks)") from error
                images.copy_data(source, copy)

    def _seal_import(self, path: str, format: str) -> int:
        if format != "raw":
            raise PoolError("not an image for this pool", f"it takes raw files only, not {format[:20]!r}")
        return images.seal(path, format)

    def _make_empty(self, path: str, size: int) -> None:
        images.sparse_file(path, size)

    def _make_dirty(self, layers: tuple[Layer, ...], path: str, size: int) -> None:
        self._flat_copy(layers, path, size)
        with images.opened(path, os.O_RDWR) as fd:
            os.fsync(fd)

    def _grow_dirty(self, fd: int, size: int) -> None:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
            os.fsync(fd)

    def _is_untouched(self, files: VolumeFiles, found: Manifest) -> bool:
        """A file system that was mounted differs in its first blocks, so reading all of both files is the rare case."""
        return images.same_content(files.path(found.dirty_suffix), files.image(found.commit(found.current)))

    def _flat_copy(self, layers: tuple[Layer, ...], path: str, size: int) -> None:
        (layer,) = layers
        self._clone_file(layer.path, path)
        os.truncate(path, size)

    def _backing(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        return ()
