"""The menus of qubes that are no more: qubes.SyncAppMenus keeps a folder a qube below `data/appmenus`."""
from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection

from cloison.runtime.paths import Paths
from cloison.wire import appmenus

log = logging.getLogger(__name__)


def remove(paths: Paths, name: str) -> None:
    """Of a qube that is gone. Failing costs a few files, which the next start of qubesd removes."""
    folder = os.path.join(paths.data, appmenus.FOLDER, name)
    if os.path.lexists(folder):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            log.warning("the menus of %s are still there: %s", name, error)


def sweep(paths: Paths, names: Collection[str]) -> None:
    """All but those of these qubes."""
    try:
        found = os.listdir(os.path.join(paths.data, appmenus.FOLDER))
    except FileNotFoundError:
        return
    for name in found:
        if name not in names:
            remove(paths, name)
