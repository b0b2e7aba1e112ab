"""Which file serves a call, and of what kind it is (reference/qrexec.md 10.2, 10.3). The same on the host and in a qube.

Services and their configuration are looked up alike: SERVICE+ARGUMENT in all folders first, then SERVICE. A name that is there
but can't be examined fails the call; only one that isn't there leads on to the next folder.
"""
from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import NamedTuple, TypeVar

SERVICE_PATH = "/run/qubes-rpc:/usr/local/etc/qubes-rpc:/etc/qubes-rpc"
NAME_MAX = 255
FAILED, NOT_FOUND = 125, 127
_TCP = "/dev/tcp"
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
_HOST = re.compile(r"[0-9A-Fa-f.:]+(%[0-9A-Za-z.-]+)?")


class CannotStart(Exception):
    """The call ends with `status` (125 or 127); the text is for the log of the system that would have served it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Executable(NamedTuple):
    """Run it, with the argument as its only one if that isn't empty."""

    path: str


class SocketService(NamedTuple):
    """Connect to it."""

    path: str


class TcpService(NamedTuple):
    """Connect there. `host` is a numeric address; `:` or `%` in it means IPv6."""

    host: str
    port: int


Service = Executable | SocketService | TcpService
Found = TypeVar("Found")


def service_path() -> str:
    """Folders of services, the first one first."""
    return os.environ.get("QREXEC_SERVICE_PATH", SERVICE_PATH)


def names(service: str, argument: str | None) -> list[str]:
    """File names to look for. What can't be a file's name is no name of a service with its argument."""
    full = f"{service}+{argument or ''}"
    return [service] if len(os.fsencode(full)) > NAME_MAX or "/" in full else [full, service]


def first(service: str, argument: str | None, path: str, probe: Callable[[str], Found]) -> Found | None:
    """What `probe` makes of the first file of that service in the folders of `path`. Raises CannotStart."""
    for name in names(service, argument):
        for folder in path.split(":"):
            candidate = f"{folder}/{name}"
            try:
                return probe(candidate)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CannotStart(FAILED, f"{candidate}: {error.strerror}") from None
    return None


def find(service: str, argument: str | None, path: str) -> Service:
    """What serves the call. Raises CannotStart."""
    found = first(service, argument, path, lambda candidate: _examine(candidate, argument))
    if found is None:
        raise CannotStart(NOT_FOUND, f"no service {service!r}")
    return found


def _examine(path: str, argument: str | None) -> Service:
    """The kind of a service that is there. Raises OSError, CannotStart."""
    if stat.S_ISLNK(os.lstat(path).st_mode):
        target = os.readlink(path)
        if target == _TCP or target.startswith(_TCP + "/"):
            return _tcp(target.removeprefix(_TCP).removeprefix("/"), argument)
    mode = os.stat(path).st_mode
    if stat.S_ISSOCK(mode):
        return SocketService(path)
    if not stat.S_ISREG(mode) or not os.access(path, os.X_OK, effective_ids=True):
        raise CannotStart(FAILED, f"{path} is not executable")
    return Executable(path)


def _tcp(place: str, argument: str | None) -> TcpService:
    """HOST/PORT in the link, or HOST and the port as argument, or both as argument. Raises CannotStart."""
    host, slash, port = place.partition("/")
    if slash:
        if argument:
            raise CannotStart(FAILED, "a TCP service that names its port takes no argument")
    elif host:
        port = argument or ""
    else:
        if "_" in (argument or ""):
            raise CannotStart(FAILED, "a TCP service's host is a numeric address")
        host, _, port = (argument or "").rpartition("+")
        host = host.replace("+", ":")
    if not _HOST.fullmatch(host) or not _PORT.fullmatch(port) or int(port) > 65535:
        raise CannotStart(FAILED, "a TCP service needs a numeric address and a port")
    return TcpService(host, int(port))
