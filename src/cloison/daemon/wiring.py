"""Which drivers this installation has."""
from __future__ import annotations

from collections.abc import Mapping

from cloison.admin.qubesd import Driver
from cloison.errors import CloisonError
from cloison.storage.base import Pool
from cloison.storage.qcow2 import Qcow2Pool

_OPTIONS = ("revisions_to_keep", "dir_path", "ephemeral_volatile")


def _open_qcow2(name: str, config: Mapping[str, str]) -> Pool:
    return Qcow2Pool(name, config["dir_path"])


def _no_volumes(name: str, _config: Mapping[str, str]) -> Pool:
    raise CloisonError(f"pool {name} holds kernels, no volumes of qubes")


DRIVERS = {
    "qcow2": Driver(_OPTIONS, ("dir_path",), _open_qcow2),
    "linux-kernel": Driver(("dir_path",), ("dir_path",), _no_volumes),
}
