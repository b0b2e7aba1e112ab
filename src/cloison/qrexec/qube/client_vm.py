"""`qrexec-client-vm`: a call out of this qube (reference/qrexec.md 9.1, 11).

It starts as fast as an interpreter can, for qubes are emulated at times: built-in modules only (see caller.py). The agent answers
with the data channel's address, and in a qube of ours with its descriptor; where vchans are Unix sockets, this end listens.
"""
from __future__ import annotations

import _signal  # the part of `signal` that costs nothing to import
import _socket
import os
import sys

from cloison.qrexec import caller

SOCKET = "/var/run/qubes/qrexec-agent"
TRIGGER_SERVICE4 = 0x213
NAME_SIZE, ID_SIZE, MAX_SERVICE = 64, 32, 65000
CONNECT_TIME = 120.0                     # s that the service's end may take to come
FAILED, USAGE_STATUS, REFUSED = 1, 2, 126
USAGE = """\
usage: qrexec-client-vm [-t] [-T] [--no-filter-escape-chars-stdout] [--no-filter-escape-chars-stderr] [--buffer-size=N]
                        [--agent-socket=PATH] [-p TEXT] [--use-stdin-socket] [-s NAME] [--] TARGET SERVICE[+ARG] [PROGRAM [ARG...]]

  TARGET                 a qube; "" or @default: the policy chooses
  PROGRAM                its input and output are joined to the call instead of ours
  -t, -T                 replace what could drive a terminal in the output, in the errors; the default for a terminal
  --no-filter-...        don't
  -p, --prefix-data=TEXT send this before the input
  --use-stdin-socket     standard input is a socket: it serves both directions
  -s, --source-qube=NAME on behalf of this qube
"""
_FLAGS = {
    "--filter-escape-chars-stdout": "t", "--filter-escape-chars-stderr": "T", "--no-filter-escape-chars-stdout": "no-t",
    "--no-filter-escape-chars-stderr": "no-T", "--use-stdin-socket": "socket", "--help": "h",
}
_VALUES = {"--buffer-size": "buffer", "--agent-socket": "agent", "--prefix-data": "p", "--source-qube": "s"}


class Failure(Exception):
    """A sentence for the person, and the program's exit status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def main(arguments: list[str] | None = None) -> int:
    try:
        for fd in (0, 1, 2):
            os.fstat(fd)
    except OSError:
        return caller.PROBLEM            # a descriptor of ours would take the place of the missing one
    try:
        given, words = _parse(sys.argv[1:] if arguments is None else arguments)
        if "h" in given:
            print(USAGE, end="")
            return 0
        return _call(given, words)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return failure.status
    except OSError as error:
        print(f"qrexec-client-vm: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130


def _parse(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options, which stand before TARGET only, and the other words. Raises Failure."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            _long(word, rest, given)
        else:
            _short(word[1:], rest, given)
    if "h" not in given and (len(rest) < 2 or not given.get("buffer", "0").isdecimal()):
        raise Failure(USAGE, USAGE_STATUS)
    return given, rest


def _long(word: str, rest: list[str], given: dict[str, str]) -> None:
    name, equals, value = word.partition("=")
    if name in _FLAGS and not equals:
        given[_FLAGS[name]] = ""
    elif name in _VALUES and (equals or rest):
        given[_VALUES[name]] = value if equals else rest.pop(0)
    else:
        raise Failure(f"qrexec-client-vm: unknown option {word!r}\n{USAGE}", USAGE_STATUS)


def _short(letters: str, rest: list[str], given: dict[str, str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in "tTh":
            given[letter] = ""
        elif letter in "ps" and (letters or rest):
            given[letter], letters = letters or rest.pop(0), ""
        else:
            raise Failure(f"qrexec-client-vm: unknown option -{letter}\n{USAGE}", USAGE_STATUS)


# -- the request -----------------------------------------------------------------------------------------------------------


def trigger(source: str, target: str, service: str) -> bytes:
    """What asks the agent for a call. Raises Failure for a name that doesn't fit."""
    name = os.fsencode(service) + b"\0"
    if len(name) > MAX_SERVICE:
        raise Failure("qrexec-client-vm: the service's name and argument are too long")
    body = _field(source, "source") + _field(target.replace("$", "@"), "target") + b"SOCKET".ljust(ID_SIZE, b"\0") + name
    return caller.HEADER.pack(TRIGGER_SERVICE4, len(body)) + body


