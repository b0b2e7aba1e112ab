"""A process's own view of the file system and its own host name, by namespaces; without root, in a user namespace too.

`enter` builds a new root: the host's, with files of ours laid into folders that stay otherwise as they are. Nothing on the host
changes: each folder on the way to such a file is remade in memory, and what the host has there is shown through. The view is
the calling process's and its children's; a program that it then becomes keeps its process id, its terminal, its signals and its
exit status, which a helper that stays between could only imitate.
"""
from __future__ import annotations

import ctypes
import os
import posixpath
import socket
import stat
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cloison.errors import HostError

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWUSER = 0x00020000, 0x04000000, 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 2, 4, 32, 0x1000, 0x4000, 0x80000
HOST = "/.host"                          # where the host's own root lies in the new one
_OURS = "/.ours"                         # what of ours is laid over folders of the host
_STAGE = "/tmp"  # noqa: S108 only a folder to mount on; nothing is written to the host's

_libc = ctypes.CDLL(None, use_errno=True)


class NamespacesRefused(HostError):
    """The kernel, or what it was told, lets this user have no namespace of his own."""

    hint = "Ordinary users need user namespaces: cloison doctor tells what forbids them."


class File(NamedTuple):
    """A file's content, for a place where the host has none or another."""

    content: bytes
    mode: int = 0o644


class Link(NamedTuple):
    """A symbolic link."""

    target: str


class _View(NamedTuple):
    """What is laid where."""

    entries: Mapping[str, File | Link]
    writable: frozenset[str]
    layered: frozenset[str]


def enter(
    host_name: str, entries: Mapping[str, File | Link], *, writable: Iterable[str] = (), layered: Iterable[str] = (),
) -> None:
    """Give this process a view of its own. The working folder stays.

    `entries`: absolute path -> what lies there, instead of what the host has. `writable`: folders in which new files may be made;
    they are lost at the end. `layered`: folders with very many files, to which ours are added by an overlay where the kernel
    allows it, since a link for each would take long. Needs a process with one thread. Raises NamespacesRefused, or OSError for a
    file system that plays tricks; the process should end then.
    """
    folder = os.getcwd()
    try:
        _unshare()
        socket.sethostname(host_name)
    except OSError as error:
        raise NamespacesRefused(f"this process can't have namespaces of its own: {error.strerror}") from error
    _mount("none", "/", flags=_MS_REC | _MS_SLAVE)
    _mount("tmpfs", _STAGE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
    os.mkdir(_STAGE + HOST)
    _call("pivot_root", _STAGE.encode(), (_STAGE + HOST).encode())
    os.chdir("/")
    _lay("/", _View(entries, frozenset(writable), frozenset(layered)))
    _mount("none", "/", flags=_MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(folder)


def _unshare() -> None:
    """Private mounts and host name; in a user namespace only where it must be, since that hides who else owns files."""
    try:
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS)
        return
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWUTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _lay(folder: str, view: _View) -> None:
    """Fill a folder in memory: ours, those above something of ours, and what else the host has there."""
    entries = view.entries
    if folder in view.layered and _overlay(folder, entries):
        return
    if folder in view.writable:
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
    below = {_child(folder, path) for path in entries if path.startswith(folder.rstrip("/") + "/")}
    for path in below:
        if path in entries:
            _put(path, entries[path])
        else:
            os.mkdir(path)
            _lay(path, view)
    for name in _names(HOST + folder):
        path = posixpath.join(folder, name)
        if path not in below and path not in (HOST, _OURS):
            _show(path)


def _overlay(folder: str, entries: Mapping[str, File | Link]) -> bool:
    """Ours over the host's folder, without a link for each of its files. False if the kernel gives this user no overlay."""
    ours = _OURS + folder
    names = {path: ours + path.removeprefix(folder) for path in entries if posixpath.dirname(path) == folder}
    if any(path.startswith(folder + "/") and path not in names for path in entries):
        return False                     # something of ours lies deeper
    os.makedirs(ours, mode=0o755, exist_ok=True)
    for path, place in names.items():
        _put(place, entries[path])
    try:
        _mount("overlay", folder, "overlay", _MS_RDONLY | _MS_NODEV, f"lowerdir={ours}:{HOST}{folder}")
    except OSError:
        return False
    return True


def _put(path: str, entry: File | Link) -> None:
    if isinstance(entry, Link):
        os.symlink(entry.target, path)
    else:
        _write(path, entry)


def _child(folder: str, path: str) -> str:
    """The entry of `folder` on the way to `path`."""
    rest = path.removeprefix(folder.rstrip("/") + "/")
    return posixpath.join(folder, rest.split("/", 1)[0])


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, PermissionError):
        return []                        # not there, or not for this user's eyes


def _write(path: str, file: File) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as output:
        output.write(file.content)
    os.chmod(path, file.mode)


def _show(path: str) -> None:
    """What the host has at `path`: a folder by a mount, so that `..` in it leads where it should; all else by a link."""
    status = os.lstat(HOST + path)
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(path)
        _mount(HOST + path, path, flags=_MS_BIND | _MS_REC)
    else:
        os.symlink(os.readlink(HOST + path) if stat.S_ISLNK(status.st_mode) else HOST + path, path)


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def _call(name: str, *arguments: object) -> None:
    """A function of the C library that answers 0 or sets errno. Raises OSError."""
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
