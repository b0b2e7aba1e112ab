"""The Admin API as services of the host: a link a call, none for what no qube may reach."""
from __future__ import annotations

import os
from pathlib import Path

from cloison.admin.methods import ADMIN, INTERNAL, MISC
from cloison.daemon import rpc_links
from cloison.runtime.paths import Paths


def test_links_are_made_and_stale_ones_go(tmp_path: Path) -> None:
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path)})
    paths.ensure()
    folder = tmp_path / "run" / "qubes-rpc-admin"
    for _round in range(2):
        rpc_links.make(paths)
        names = set(os.listdir(folder))
        assert names == {name for name in ADMIN if name.startswith("admin.")} - {"admin.vm.Console"} | set(MISC)
        assert not names & set(INTERNAL)
        assert os.readlink(folder / "admin.vm.List") == str(tmp_path / "run" / "qubesd.sock")
        assert os.readlink(folder / "qubes.NotifyUpdates") == str(tmp_path / "run" / "qubesd.misc.sock")
        (folder / "admin.old").symlink_to("/nowhere")
        (folder / "admin.vm.List").unlink()