def _field(name: str, what: str) -> bytes:
    data = os.fsencode(name)
    if len(data) >= NAME_SIZE:
        raise Failure(f"qrexec-client-vm: the {what}'s name is too long")
    return data.ljust(NAME_SIZE, b"\0")


def _ask(path: str, message: bytes) -> tuple[_socket.socket, _socket.socket]:
    """The agent's connection, which lasts as long as the call, and the data channel. Raises Failure, OSError."""
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        agent.connect(path)
    except OSError as error:
        raise Failure(f"qrexec-client-vm: no qrexec agent answers at {path}: {error.strerror}") from error
    try:
        agent.sendall(message)
        answer, ancillary, _, _ = agent.recvmsg(caller.HEADER.size, _socket.CMSG_SPACE(caller.NUMBER.size))
        answer += agent.recv(caller.HEADER.size - len(answer)) if 0 < len(answer) < caller.HEADER.size else b""
    except (ConnectionResetError, BrokenPipeError):
        answer, ancillary = b"", []
    if len(answer) != caller.HEADER.size:
        raise Failure("Request refused\n(On the host, this tells why: cloison policy log)", REFUSED)
    for _, _, data in ancillary:
        return agent, _socket.socket(fileno=caller.NUMBER.unpack(data[:caller.NUMBER.size])[0])
    domain, port = caller.HEADER.unpack(answer)
    try:
        return agent, caller.listen(domain, port, CONNECT_TIME)
    except caller.NobodyCame as error:
        raise Failure(f"qrexec-client-vm: {error}", caller.PROBLEM) from error


# -- the call ----------------------------------------------------------------------------------------------------------------


def _call(given: dict[str, str], words: list[str]) -> int:
    target, service, *program = words
    agent, channel = _ask(given.get("agent", SOCKET), trigger(given.get("s", ""), target, service))
    prefix = os.fsencode(given.get("p", ""))
    stderr = caller.Sink(2, clean=_cleans(given, "T", 2))
    try:
        if program:
            return _with_program(program, channel, stderr, prefix)
        if "socket" in given:
            return caller.Caller(channel, 0, caller.Sink(0, own=True), stderr, prefix).run()
        return caller.Caller(channel, 0, caller.Sink(1, clean=_cleans(given, "t", 1)), stderr, prefix).run()
    finally:
        channel.close()
        agent.close()


def _cleans(given: dict[str, str], option: str, fd: int) -> bool:
    return option in given or (os.isatty(fd) and f"no-{option}" not in given)


def _with_program(argv: list[str], channel: _socket.socket, stderr: caller.Sink, prefix: bytes) -> int:
    """It writes what the service reads, and reads what that writes. The service's status, or else the program's."""
    def start(stdin: _socket.socket, stdout: _socket.socket, to_program: _socket.socket, from_program: _socket.socket) -> int:
        def one_socket(_number: int, _frame: object) -> None:
            """The program uses its stdin both ways: what is read from its stdout's number comes from there (7.4)."""
            os.dup2(to_program.fileno(), from_program.fileno(), inheritable=False)

        _signal.signal(_signal.SIGUSR1, one_socket)
        return _start(argv, stdin.fileno(), stdout.fileno())

    return caller.run_joined(start, channel, stderr, prefix)


def _start(argv: list[str], stdin: int, stdout: int) -> int:
    """Its process id. Raises Failure."""
    environ = dict(os.environ)
    environ["QREXEC_AGENT_PID"] = str(os.getpid())
    for fd in (0, 1, 2) if "PASS_LOCAL_STDERR" in environ else (0, 1):
        saved = os.dup(fd)
        os.set_inheritable(saved, True)
        environ[f"SAVED_FD_{fd}"] = str(saved)
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    words = [argv[0].rpartition("/")[2], *argv[1:]]
    try:
        return os.posix_spawn(argv[0], words, environ, file_actions=actions, setsigdef=[_signal.SIGPIPE, _signal.SIGXFSZ])
    except OSError as error:
        raise Failure(f"qrexec-client-vm: {argv[0]} can't be started: {error.strerror}", caller.PROBLEM) from error


if __name__ == "__main__":
    sys.exit(main())
