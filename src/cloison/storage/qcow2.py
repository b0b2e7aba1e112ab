"""Driver `qcow2`: volumes as chains of image files in ordinary folders, on any file system with hard links.

    DIR/appvms/mail/private.4.raw       commits: immutable, mode 0400
    DIR/appvms/mail/private.6.qcow2     on top of 4
    DIR/appvms/mail/private.7.qcow2     dirty overlay: the manifest says that 7 is not a commit yet

See `image_pool` for all that is not about chains. Merging a long chain and exporting run qemu-img, sandboxed; see `flatten`.
"""
from __future__ import annotations

import logging
import os
import secrets
from dataclasses import replace

from cloison.errors import StorageError
from cloison.runtime.faults import point
from cloison.runtime.files import rename
from cloison.storage import images, qcow2_image
from cloison.storage.base import explained
from cloison.storage.flatten import flatten
from cloison.storage.image_pool import ImagePool
from cloison.storage.manifest import Manifest
from cloison.storage.volume import VolumeFiles
from cloison.wire.warden import Layer

SHALLOW = 3      # a chain may have that many commits without a thought
DEEPEST = 12     # and never more than that, even when merging it means copying much for little
_log = logging.getLogger(__name__)


class Qcow2Pool(ImagePool):
    """See the module."""

    driver = "qcow2"
    format = "qcow2"

    def _seal_import(self, path: str, format: str) -> int:
        return images.seal(path, format)

    def _make_empty(self, path: str, size: int) -> None:
        qcow2_image.create_overlay(path, size)

    def _make_dirty(self, layers: tuple[Layer, ...], path: str, size: int) -> None:
        qcow2_image.create_overlay(path, size)

    def _grow_dirty(self, fd: int, size: int) -> None:
        qcow2_image.grow(fd, size)

    def _is_untouched(self, files: VolumeFiles, found: Manifest) -> bool:
        with images.opened(files.path(found.dirty_suffix)) as fd:
            return qcow2_image.is_empty(fd)

    def _flat_copy(self, layers: tuple[Layer, ...], path: str, size: int) -> None:
        images.sparse_file(path, size)
        flatten(layers, path)

    def _backing(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        return layers

    def _before_start(self, files: VolumeFiles) -> None:
        self._merge(files, limit=DEEPEST)

    def _after_stop(self, files: VolumeFiles) -> None:
        try:
            self._merge(files, limit=SHALLOW)
        except StorageError as error:
            _log.warning("volume %s is committed, but its chain of images stays long: %s", files.vid, error)

    def _merge(self, files: VolumeFiles, *, limit: int) -> None:
        """Replace a long chain of the present commit by one flat image with the same content.

        The work is done without the lock, so that the qube can start meanwhile: what an overlay shows does not change
        when the commit below it is exchanged for one with the same content. Raises PoolError.
        """
        with explained(f"can't merge the images of volume {files.vid}"):
            found = files.existing()
            if len(found.chain(found.current)) <= limit:
                return
            layers = files.layers(found)
            if not _worth_merging(layers):
                return
            temporary = files.path(f".{secrets.token_hex(8)}.tmp")
            try:
                self._flat_file(layers, temporary, found.size)
                point("storage:merge:flat")
                with files.changing("merge the images of"):
                    _exchange(files, found, temporary)
            finally:
                images.unlink(temporary)


def _worth_merging(layers: tuple[Layer, ...]) -> bool:
    """Merging copies everything, so it waits until the upper images have a quarter of the lowest one's bytes."""
    bottom, *upper = (os.stat(layer.path).st_blocks for layer in layers)
    return len(layers) > DEEPEST or 4 * sum(upper) >= bottom


def _exchange(files: VolumeFiles, old: Manifest, flat: str) -> None:
    """Put the flat image in the place of a commit, unless that commit is gone by now. The lock is held."""
    found = files.read()
    if found is None or found.serial != old.serial or old.current not in {commit.id for commit in found.commits}:
        return
    merged = replace(found.commit(old.current), format="raw", base=None, length=os.stat(flat).st_size)
    commits = tuple(merged if commit.id == merged.id else commit for commit in found.commits)
    rename(flat, files.image(merged))
    point("storage:merge:renamed")
    files.write(replace(found, commits=commits).pruned())
