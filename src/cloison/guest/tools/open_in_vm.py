"""qvm-open-in-vm and qvm-open-in-dvm: a file or an address, opened in another qube; what was changed there comes back."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cloison.guest.rpc.stdin import copy
from cloison.guest.tools.call import Outgoing, fail
from cloison.wire import opening

BUFFER = 1 << 17
_USAGE = 2


def main(argv: Sequence[str]) -> int:
    """The program that `argv[0]` names."""
    prog = os.path.basename(argv[0])
    words, view_only, dashes = [], False, False
    for word in argv[1:]:
        if dashes or not word.startswith("-"):
            words.append(word)
        elif word == "--":
            dashes = True
        elif word == "--view-only":
            view_only = True
        else:
            _usage(prog, 0 if word == "--help" else _USAGE)
    if prog == "qvm-open-in-dvm":
        words.insert(0, "@dispvm")
    if len(words) != 2 or not all(words):
        _usage(prog, _USAGE)
    return _open(prog, *words, view_only=view_only)


def _open(prog: str, target: str, name: str, *, view_only: bool) -> int:
    """Refuse what can't be meant, then open. The exit status."""
    asked_by = os.environ.get("QREXEC_SERVICE_FULL_NAME", "").partition("+")[0]
    if target.startswith("@dispvm") and asked_by in ("qubes.OpenInVM", "qubes.OpenURL"):
        # Asked for by another qube: a disposable that opens things in disposables could go on for ever.
        fail(prog, "refused: this was itself asked for by another qube, and would make one disposable after another")
    if os.path.isdir(name):
        fail(prog, f'"{name}" is a folder', _USAGE)
    if not os.path.isfile(name):
        if not opening.is_address(name):
            fail(prog, f'"{name}" is neither a file nor an address', _USAGE)
        return _open_address(target, name)
    return _open_file(prog, target, os.fsencode(name), view_only=view_only)


def _usage(prog: str, status: int) -> NoReturn:
    target = "" if prog == "qvm-open-in-dvm" else "QUBE "
    print(f"usage: {prog} [--view-only] [--] {target}FILE", file=sys.stderr)
    raise SystemExit(status)


def _open_address(target: str, address: str) -> int:
    call = Outgoing(target, "qubes.OpenURL")
    try:
        call.socket.sendall(os.fsencode(address) + b"\n")
        call.end_input()
        while call.socket.recv(BUFFER):
            pass
    except OSError:
        pass                             # the call's status says why
    return call.wait()


def _open_file(prog: str, target: str, path: bytes, *, view_only: bool) -> int:
    """Send the file, take what comes back in its stead. The exit status."""
    with open(path, "rb", buffering=0) as file:
        call = Outgoing(target, "qubes.OpenInVM")
        try:
            call.socket.sendall(opening.encode_name(os.path.basename(path), view_only=view_only))
            copy(file.fileno(), call.socket.fileno())
            call.end_input()
        except OSError:
            return call.wait() or 1      # the receiver took no more
    try:
        temporary = None if view_only else _receive(prog, call, path)
        while call.socket.recv(BUFFER):  # of a view nothing is taken
            pass
    except OSError as error:
        call.wait()
        fail(prog, f"error: what was changed is lost: {error.strerror}")
    status = call.wait()
    if temporary is not None and status:
        os.unlink(temporary)             # only a part may have come
        fail(prog, f"error: the call ended with status {status}; {os.fsdecode(path)} stays as it was", status)
    if temporary is not None:
        _replace(prog, temporary, path)
    return status


def _receive(prog: str, call: Outgoing, path: bytes) -> bytes | None:
    """The changed content in a temporary file beside the old one, or None if nothing came back. Raises OSError."""
    untrusted = call.socket.recv(BUFFER)
    if not untrusted:
        return None
    import tempfile  # costs a tenth of a second under emulation

    try:
        fd, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + b".", dir=os.path.dirname(path) or b".")
    except OSError:
        fd, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + b".")
        print(f"{prog}: its folder can't be written: what was changed goes to {os.fsdecode(temporary)}", file=sys.stderr)
    with open(fd, "wb") as file:
        while untrusted:
            file.write(untrusted)
            untrusted = call.socket.recv(BUFFER)
        file.flush()
        os.fsync(fd)
    return temporary


def _replace(prog: str, temporary: bytes, path: bytes) -> None:
    """The new content under the old name and with the old mode; what lies in another folder stays there."""
    if os.path.dirname(os.path.abspath(temporary)) != os.path.dirname(os.path.abspath(path)):
        return
    try:
        os.chmod(temporary, os.stat(path).st_mode & 0o777)
        os.rename(temporary, path)
    except OSError as error:
        fail(prog, f"error: what was changed is in {os.fsdecode(temporary)}: {error.strerror}")
