"""qubesd-query: one call of the Admin API as it stands on the wire, for scripts.

The payload comes from standard input, the reply goes to standard output just as qubesd sends it: its kind first, `0` for done and
`2` for an exception. Facts: reference/admin-api.md 1.6.
"""
from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection, NoDaemon
from cloison.errors import BadValue, CloisonError
from cloison.runtime.paths import Paths
from cloison.runtime.unix import connect
from cloison.wire.admin import MAX_REQUEST, Request, encode_request

MAX_LINE = 1024             # bytes of a payload that is one line
_CHUNK = 1 << 16


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), _run, argv)


def parser() -> tool.Parser:
    made = tool.Parser(prog="qubesd-query", description="Send one call to qubesd, and print its reply as it is.", examples=[
        ("qubesd-query -e dom0 admin.vm.List dom0 | tail -c +3", "all qubes, one a line"),
        ("qubesd-query -e --fail dom0 admin.vm.Start work", "exit status 2 if qubesd answers with an exception"),
        ("echo blue | qubesd-query --single-line dom0 admin.vm.property.Set work label", "the payload from standard input"),
    ])
    made.add_argument("--connect", "-c", metavar="PATH", help="qubesd's socket (default: the Admin API's)")
    made.add_argument("--empty", "-e", action="store_true", help="send no payload, and read no standard input")
    made.add_argument("--fail", action="store_true", help="exit with the kind of the reply, 0 if the call was done")
    made.add_argument("--max-bytes", metavar="N", type=int, help="how long a payload may be")
    made.add_argument("--single-line", action="store_true", help="the payload is the first line, of printable characters")
    made.add_argument("--null", action="store_true", help="a NUL after the reply")
    made.add_argument("src", metavar="SRC", help="for which qube the call is made")
    made.add_argument("method", metavar="METHOD", help="the call")
    made.add_argument("dest", metavar="DEST", help="which qube it is about")
    made.add_argument("arg", metavar="ARGUMENT", nargs="?", default="", help="the call's argument")
    return made


def _run(args: argparse.Namespace, _connection: Connection) -> int:
    payload = b"" if args.empty else _payload(args)
    request = encode_request(Request(args.method, args.arg, args.src, "name", args.dest, payload))
    path = args.connect or Paths.from_environment().socket("qubesd.sock")
    try:
        stream = connect(path)
    except OSError as error:
        raise NoDaemon(f"nobody answers on {path}: {error.strerror}") from error
    with stream:
        stream.sendall(request)
        stream.shutdown(socket.SHUT_WR)
        kind = _copy(stream)
    if args.fail:
        return kind
    if args.null:
        sys.stdout.buffer.write(b"\0")
    return 0


def _payload(args: argparse.Namespace) -> bytes:
    """Standard input. Raises BadValue for more than may be sent: nothing is cut off."""
    most = MAX_LINE if args.single_line else MAX_REQUEST
    if args.max_bytes is not None:
        if not 0 <= args.max_bytes <= MAX_REQUEST:
            raise BadValue(f"--max-bytes is at most {MAX_REQUEST}")
        most = args.max_bytes
    if args.single_line:
        return _line(most)
    payload = sys.stdin.buffer.read(most + 1)
    if len(payload) > most:
        raise BadValue(f"the payload has more than {most} bytes")
    return payload


def _line(most: int) -> bytes:
    """The first line without its end; what follows stays unread, for the script that reads it next. Raises BadValue."""
    line = b""
    while (character := os.read(sys.stdin.fileno(), 1)) != b"\n":
        if not b" " <= character <= b"~":
            raise BadValue("the payload must be a line of printable ASCII characters with an end")
        line += character
        if len(line) >= most:
            raise BadValue(f"the payload's first line has more than {most - 1} characters")
    return line


def _copy(stream: socket.socket) -> int:
    """The reply as it comes, to its end; its kind. Raises CloisonError for none."""
    first = stream.recv(1)
    if not first.isdigit():
        raise CloisonError("qubesd has closed the connection without a reply")
    sys.stdout.flush()
    data = first
    while data:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        data = stream.recv(_CHUNK)
    return int(first)
