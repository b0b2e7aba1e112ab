"""Builds the guest agent as a Debian package, and a tiny apt repository around it.

The package holds exactly those of our Python packages that the agent imports, the files below `guest/files` (which mirror
the guest's root; `DEBIAN` holds the maintainer scripts) and the qrexec services below `guest/services`. A digest of all that says
whether a template holds the agent of this very Cloison: it is a feature of the template, FEATURE.
"""
from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator

import cloison
from cloison.templates.contain import Tools

NAME = "cloison-agent"
FEATURE = "cloison-agent"               # of a template: the digest of the agent that was built into it
SOURCE = os.path.dirname(cloison.__file__)
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
    "usr/bin/qubesdb-watch": "qubesdb-read",
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


def digest(source: str = SOURCE) -> str:
    """What tells one agent from another: of every file that ships, where it goes and what is in it. Raises OSError."""
    result = hashlib.sha256(_control().encode())
    for link in LINKS.items():
        result.update(repr(link).encode())
    for target, path in sorted(_shipped(source)):
        with open(path, "rb") as file:
            content = file.read()
        result.update(f"{target!r} {len(content)}\n".encode() + content)
    return result.hexdigest()[:32]


def build(tools: Tools, folder: str, source: str = SOURCE) -> str:
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
    for target, path in _shipped(source):
        os.makedirs(os.path.dirname(os.path.join(stage, target)), exist_ok=True)
        shutil.copyfile(path, os.path.join(stage, target))
    with open(os.path.join(stage, "DEBIAN", "control"), "w", encoding="utf-8") as control:
        control.write(_control())
    for link, link_target in LINKS.items():
        os.makedirs(os.path.dirname(os.path.join(stage, link)), exist_ok=True)
        os.symlink(link_target, os.path.join(stage, link))
    files = _set_modes(stage)
    with open(os.path.join(stage, "DEBIAN", "conffiles"), "w", encoding="utf-8") as conffiles:
        conffiles.write("".join(f"/{name}\n" for name in files if name.startswith("etc/")))


def _shipped(source: str) -> Iterator[tuple[str, str]]:
    """Every file of the package: its place in the guest, and where it is here."""
    guest = os.path.join(source, "guest")
    yield from _files(os.path.join(guest, "files"), "")
    yield from _files(os.path.join(guest, "services"), "etc/qubes-rpc", not_files=("__init__.py",))
    for name in SHIPPED:
        path, target = os.path.join(source, name), os.path.join("usr/lib/cloison/cloison", name)
        if os.path.isdir(path):
            yield from _files(path, target, not_folders=_NOT_CODE, suffix=".py")
        else:
            yield target, path


def _files(
    folder: str, target: str, *, not_files: tuple[str, ...] = (), not_folders: tuple[str, ...] = ("__pycache__",), suffix: str = "",
) -> Iterator[tuple[str, str]]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in not_folders]
        for name in names:
            if name not in not_files and name.endswith(suffix):
                path = os.path.join(where, name)
                yield os.path.join(target, os.path.relpath(path, folder)), path


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
