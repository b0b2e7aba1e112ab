"""What a template says of itself: its system, its services. Read from its tree when it is built (reference/admin-api.md 11.5).

A running qube says the same in `qubes.FeaturesRequest` (`guest/files/etc/qubes/post-install.d`); saying it here, nobody has to have
started the template. Nothing of the tree is believed beyond its shape: qubesd checks names and values as it does a qube's.
"""
from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator

AGENT_VERSION = "4.4"               # the release of Qubes OS whose agents ours stands in for
MAX_OS_RELEASE = 1 << 16            # bytes
MAX_SERVICES = 512
MAX_UNITS = 4096                    # in one folder
ALWAYS = {"qrexec": "1", "vmexec": "1", "os": "Linux", "qubes-agent-version": AGENT_VERSION}
_OS_RELEASE = ("usr/lib/os-release", "etc/os-release")
_FROM_OS_RELEASE = {"ID": "os-distribution", "ID_LIKE": "os-distribution-like", "VERSION_ID": "os-version", "SUPPORT_END": "os-eol"}
_VALUE = re.compile(r"[A-Za-z0-9.,_ -]{1,128}")
_SERVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# What depends on a qube's feature service.NAME: its file is there while that is on.
_SWITCH = re.compile(r"^(?:Condition)?PathExists=!?/run/qubes-service/([A-Za-z0-9_.-]{1,48})$", re.MULTILINE)
_UNITS = "usr/lib/systemd/system"


def of_tree(tree: str) -> dict[str, str]:
    """Requests as a qube makes them: name -> value. Raises OSError."""
    return {**ALWAYS, **_system(tree), **{f"supported-rpc.{name}": "1" for name in _services(tree)},
            **{f"supported-service.{name}": "1" for name in _switches(tree)}}


def _system(tree: str) -> dict[str, str]:
    text = next((found for name in _OS_RELEASE if (found := _read(os.path.join(tree, name)))), "")
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, _, quoted = line.partition("=")
        value = _unquoted(quoted)
        if name in _FROM_OS_RELEASE and _VALUE.fullmatch(value):
            values[_FROM_OS_RELEASE[name]] = value
    return values


def _unquoted(text: str) -> str:
    """A value as a shell reads it; empty if it can't be read."""
    try:
        return " ".join(shlex.split(text))
    except ValueError:
        return ""


def _read(path: str) -> str:
    """A regular file's beginning; never through a link, which would lead to the host's own. Empty if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        return os.read(fd, MAX_OS_RELEASE).decode("utf-8", "replace") if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    finally:
        os.close(fd)


def _services(tree: str) -> list[str]:
    """Names of the programs in /etc/qubes-rpc, and of links to one beside them."""
    folder = os.path.join(tree, "etc", "qubes-rpc")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) and not os.path.islink(folder) else []
    programs = {name for name in names if _is_program(os.path.join(folder, name))}
    programs |= {name for name in names if os.path.islink(os.path.join(folder, name))
                 and os.readlink(os.path.join(folder, name)) in programs}
    found = dict.fromkeys(name.partition("+")[0] for name in sorted(programs))
    return [name for name in found if _SERVICE.fullmatch(name)][:MAX_SERVICES]


def _is_program(path: str) -> bool:
    mode = os.lstat(path).st_mode
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _switches(tree: str) -> list[str]:
    """Names of the services that some unit of the system heeds."""
    files = [path for path in _units(tree) if path.endswith((".service", ".path", ".conf"))]
    return sorted({found for path in files for found in _SWITCH.findall(_read(path))})[:MAX_SERVICES]


def _units(tree: str) -> Iterator[str]:
    """Paths of units and their drop-ins."""
    folder = os.path.join(tree, _UNITS)
    parts = [os.path.join(tree, *_UNITS.split("/")[:depth]) for depth in range(1, 5)]
    if any(map(os.path.islink, parts)) or not os.path.isdir(folder):
        return
    for each in (folder, *(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))):
        yield from (os.path.join(each, name) for name in sorted(os.listdir(each))[:MAX_UNITS])
