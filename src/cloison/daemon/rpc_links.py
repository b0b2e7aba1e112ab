"""The Admin API as qrexec services of the host: a folder of links, named after the methods, to qubesd's sockets.

A qube that policy lets call `admin.vm.List` is joined with `qubesd.sock`, which reads who calls what from the service descriptor
(reference/qrexec.md 10.3). The internal socket has no links: it is for this host's own parts.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from cloison.qrexec.host_service import ADMIN
from cloison.runtime.paths import Paths

INTERNAL = "qubesd.internal.sock"


def make(paths: Paths, sockets: Mapping[str, Iterable[str]]) -> None:
    """`sockets`: a socket's name in `run` -> methods. Links that are there stay; links of methods that are no more go."""
    folder = os.path.join(paths.run, ADMIN)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    wanted = {method: os.path.join(paths.run, socket)
              for socket, methods in sockets.items() if socket != INTERNAL for method in methods}
    for name in os.listdir(folder):
        if name not in wanted:
            os.unlink(os.path.join(folder, name))
    for method, target in wanted.items():
        link = os.path.join(folder, method)
        if not os.path.islink(link) or os.readlink(link) != target:
            temporary = f"{link}.tmp"
            if os.path.lexists(temporary):
                os.unlink(temporary)
            os.symlink(target, temporary)
            os.rename(temporary, link)
