"""The program qfile-unpacker: receives into ~/QubesIncoming/SOURCE, or into a folder that it is told.

    qfile-unpacker [OPTIONS] [USER-ID [FOLDER]]
    --[no-]allow-all-names         names may hold any character
    --[no-]allow-unsafe-symlinks   links may lead out of what was sent
    -w N, --wait-for-space N       wait until N bytes more are free than a file needs
    -v, --verbose                  names on standard error

The stream comes on standard input, the answer goes to standard output; the exit status is the error number, modulo 256.
"""
from __future__ import annotations

import os
import sys

from cloison.qrexec.filecopy import confine
from cloison.qrexec.filecopy.unpack import Options, open_descriptors, receive
from cloison.values import InvalidValue, QubeName
from cloison.wire import displayable as _  # noqa: F401 shut in, nothing can be imported any more
from cloison.wire import filecopy as wire

TYPE_CHECKING = False                    # what types need costs a start under emulation
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

INCOMING = "QubesIncoming"
MARGIN_MAX = 2**31 - 1
_SWITCHES = {
    "--allow-all-names": ("all_names", True), "--no-allow-all-names": ("all_names", False),
    "--allow-unsafe-symlinks": ("any_target", True), "--no-allow-unsafe-symlinks": ("any_target", False),
}


def main(argv: Sequence[str]) -> int:
    """The program; `argv` has its name first. Ends with SystemExit on wrong usage."""
    options, verbose, words = _arguments(list(argv[1:]))
    user = int(words[0]) if words and words[0] else os.getuid()
    if user != os.getuid() != 0:
        _fail("only root can receive for another user")
    descriptors = open_descriptors()
    try:
        root = _shut_in(user, words[1] if len(words) > 1 else None)
    except (OSError, InvalidValue, KeyError) as error:
        _fail(f"can't prepare the folder to receive into: {error}")
    result = receive(0, root, descriptors, options, _tell if verbose else None)
    os.close(0)                          # a sender that still sends learns that nobody reads
    if result.code:
        print(f'qfile-unpacker: ended with error {result.code} at "{wire.printable(result.name)}"', file=sys.stderr)
    answer = result.encode()
    try:
        while answer:
            answer = answer[os.write(1, answer):]
    except OSError as error:
        print(f"qfile-unpacker: the sender does not take the answer: {error.strerror}", file=sys.stderr)
        return result.code & 255 or 1
    return result.code & 255


def _fail(sentence: str) -> NoReturn:
    print(f"qfile-unpacker: {sentence}", file=sys.stderr)
    raise SystemExit(1)


def _arguments(words: list[str]) -> tuple[Options, bool, list[str]]:
    """Options, whether to name entries, and the words that are no options."""
    options, verbose, rest = Options(), False, []
    while words:
        word = words.pop(0)
        if word in _SWITCHES:
            setattr(options, *_SWITCHES[word])
        elif word in ("-v", "--verbose"):
            verbose = True
        elif word in ("-w", "--wait-for-space"):
            options.margin = _margin(words.pop(0)) if words and words[0][:1].isdigit() else 1
        elif word.startswith("-"):
            _fail(f"unknown option {word!r}")
        else:
            rest.append(word)
    if len(rest) > 2 or (rest and rest[0] and not (rest[0].isascii() and rest[0].isdecimal() and len(rest[0]) <= 10)):
        _fail("takes a user id and a folder at most")
    return options, verbose, rest


def _margin(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10) or int(text) > MARGIN_MAX:
        _fail(f"{text[:20]!r} is not a number of bytes up to {MARGIN_MAX}")
    return int(text)


def _tell(entry: wire.Entry) -> None:
    if entry.kind != wire.FOLDER:
        print(wire.printable(entry.path), file=sys.stderr, flush=True)


def _shut_in(user: int, folder: str | None) -> int:
    """Become `user`, with the folder as all that can be reached; its descriptor. Raises OSError, InvalidValue, KeyError."""
    walled = _namespace()
    home = os.path.expanduser("~") if user == os.getuid() else _begin_becoming(user)
    root = _open_folder(home) if folder is None else os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.seteuid(os.getuid())
    if walled:
        root = confine.shut_in(root)
    os.setresuid(user, user, user)
    if walled:
        confine.drop_privileges()
    return root


def _namespace() -> bool:
    """Mounts of our own, before anything is opened in them. Where a user is denied them, the first wall stands alone."""
    try:
        confine.new_namespace()
        return True
    except OSError as error:
        if error.errno not in confine.NO_NAMESPACE or os.getuid() == 0:
            raise
        print(f"qfile-unpacker: no namespace of its own: {error.strerror}", file=sys.stderr)
        return False


def _begin_becoming(user: int) -> str:
    """The groups, and for the time being the effective id, of another user; his home."""
    import pwd

    entry = pwd.getpwuid(user)
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.seteuid(user)
    return entry.pw_dir


def _open_folder(home: str) -> int:
    """~/QubesIncoming/SOURCE, made where it is missing."""
    source = QubeName(os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
    path = home
    for name in (INCOMING, source):
        path = os.path.join(path, name)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
