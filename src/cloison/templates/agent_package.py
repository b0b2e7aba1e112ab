"""Builds the guest agent as a Debian package, and a tiny apt repository around it.

The package holds exactly those of our Python packages that the agent imports, the files below `guest/files` (which mirror
the guest's root; `DEBIAN` holds the maintainer scripts) and the qrexec services below `guest/services`.
"""
from __future__ import annotations

import hashlib
import os
import shutil

import cloison
from cloison.templates.contain import Tools

NAME = "cloison-agent"
# What the guest's part imports (contract in pyproject.toml), as files or folders of the package `cloison`.
SHIPPED = ("__init__.py", "errors.py", "values.py", "wire", "runtime", "qdb", "qrexec", "guest")
_NOT_CODE = ("files", "services", "__pycache__", "host", "policyd")     # the last two: the other half of `qrexec`
_EXECUTABLE = ("DEBIAN/", "etc/qubes-rpc/", "etc/qubes/post-install.d/", "etc/qubes/suspend-", "usr/bin/", "usr/lib/qubes/")
_SECRET = ("etc/sudoers.d/",)
# Links, which a wheel could not carry. A service that is a link into /dev/tcp is a connection (reference/qrexec.md 10.3).
LINKS = {
    "etc/qubes-rpc/qubes.ConnectTCP": "/dev/tcp/127.0.0.1",
    "etc/qubes-rpc/qubes.UpdatesProxy": "/dev/tcp/127.0.0.1/8082",
    "etc/qubes-rpc/qubes.VMRootExec": "qubes.VMExec",
    "etc/qubes-rpc/qubes.VMRootShell": "qubes.VMShell",
    "usr/bin/qubesdb-list": "qubesdb-read",
    "usr/bin/qubesdb-multiread": "qubesdb-read",
    "usr/bin/qubesdb-rm": "qubesdb-read",
    "usr/bin/qubesdb-write": "qubesdb-read",
    "usr/bin/qvm-copy-to-vm": "qvm-copy",
    "usr/bin/qvm-features-request": "qubesdb-read",
    "usr/bin/qvm-move": "qvm-copy",
    "usr/bin/qvm-move-to-vm": "qvm-copy",
    "usr/bin/qvm-open-in-dvm": "qvm-open-in-vm",
    "usr/lib/qubes/qrexec-client-vm": "../../bin/qrexec-client-vm",
    "usr/lib/systemd/system/paths.target.wants/qubes-updates-proxy-forwarder.path": "../qubes-updates-proxy-forwarder.path",
    "usr/lib/systemd/system/timers.target.wants/qubes-sync-time.timer": "../qubes-sync-time.timer",
    "usr/lib/systemd/system/timers.target.wants/qubes-update-check.timer": "../qubes-update-check.timer",
}
_CONTROL = """\
Package: {name}
Version: {version}
Architecture: all
Maintainer: Cloison <cloison@localhost>
Section: admin
Priority: optional
Depends: python3, systemd-sysv, udev, kmod, e2fsprogs, mount, passwd, libpam-modules, libpam-runtime
Description: agent that makes this system a qube of Cloison
 Runs the other end of every channel to the host: qrexec calls, the qube's
 identity, its disks and its network.
"""


def build(tools: Tools, folder: str, source: str = os.path.dirname(cloison.__file__)) -> str:
    """The repository's folder, made inside `folder`. `source` is the folder of the package `cloison`. Raises HostError."""
    stage = os.path.join(folder, NAME)
    repository = os.path.join(folder, "repository")
    os.makedirs(repository)
    _stage(source, stage)
    file = f"{NAME}_{cloison.__version__}_all.deb"
    path = os.path.join(repository, file)
    tools.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", stage, path], folder=folder)
    with open(path, "rb") as package:
        data = package.read()
    with open(os.path.join(repository, "Packages"), "w", encoding="utf-8") as index:
        index.write(f"{_control()}Filename: ./{file}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n")
    return repository


def _control() -> str:
    return _CONTROL.format(name=NAME, version=cloison.__version__)


def _stage(source: str, stage: str) -> None:
    """The package's tree, with the modes it is to have."""
    guest = os.path.join(source, "guest")
    shutil.copytree(os.path.join(guest, "files"), stage, copy_function=shutil.copyfile, symlinks=True)
    services = os.path.join(guest, "services")
    if os.path.isdir(services):
        shutil.copytree(services, os.path.join(stage, "etc", "qubes-rpc"), copy_function=shutil.copyfile, symlinks=True,
                        ignore=shutil.ignore_patterns("__pycache__", "__init__.py"), dirs_exist_ok=True)
    _copy_code(source, os.path.join(stage, "usr", "lib", "cloison", "cloison"))
    with open(os.path.join(stage, "DEBIAN", "control"), "w", encoding="utf-8") as control:
        control.write(_control())
    for link, link_target in LINKS.items():
        os.makedirs(os.path.dirname(os.path.join(stage, link)), exist_ok=True)
        os.symlink(link_target, os.path.join(stage, link))
    files = _set_modes(stage)
    with open(os.path.join(stage, "DEBIAN", "conffiles"), "w", encoding="utf-8") as conffiles:
        conffiles.write("".join(f"/{name}\n" for name in files if name.startswith("etc/")))


def _copy_code(source: str, target: str) -> None:
    os.makedirs(target)
    for name in SHIPPED:
        path = os.path.join(source, name)
        if os.path.isdir(path):
            shutil.copytree(path, os.path.join(target, name), ignore=_only_code, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(path, os.path.join(target, name))


def _only_code(folder: str, names: list[str]) -> list[str]:
    """What of a folder does not ship: all but Python modules and sub-packages, and the host's."""
    def ships(name: str) -> bool:
        return name not in _NOT_CODE and (name.endswith(".py") or os.path.isdir(os.path.join(folder, name)))

    return [name for name in names if not ships(name)]


def _set_modes(stage: str) -> list[str]:
    """Modes by place, whatever the source's were (wheels keep none). All regular files, sorted, relative."""
    files: list[str] = []
    for folder, _, names in os.walk(stage):
        os.chmod(folder, 0o755)  # noqa: S103 what a system's folders have
        for name in names:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                continue
            relative = os.path.relpath(path, stage)
            os.chmod(path, 0o755 if relative.startswith(_EXECUTABLE) else 0o440 if relative.startswith(_SECRET) else 0o644)
            files.append(relative)
    return sorted(files)
