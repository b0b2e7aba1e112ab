"""qubes.SyncAppMenus: what applications the calling qube has, for the host's menus.

They are kept as one folder of templates a qube, below `data/appmenus/QUBE/apps.templates`, replaced as a whole.
"""
from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence

from cloison.client.connection import Connection
from cloison.client.domains import list_qubes
from cloison.errors import CloisonError, NotPermitted
from cloison.qrexec.host.services.asking import ask, caller
from cloison.runtime.files import fsync_dir, rename
from cloison.values import InvalidValue, QubeName
from cloison.wire import appmenus

TEMPLATES = "apps.templates"


def main(argv: Sequence[str]) -> int:
    """The service."""
    try:
        connection = Connection()
        qube = caller(os.environ)
        if list_qubes(connection, qube)[qube].klass == "DispVM":
            raise NotPermitted("a disposable has the menus of its template")
        entries = appmenus.parse(ask(connection, qube, "qubes.GetAppmenus", appmenus.SIZE_MAX))
        store(os.path.join(connection.paths.data, appmenus.FOLDER), qube, entries)
        return 0
    except (CloisonError, InvalidValue, OSError) as error:
        print(f"qubes.SyncAppMenus: {error}", file=sys.stderr)
        return 1


def store(folder: str, qube: QubeName, entries: Mapping[str, Mapping[str, str]]) -> None:
    """Make these the qube's templates. `apps.templates` is a link to the folder that counts, so that one rename replaces all."""
    place = os.path.join(folder, qube)
    os.makedirs(place, mode=0o700, exist_ok=True)
    fresh = f"templates.{secrets.token_hex(4)}"
    os.mkdir(os.path.join(place, fresh), 0o700)
    for name, keys in entries.items():
        fd = os.open(os.path.join(place, fresh, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(appmenus.template(dict(keys)))
            file.flush()
            os.fsync(fd)
    fsync_dir(os.path.join(place, fresh))
    temporary = os.path.join(place, f"{fresh}.tmp")
    os.symlink(fresh, temporary)
    rename(temporary, os.path.join(place, TEMPLATES))
    for name in os.listdir(place):       # the old ones, and what was left by a run that died
        if name not in (fresh, TEMPLATES):
            path = os.path.join(place, name)
            if os.path.islink(path):
                os.unlink(path)
            else:
                shutil.rmtree(path, ignore_errors=True)
