"""Which drivers this installation has."""
from __future__ import annotations

from collections.abc import Mapping

from cloison.admin.qubesd import Driver
from cloison.errors import CloisonError
from cloison.model.properties import parse_bool
from cloison.storage.base import Pool
from cloison.storage.qcow2 import Qcow2Pool
from cloison.storage.reflink import ReflinkPool

_OPTIONS = ("revisions_to_keep", "dir_path", "ephemeral_volatile")
_REFLINK_OPTIONS = ("revisions_to_keep", "dir_path", "setup_check", "ephemeral_volatile")


def _open_qcow2(name: str, config: Mapping[str, str]) -> Pool:
    return Qcow2Pool(name, config["dir_path"])


def _open_reflink(name: str, config: Mapping[str, str]) -> Pool:
    return ReflinkPool(name, config["dir_path"], check=parse_bool(config.get("setup_check", "True")))


def _no_volumes(name: str, _config: Mapping[str, str]) -> Pool:
    raise CloisonError(f"pool {name} holds kernels, no volumes of qubes")


DRIVERS = {
    "qcow2": Driver(_OPTIONS, ("dir_path",), _open_qcow2),
    "file": Driver(_OPTIONS, ("dir_path",), _open_qcow2),     # Qubes OS's word for a pool on any file system
    "file-reflink": Driver(_REFLINK_OPTIONS, ("dir_path",), _open_reflink),
    "linux-kernel": Driver(("dir_path",), ("dir_path",), _no_volumes),
}
