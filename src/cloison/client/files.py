"""A file into a qube, a file out of one: whole or not at all, at both ends, by plain programs of the qube.

In the qube the bytes go to a temporary file beside the target, whose size is checked and which then takes the target's name. Here
it is the same. Names are the caller's on both sides: none that a qube could choose.
"""
from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from cloison.client import words
from cloison.client.connection import Connection
from cloison.client.ends import File, FileSource, Source, Tail, Whole
from cloison.client.failures import TransferFailed, qube_name, said
from cloison.client.program import Order
from cloison.client.qrexec import Ends
from cloison.client.run import MAX_OUTPUT, finish
from cloison.errors import HostError
from cloison.runtime.files import fsync_dir

MAX_FILE = 4 << 30                       # bytes of a file that is taken from a qube, if nobody says otherwise

# Its words are $1 the temporary file, $2 the target, $3 the size, $4 the mode. `dd` neither follows nor overwrites what is there.
_PUT: Final = """\
umask 077
trap 'rm -f -- "$1" 2>/dev/null' EXIT
trap 'exit 129' HUP INT TERM
dd of="$1" bs=64k iflag=fullblock conv=excl,fsync status=none || exit
[ "$(stat -c %s -- "$1")" = "$3" ] || { echo 'it did not come whole' >&2; exit 1; }
chmod -- "$4" "$1" && mv -fT -- "$1" "$2"
"""


class Sending(NamedTuple):
    """A file on its way into a qube."""

    order: Order
    path: str


@contextlib.contextmanager
def sending(qube: str, source: bytes | str | os.PathLike[str], path: str, *, user: str, mode: int) -> Iterator[Sending]:
    """Raises HostError for a file here that can't be read, BadCommand."""
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes):
            size, feed = len(source), Source(source, ended=True)
        else:
            fd = stack.enter_context(_opened(source))
            size, feed = os.fstat(fd).st_size, FileSource(fd)
        target = _harmless(path)
        temporary = posixpath.join(posixpath.dirname(target), f".cloison-{secrets.token_hex(8)}")
        line = words.program(["/bin/sh", "-c", _PUT, "put", temporary, target, str(size), f"{mode & 0o7777:o}"], user=user)
        yield Sending(Order(qube_name(qube), line, Ends(feed, Tail(), Tail())), path)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostError(f"{os.fspath(path)}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise HostError(f"{os.fspath(path)} is no regular file")
        yield fd
    finally:
        os.close(fd)


def _harmless(path: str) -> str:
    """A path that no program takes for an option. Relative ones start in the user's home."""
    return path if path.startswith("/") else f"./{path}"


def sent(sending: Sending, status: int) -> None:
    """Raises TransferFailed."""
    _check(sending.order, sending.path, status)


def _check(order: Order, path: str, status: int) -> None:
    if status:
        assert order.ends.stderr is not None and not isinstance(order.ends.stderr, int)
        raise TransferFailed(order.qube, path, f"status {status}{said(bytes(order.ends.stderr.untrusted))}")


def fetching(qube: str, path: str, limit: int, user: str) -> Order:
    """To memory."""
    return Order(qube_name(qube), words.program(["cat", "--", _harmless(path)], user=user), Ends(None, Whole(limit), Tail()))


def fetched(order: Order, path: str, status: int) -> bytes:
    """Raises TransferFailed."""
    _check(order, path, status)
    assert isinstance(order.ends.stdout, Whole)
    return bytes(order.ends.stdout.untrusted)


class Receiving:
    """A file on its way out of a qube, to a temporary file beside `to`, which the context removes if it is still there then."""

    def __init__(
        self, qube: str, path: str, to: str | os.PathLike[str], *, limit: int, user: str, mode: int,
    ) -> None:
        """Raises HostError."""
        self._path, self._to = path, os.fspath(to)
        self._temporary = f"{self._to}.{secrets.token_hex(4)}.tmp"
        try:
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        except OSError as error:
            raise HostError(f"{self._temporary}: {error.strerror}") from error
        self._file = File(self._fd, limit)
        self.order = fetching(qube, path, 0, user)
        self.order = self.order._replace(ends=self.order.ends._replace(stdout=self._file))

    def __enter__(self) -> Receiving:
        return self

    def keep(self, status: int) -> int:
        """It came whole: it takes its name. Its size. Raises TransferFailed, OSError."""
        _check(self.order, self._path, status)
        os.fsync(self._fd)
        os.rename(self._temporary, self._to)
        fsync_dir(os.path.dirname(self._to) or ".")
        return self._file.size

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)
        if isinstance(error, OSError):
            raise HostError(f"{self._to}: {error.strerror or error}") from error


def put(
    connection: Connection, qube: str, source: bytes | str | os.PathLike[str], path: str, *, user: str = "DEFAULT",
    mode: int = 0o644, timeout: float | None = None,
) -> None:
    """The file `path` in the qube is these bytes, or this file of the host's, whole; whatever had that name is replaced.

    Raises TransferFailed, HostError, and as `run`.
    """
    with sending(qube, source, path, user=user, mode=mode) as under_way:
        sent(under_way, finish(connection, under_way.order, timeout))


def get(
    connection: Connection, qube: str, path: str, *, user: str = "DEFAULT", max_size: int = MAX_OUTPUT,
    timeout: float | None = None,
) -> bytes:
    """What a file in the qube holds: the qube's word, `untrusted`. Raises TransferFailed, TooMuchOutput, and as `run`."""
    order = fetching(qube, path, max_size, user)
    return fetched(order, path, finish(connection, order, timeout))


def get_file(
    connection: Connection, qube: str, path: str, to: str | os.PathLike[str], *, user: str = "DEFAULT", mode: int = 0o600,
    max_size: int = MAX_FILE, timeout: float | None = None,
) -> int:
    """The file `to` of the host is what that file in the qube holds, whole, or is what it was before. Its size.

    Raises TransferFailed, TooMuchOutput, HostError, and as `run`.
    """
    with Receiving(qube, path, to, limit=max_size, user=user, mode=mode) as receiving:
        return receiving.keep(finish(connection, receiving.order, timeout))
