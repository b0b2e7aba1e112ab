"""`qrexec-client`: a command or service in a qube, from the host (reference/qrexec.md 5, 8, 11).

It starts as fast as an interpreter can: built-in modules only (see caller.py). What the answer to a qube's request needs
(`-c ... -d dom0`) is loaded when it is asked for.
"""
from __future__ import annotations

import _socket
import os
import select
import sys

from cloison.qrexec import caller

EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT = 0x200, 0x201, 0x202
SOCKET_VERSION = 3
MAX_BODY = 65535
CONTROL_ANSWER = 10.0                    # s that a daemon may take to accept a request
CONNECT_TIME = 10.0                      # s that the service's end may take to come; -w
PROBLEM = caller.PROBLEM
HOSTS = ("dom0", "@adminvm", "uuid:00000000-0000-0000-0000-000000000000")
USAGE = """\
usage: qrexec-client [-t] [-T] [-w SECONDS] [-W] [-k] [-E] [--socket-dir=DIR] [-p TEXT] [--use-stdin-socket]
                     -d TARGET [-l LOCAL | -c IDENT,SRC-NAME,SRC-ID | -e] COMMAND

  -d TARGET        name, id or uuid:... of a qube; dom0
  -l LOCAL         a command whose input and output are joined to the call instead of ours
  -c ...           answer a qube's request instead of making a call
  -e               only start it
  -t, -T           replace what could drive a terminal in its output, in its errors
  -p TEXT          send this before the input
  -w SECONDS       how long to wait for the qube to connect (10; 0: for ever)
  -W               with -c: wait for the call's end
  -k               kill the qube at the end
  -E               end with status 0 whatever the call's
"""


class Failure(Exception):
    """A sentence for the person; the program ends with PROBLEM."""


class Options:
    """What the command line says. Raises Failure for one that can't be understood."""

    SHORT = "tTWkEeh"                    # without a value
    LONG = {"--socket-dir": "socket_dir", "--prefix-data": "p"}
    WORDS = {"--no-exit-code": "E", "--use-stdin-socket": "use_stdin_socket", "--help": "h"}

    def __init__(self, arguments: list[str]) -> None:
        self.given: dict[str, str] = {}
        rest = list(arguments)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            word = rest.pop(0)
            if word == "--":
                break
            if word.startswith("--"):
                self._long(word, rest)
            else:
                self._short(word[1:], rest)
        self.words = rest

    def _long(self, word: str, rest: list[str]) -> None:
        name, equals, value = word.partition("=")
        if name in self.WORDS and not equals:
            self.given[self.WORDS[name]] = ""
        elif name in self.LONG and (equals or rest):
            self.given[self.LONG[name]] = value if equals else rest.pop(0)
        else:
            raise Failure(f"unknown option {word!r}")

    def _short(self, letters: str, rest: list[str]) -> None:
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in self.SHORT:
                self.given[letter] = ""
            elif letter in "dlcpw" and (letters or rest):
                self.given[letter], letters = letters or rest.pop(0), ""
            else:
                raise Failure(f"unknown option -{letter}")

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def get(self, name: str) -> str | None:
        return self.given.get(name)

    @property
    def patience(self) -> float | None:
        """Seconds to wait for the qube, None for ever. Raises Failure."""
        text = self.given.get("w", "10")
        if not text.isdecimal():
            raise Failure(f"-w needs a number of seconds, not {text!r}")
        return float(text) or None


def main(arguments: list[str] | None = None) -> int:
    try:
        for fd in (0, 1, 2):
            os.fstat(fd)
    except OSError:
        return PROBLEM                   # a descriptor of ours would take the place of the missing one
    try:
        options = Options(sys.argv[1:] if arguments is None else arguments)
        if "h" in options:
            print(USAGE, end="")
            return 0
        return _run(options)
    except (Failure, caller.NobodyCame, OSError) as error:
        print(f"qrexec-client: {error}", file=sys.stderr)
        return PROBLEM
    except KeyboardInterrupt:
        return 130


def _run(options: Options) -> int:
    target = options.get("d")
    patience = options.patience
    if target is None or len(options.words) != 1 or sum(each in options for each in "lce") > 1:
        raise Failure(f"a target and one command are needed\n{USAGE}")
    command = options.words[0]
    if target in HOSTS or "c" in options:
        # The way of few calls; loading it costs as much as a whole other call.
        from cloison.qrexec.host import client_answer

        return client_answer.run(options, target, command, socket_folder(options))
    try:
        status = _call(options, target, command, socket_folder(options), patience)
    finally:
        if "k" in options:
            from cloison.qrexec.host import client_answer

            client_answer.kill(target)
    return 0 if "E" in options else status


