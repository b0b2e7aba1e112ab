"""Both programs of a file copy over socket pairs, and streams made by hand."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.patience import PATIENCE

import cloison
from cloison.wire import filecopy as wire

SOURCE = str(Path(cloison.__file__).parents[1])


class Done(NamedTuple):
    """How a program ended."""

    status: int
    errors: str


def program(module: str, arguments: Sequence[str | bytes], stream: socket.socket, **environment: str) -> subprocess.Popen[bytes]:
    """A program of ours as its script in a qube starts it, on one socket."""
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); from {module} import main; sys.exit(main(sys.argv))"
    return subprocess.Popen(
        [sys.executable, "-ISEc", code, *(os.fsdecode(word) for word in arguments)],
        stdin=stream, stdout=stream, stderr=subprocess.PIPE, env={"PATH": os.environ["PATH"], **environment})


def unpacker(stream: socket.socket, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    return program("cloison.qrexec.filecopy.unpacker", arguments, stream, **environment)


def packer(stream: socket.socket, *arguments: str | bytes, **environment: str) -> subprocess.Popen[bytes]:
    return program("cloison.qrexec.filecopy.agent", arguments, stream, **environment)


def ended(process: subprocess.Popen[bytes]) -> Done:
    _, errors = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, errors.decode("utf-8", "backslashreplace"))


def copy(files: Sequence[str | bytes], folder: Path, *options: str, **environment: str) -> tuple[Done, Done]:
    """A whole copy: how the packer ended, how the unpacker did."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiving = unpacker(theirs, *options, "", str(folder))
        sending = packer(ours, *files, **environment)
    return ended(sending), ended(receiving)


def receive(stream: bytes, folder: Path, *options: str) -> tuple[wire.Result, Done]:
    """What the unpacker makes of a stream, however hostile: its answer, and how it ended."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiving = unpacker(theirs, *options, "", str(folder))
        theirs.close()
        try:
            ours.sendall(stream)
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            pass                         # it has seen enough
        return answer_of(ours), ended(receiving)


def answer_of(stream: socket.socket) -> wire.Result:
    untrusted = b""
    while piece := stream.recv(1 << 16):
        untrusted += piece
    result = wire.decode_result(untrusted, ended=True)
    assert result is not None, "no answer"
    return result


def file(path: bytes, content: bytes = b"", mode: int = 0o644) -> bytes:
    return wire.Entry(path, wire.REGULAR | mode, len(content)).encode() + content


def folder(path: bytes, mode: int = 0o755) -> bytes:
    return wire.Entry(path, wire.FOLDER | mode).encode()


def link(path: bytes, target: bytes) -> bytes:
    return wire.Entry(path, wire.LINK | 0o777, target=target).encode()
