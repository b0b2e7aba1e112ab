"""This qube's QubesDB: `qubesdb-read`, `-write`, `-list`, `-multiread`, `-rm`, `-watch`, and `qvm-features-request`."""
from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Iterator, Sequence

from cloison.errors import CloisonError, PeerError
from cloison.guest.tools.call import CLIENT, fail
from cloison.wire import qdb

SOCKET = "/run/qubes/qubesdb.sock"
REQUESTS = "/features-request/"
_USAGE = {
    "qubesdb-read": "usage: qubesdb-read [-r] [-f] [-d DEFAULT] PATH [PATH ...]", "qubesdb-list": "usage: qubesdb-list [-f] PATH",
    "qubesdb-multiread": "usage: qubesdb-multiread PATH", "qubesdb-write": "usage: qubesdb-write PATH VALUE [PATH VALUE ...]",
    "qubesdb-rm": "usage: qubesdb-rm PATH [PATH ...]", "qubesdb-watch": "usage: qubesdb-watch [-n COUNT] PATH",
}


class NotThere(CloisonError):
    """No such path, or no QubesDB."""


class Client:
    """A connection to the agent, as a context. Raises NotThere, PeerError, OSError."""

    def __init__(self) -> None:
        self._stream = socket.socket(socket.AF_UNIX)
        self._decoder = qdb.Decoder(qdb.TO_CLIENT)
        try:
            self._stream.connect(os.environ.get("QUBESDB_SOCKET") or SOCKET)
        except OSError:
            self._stream.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, path: str) -> bytes:
        """The value."""
        return self._ask(qdb.READ, path).value

    def write(self, path: str, value: bytes) -> None:
        self._ask(qdb.WRITE, path, value)

    def remove(self, path: str) -> None:
        """What lies below a path that ends in `/`, else one value."""
        self._ask(qdb.RM, path)

    def list(self, path: str) -> list[str]:
        """Paths that begin with `path`."""
        return [message.path for message in self._series(qdb.LIST, path)]

    def read_all(self, path: str) -> dict[str, bytes]:
        """Paths that begin with `path`, and values."""
        return {message.path: message.value for message in self._series(qdb.MULTIREAD, path)}

    def watch(self, path: str) -> Iterator[str]:
        """Without end: what changes, the path itself or, if it ends in `/`, what lies below. Whoever reads is told at once."""
        self._ask(qdb.WATCH, path)
        while True:
            yield self._next().path

    def _series(self, kind: int, path: str) -> Iterator[qdb.Message]:
        message = self._ask(kind, path)
        while message.path:
            yield message
            message = self._next()

    def _ask(self, kind: int, path: str, value: bytes = b"") -> qdb.Message:
        self._stream.sendall(qdb.encode(kind, path, value))
        return self._next()

    def _next(self) -> qdb.Message:
        while (message := self._decoder.next_message()) is None:
            untrusted = self._stream.recv(1 << 16)
            if not untrusted:
                raise PeerError("QubesDB hung up")
            self._decoder.feed(untrusted)
        if message.kind == qdb.RESP_ERROR_NOENT:
            raise NotThere("no such path")
        if message.kind == qdb.RESP_ERROR:
            raise CloisonError("QubesDB refused")
        return message


def read(path: str) -> str | None:
    """One value as text, or None if there is none (or no QubesDB)."""
    try:
        with Client() as client:
            return client.read(path).decode("utf-8", "replace")
    except (CloisonError, OSError, ValueError):
        return None


# -- programs ------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """The program that `argv[0]` names. Exit status 1 for any failure, 2 for a path that is not there."""
    prog, words = os.path.basename(argv[0]), list(argv[1:])
    try:
        if prog == "qvm-features-request":
            return _request_features(words)
        if prog == "qubesdb-watch":
            return _watch(words)
        return _do(prog, words)
    except NotThere:
        return 2
    except KeyboardInterrupt:                        # it ends a watch
        return 130
    except (CloisonError, OSError, ValueError) as error:
        fail(prog, str(error))


def _do(prog: str, words: list[str]) -> int:
    full, default = False, None
    while words and words[0].startswith("-"):
        option = words.pop(0)
        full = full or option == "-f"
        if option == "-d" and words:
            default = words.pop(0)
        elif option not in ("-f", "-r"):
            fail(prog, _USAGE.get(prog, ""))
    if not words or (prog == "qubesdb-write" and len(words) % 2):
        fail(prog, _USAGE.get(prog, ""))
    with Client() as client:
        if prog == "qubesdb-read":
            _read(client, words, default, full=full)
        elif prog == "qubesdb-write":
            for path, text in zip(words[::2], words[1::2], strict=True):
                client.write(path, os.fsencode(text))
        elif prog == "qubesdb-rm":
            for path in words:
                client.remove(path)
        else:
            _series(client, words[0], values=prog == "qubesdb-multiread", full=full)
    return 0


def _watch(words: list[str]) -> int:
    count = 1
    if words[:1] == ["-n"] and len(words) > 1 and words[1].isdecimal():
        count, words = int(words[1]), words[2:]
    if len(words) != 1 or words[0].startswith("-"):
        fail("qubesdb-watch", _USAGE["qubesdb-watch"])
    with Client() as client:
        for path in itertools.islice(client.watch(words[0]), count):
            _show(path.encode())
    return 0


def _series(client: Client, prefix: str, *, values: bool, full: bool) -> None:
    found = client.read_all(prefix) if values else dict.fromkeys(client.list(prefix), b"")
    for path, value in found.items():
        shown = (path if full else path.removeprefix(prefix)).encode()
        _show(shown + b" = " + value if values else shown)


def _read(client: Client, paths: list[str], default: str | None, *, full: bool) -> None:
    for path in paths:
        try:
            value = client.read(path)
        except NotThere:
            if default is None:
                raise
            value = os.fsencode(default)
        _show((path.encode() + b" = " if full else b"") + value)


def _show(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _request_features(words: list[str]) -> int:
    """qvm-features-request NAME=VALUE ... [--commit]: what this qube would like to be; the host decides at --commit."""
    with Client() as client:
        for word in words:
            name, found, value = word.partition("=")
            if word == "--commit":
                continue
            if not found or not name or name.startswith("-"):
                fail("qvm-features-request", "usage: qvm-features-request [NAME=VALUE ...] [--commit]")
            client.write(REQUESTS + name, os.fsencode(value))
    if "--commit" in words:
        os.execvp(CLIENT, [CLIENT, "dom0", "qubes.FeaturesRequest"])  # noqa: S606 a list, no shell
    return 0