def socket_folder(options: Options) -> str:
    """Where daemons have their sockets: as told, or as Qubes OS has it, or as this installation has it."""
    default = "/var/run/qubes"
    folder = options.get("socket_dir")
    if folder is None and os.environ.get("CLOISON_ROOT") is None and os.path.isdir(default):
        return default
    if folder is None:
        from cloison.runtime.paths import Paths

        return Paths.from_environment().qubes
    return folder


# -- a call ----------------------------------------------------------------------------------------------------------------


def _call(options: Options, target: str, command: str, folder: str, patience: float | None) -> int:
    kind = JUST_EXEC if "e" in options else EXEC_CMDLINE
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    # It stays open until the call has ended: closing it would only say that nobody waits for the end.
    path = os.path.join(folder, f"qrexec.{target}")
    control, domain, port = request(path, kind, (0, 0), os.fsencode(command) + b"\0", theirs)
    theirs.close()
    channel = ours if not _is_hung_up(ours) else caller.listen(domain, port, patience)
    try:
        return _converse(options, target, channel)
    finally:
        control.close()


def request(
    path: str, kind: int, params: tuple[int, int], body: bytes, stream: _socket.socket | None = None,
) -> tuple[_socket.socket, int, int]:
    """One request to a daemon: the connection, and the domain and port that it answers with.

    `params`: domain and port of the data channel; port 0 lets the daemon choose, and only then does it answer. `stream` goes
    along: the data channel, for a daemon that takes descriptors. Raises Failure, OSError.
    """
    length = caller.HEADER.size + len(body)          # of the body: domain, port and what follows
    if not caller.HEADER.size < length <= MAX_BODY or body.find(0) < 0:
        raise Failure("the command is too long, or empty")
    control = connect(path)
    hello = caller.HEADER.pack(caller.HELLO, 4) + caller.NUMBER.pack(SOCKET_VERSION)
    message = hello + caller.HEADER.pack(kind, length) + caller.HEADER.pack(*params) + body
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, caller.NUMBER.pack(stream.fileno()))] if stream is not None else []
    sent = control.sendmsg([message], rights)
    control.sendall(message[sent:])
    if _message(control)[0] != caller.HELLO:
        raise Failure("the qrexec daemon does not say hello")
    if params[1]:
        return control, *params
    answer, place = _message(control)
    if answer != kind or len(place) != caller.HEADER.size:
        raise Failure("the qrexec daemon broke the protocol")
    return control, *caller.HEADER.unpack(place)


def connect(path: str) -> _socket.socket:
    """Raises Failure when nobody listens there."""
    stream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        stream.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")      # however long the path is
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise Failure(f"nothing answers at {path}: the qube does not run, or its qrexec is not ready") from error
    finally:
        os.close(folder)
    stream.settimeout(CONTROL_ANSWER)
    return stream


def _message(control: _socket.socket) -> tuple[int, bytes]:
    """A daemon's next one, at most a few bytes. Raises Failure when it hangs up."""
    kind, length = caller.HEADER.unpack(_exactly(control, caller.HEADER.size))
    if length > caller.HEADER.size:
        raise Failure("the qrexec daemon broke the protocol")
    return kind, _exactly(control, length)


def _exactly(control: _socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = control.recv(size - len(data))
        if not more:
            raise Failure("the qrexec daemon refused the call: too many are under way, or the qube is ending")
        data += more
    return data


def _is_hung_up(stream: _socket.socket) -> bool:
    """A daemon that takes no descriptors has thrown its end away by now."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))


# -- its streams -----------------------------------------------------------------------------------------------------------


def _converse(options: Options, target: str, channel: _socket.socket) -> int:
    local = options.get("l")
    prefix = os.fsencode(options.get("p") or "")
    if "e" in options:
        return caller.Caller(channel, None, None, None, prefix).run()
    stderr = caller.Sink(2, clean="T" in options)
    if local is not None:
        return _with_program(local, target, channel, stderr, prefix)
    if "use_stdin_socket" in options:
        return caller.Caller(channel, 0, caller.Sink(0, own=True), stderr, prefix).run()
    return caller.Caller(channel, 0, caller.Sink(1, clean="t" in options), stderr, prefix).run()


def _with_program(command: str, target: str, channel: _socket.socket, stderr: caller.Sink, prefix: bytes) -> int:
    """Our input is what the program writes; it reads what the service does. The service's status, or else the program's."""
    def start(stdin: _socket.socket, stdout: _socket.socket, _to: _socket.socket, _from: _socket.socket) -> int:
        environ = {**os.environ, "QREXEC_REMOTE_DOMAIN": target}
        actions = [(os.POSIX_SPAWN_DUP2, stdin.fileno(), 0), (os.POSIX_SPAWN_DUP2, stdout.fileno(), 1)]
        # The person's own command on the host: a shell is what it is for. Nothing of a qube's is in it.
        return os.posix_spawn("/bin/sh", ["sh", "-c", command], environ, file_actions=actions)

    return caller.run_joined(start, channel, stderr, prefix)


if __name__ == "__main__":
    sys.exit(main())
