"""The folder that makes the Admin API callable from qubes."""
from __future__ import annotations

import os
from pathlib import Path

from cloison.admin.methods import SOCKETS
from cloison.daemon import rpc_links
from cloison.qrexec.host_service import ADMIN
from cloison.runtime.paths import Paths


def test_methods_lead_to_their_sockets_and_internal_ones_nowhere(tmp_path: Path) -> None:
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
    folder = Path(paths.run, ADMIN)
    folder.mkdir(parents=True)
    (folder / "admin.vm.Gone").symlink_to("nowhere")
    (folder / "admin.vm.List").symlink_to("nowhere")
    for _ in range(2):
        rpc_links.make(paths, SOCKETS)
        links = {link.name: os.readlink(link) for link in folder.iterdir()}
        assert links["admin.vm.List"] == os.path.join(paths.run, "qubesd.sock")
        assert links["qubes.NotifyUpdates"] == os.path.join(paths.run, "qubesd.misc.sock")
        assert set(links) == set(SOCKETS["qubesd.sock"]) | set(SOCKETS["qubesd.misc.sock"])
        assert not [name for name in links if name.startswith("internal.")]
