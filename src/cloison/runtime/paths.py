"""Where things are on disk: one object, made from the environment once, handed to everyone.

`CLOISON_ROOT` moves everything below one folder (tests, a second installation). See docs/architecture.md "Paths".
"""
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from cloison.errors import HostError


class UnsafeRunDirectory(HostError):
    """The folder for sockets belongs to somebody else or is open to others."""

    hint = "Set XDG_RUNTIME_DIR to a folder of yours with mode 0700, or set CLOISON_ROOT."


class NoFolder(HostError):
    """A folder is missing and can't be made."""

    hint = "CLOISON_ROOT says where all of it goes; else XDG_RUNTIME_DIR, XDG_DATA_HOME and XDG_CONFIG_HOME: folders of yours."


def larger_disk() -> str:
    """What helps on a full disk, by the variable that counts here."""
    name = "CLOISON_ROOT" if os.environ.get("CLOISON_ROOT") else "XDG_DATA_HOME"
    return f"Free some space, or set {name} to a folder on a larger disk."


class Paths:
    """`run` (sockets), `data` (store, images), `config` (policy). Nothing is created here but by `ensure`."""

    def __init__(self, run: str, data: str, config: str) -> None:
        self.run, self.data, self.config = run, data, config

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Paths:
        env = os.environ if environ is None else environ
        root = env.get("CLOISON_ROOT")
        if root:
            root = os.path.abspath(root)
            return cls(os.path.join(root, "run"), os.path.join(root, "data"), os.path.join(root, "config"))
        home = env.get("HOME") or os.path.expanduser("~")
        runtime = env.get("XDG_RUNTIME_DIR")
        run = os.path.join(runtime, "cloison") if runtime else f"/tmp/cloison-{os.getuid()}"  # noqa: S108 checked in ensure()
        data = env.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
        config = env.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        return cls(run, os.path.join(data, "cloison"), os.path.join(config, "cloison"))

    def ensure(self) -> None:
        """Make the folders, mode 0700. Raises NoFolder; UnsafeRunDirectory when `run` is not ours alone: nothing is put in it."""
        _make(self.run)
        status = os.lstat(self.run)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise UnsafeRunDirectory(f"{self.run} is not a folder of this user alone")
        data = (self.data, self.tmp, self.warm, self.log, self.qube_logs)
        for folder in (*data, self.config, self.qubes, self.services, self.vchans):
            _make(folder)

    def socket(self, name: str) -> str:
        """`qubesd.sock`, `qubesd.internal.sock`, `qubesd.misc.sock`."""
        return os.path.join(self.run, name)

    @property
    def qubes(self) -> str:
        return os.path.join(self.run, "qubes")

    @property
    def services(self) -> str:
        """Services of the host: a file for each that is on."""
        return os.path.join(self.run, "qubes-service")

    @property
    def vchans(self) -> str:
        """Where channels meet that are Unix sockets: those of programs that send no descriptors."""
        return os.path.join(self.run, "vchan")

    @property
    def store(self) -> str:
        return os.path.join(self.data, "store.sqlite")

    @property
    def pool(self) -> str:
        return os.path.join(self.data, "pools", "qcow2")

    @property
    def kernels(self) -> str:
        return os.path.join(self.data, "vm-kernels")

    @property
    def warm(self) -> str:
        return os.path.join(self.data, "warm")

    @property
    def tmp(self) -> str:
        return os.path.join(self.data, "tmp")

    @property
    def log(self) -> str:
        return os.path.join(self.data, "log")

    @property
    def qube_logs(self) -> str:
        return os.path.join(self.log, "qubes")

    def qube_log(self, qube: str) -> str:
        """What the host has to tell of that qube; goes with it."""
        return os.path.join(self.qube_logs, f"{qube}.log")


def _make(folder: str) -> None:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "this user may not write to it")
    except OSError as error:
        raise NoFolder(f"the folder {folder} can't be used: {error.strerror}") from error


def leave_folder() -> None:
    """For a daemon: let go of the folder it was started in. A relative CLOISON_ROOT stays what it was, for its children too."""
    root = os.environ.get("CLOISON_ROOT")
    if root:
        os.environ["CLOISON_ROOT"] = os.path.abspath(root)
    os.chdir("/")
