"""The calls of the Admin API as services of the host: links to qubesd's sockets, by which qrexec delivers what policy allowed.

Calls of the internal socket have none: no qube can reach them, whatever its policy says (reference/admin-api.md 1.3).
"""
from __future__ import annotations

import os
import secrets

from cloison.admin.methods import ADMIN, MISC
from cloison.errors import HostError
from cloison.qrexec.host import host_service
from cloison.runtime.paths import Paths

PROGRAMS = ("admin.vm.Console",)        # served by a program of `host-rpc/`, which asks qubesd itself


def targets(paths: Paths) -> dict[str, str]:
    """Service -> socket."""
    calls = {name: paths.socket("qubesd.sock") for name in ADMIN if name.startswith("admin.") and name not in PROGRAMS}
    return calls | dict.fromkeys(MISC, paths.socket("qubesd.misc.sock"))


def make(paths: Paths) -> None:
    """Make the folder hold these links and nothing else. Raises HostError."""
    folder = os.path.join(paths.run, host_service.ADMIN)
    wanted = targets(paths)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for name in set(os.listdir(folder)) - set(wanted):
            os.unlink(os.path.join(folder, name))
        for name, target in wanted.items():
            path = os.path.join(folder, name)
            if not os.path.islink(path) or os.readlink(path) != target:
                temporary = os.path.join(folder, f".{secrets.token_hex(4)}")
                os.symlink(target, temporary)
                os.rename(temporary, path)
    except OSError as error:
        raise HostError(f"the services in {folder} can't be made: {error.strerror}") from error
