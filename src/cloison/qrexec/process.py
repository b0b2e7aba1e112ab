"""Starting what serves a call: as which user, with which environment, connected how (reference/qrexec.md 9.3, 10).

The same for a qube's agent, its fork server and the host's daemon. A program that isn't root starts programs of its own user only.
"""
from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cloison.qrexec import inheritance, lookup, one_socket, vmexec
from cloison.qrexec.inheritance import NO_SESSION, Session
from cloison.qrexec.lookup import FAILED, NOT_FOUND, CannotStart, Executable, SocketService, TcpService
from cloison.qrexec.service_config import DEFAULT, Config
from cloison.runtime import memory, unix
from cloison.wire.qrexec import Command

ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
VMEXEC = tuple(f"/etc/qubes-rpc/qubes.{name}" for name in ("VMExec", "VMRootExec", "VMExecGUI"))


class User(NamedTuple):
    """A line of the user database, with its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


class Started(NamedTuple):
    """A running program and our ends of its streams; `stdin` and `stdout` are sockets, as services may expect."""

    process: subprocess.Popen[bytes]
    stdin: socket.socket
    stdout: socket.socket
    stderr: int

    def close(self) -> None:
        """Our ends."""
        self.stdin.close()
        self.stdout.close()
        os.close(self.stderr)


class Connected(NamedTuple):
    """A connection to a socket service, perhaps not yet made: then it polls writable when it is, or has failed.

    `greeting` goes before all else. `connect`, if there is no stream yet, must be tried until it doesn't raise BlockingIOError:
    the service has as many waiting as it wants, and nothing tells when that changes.
    """

    stream: socket.socket | None
    greeting: bytes
    config: Config
    connect: Callable[[], socket.socket]


_users: dict[str, tuple[tuple[int, int], User]] = {}


def find_user(name: str) -> User:
    """The user, cached until the user database changes. Raises CannotStart."""
    version = (os.stat("/etc/passwd").st_mtime_ns, os.stat("/etc/group").st_mtime_ns)
    cached = _users.get(name)
    if cached is not None and cached[0] == version:
        return cached[1]
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise CannotStart(FAILED, f"no user {name!r}") from None
    groups = [entry.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)]
    user = User(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(groups), entry.pw_dir, entry.pw_shell or "/bin/sh")
    _users[name] = (version, user)
    return user


def own_user() -> User:
    """Who we are. Raises CannotStart."""
    try:
        return find_user(pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:
        raise CannotStart(FAILED, f"no user has the number {os.geteuid()}") from None


def environment(user: User, command: Command, session: Session = NO_SESSION, *, inherit: bool = False) -> dict[str, str]:
    """What the program sees: the session's variables and the call's. Nothing is inherited but the locale and where services are,
    or all that is no word of another call.
    """
    if inherit:
        env = {key: value for key, value in os.environ.items() if not key.startswith("QREXEC") or key == "QREXEC_SERVICE_PATH"}
    else:
        env = {key: value for key, value in os.environ.items() if key in ("LANG", "QREXEC_SERVICE_PATH") or key.startswith("LC_")}
        env["PATH"] = USER_PATH if user.uid else ROOT_PATH
    env |= session.environment
    env |= {"HOME": user.home, "SHELL": user.shell, "USER": user.name, "LOGNAME": user.name, "QREXEC_AGENT_PID": str(os.getpid())}
    if command.service:
        env |= _service_words(command)
    return env


def _service_words(command: Command) -> dict[str, str]:
    words = {
        "QREXEC_REMOTE_DOMAIN": command.source, "QREXEC_SERVICE_FULL_NAME": command.full_name,
        "QREXEC_REQUESTED_TARGET_TYPE": command.target_type,
    }
    if command.argument is not None:
        words["QREXEC_SERVICE_ARGUMENT"] = command.argument
    if command.target_type:
        keyword = "_KEYWORD" if command.target_type == "keyword" else ""
        words[f"QREXEC_REQUESTED_TARGET{keyword}"] = command.target
    return words


def start(
    command: Command, config: Config = DEFAULT, session: Session = NO_SESSION, *, quiet: bool = False, inherit: bool = False,
    shell: str = "",
) -> Started | Connected:
    """Start a parsed command line in its user's session, or connect to what serves it. Raises CannotStart.

    `quiet`: stdin and stdout are /dev/null (JUST_EXEC), and so is a command's stderr. `inherit`: the program sees our environment,
    not a clean one. `shell`: for a command line; else root uses the user's as login shell, and others /bin/sh.
    """
    if not command.service:
        user = _runs_as(command.user)
        login = "-" if not shell and os.geteuid() == 0 else ""
        shell = shell or (user.shell if login else "/bin/sh")
        argv = [login + os.path.basename(shell), "-c", command.command]
        return _spawn(shell, argv, user, environment(user, command, session, inherit=inherit), session=session, quiet=quiet)
    service = lookup.find(command.service, command.argument, lookup.service_path())
    if not isinstance(service, Executable):
        return _connect(service, command, config)
    user = _runs_as(config.force_user or command.user)
    argv = _service_argv(service.path, command.argument)
    program = argv[0] if service.path in VMEXEC else service.path
    return _spawn(program, argv, user, environment(user, command, session, inherit=inherit), session=session, quiet=quiet)


def needs_user(command: Command) -> bool:
    """Whether a program is to be started, as opposed to a connection made. Raises CannotStart for what isn't there."""
    return not command.service or isinstance(lookup.find(command.service, command.argument, lookup.service_path()), Executable)


def _runs_as(name: str) -> User:
    """An empty name: ourselves. Raises CannotStart."""
    user = find_user(name) if name else own_user()
    if os.geteuid() not in (0, user.uid):
        raise CannotStart(FAILED, f"who is not root can't become {name!r}")
    return user


def _service_argv(program: str, argument: str | None) -> list[str]:
    """A service's words. Our own qubes.VMExec is done here: starting Python for it costs a quarter of a second under emulation."""
    if program not in VMEXEC:
        return [program, argument] if argument else [program]
    try:
        return [os.fsdecode(word) for word in vmexec.decode(argument or "")]
    except ValueError as error:
        raise CannotStart(FAILED, str(error)) from None


# -- programs ------------------------------------------------------------------------------------------------------------


def _spawn(
    program: str, argv: Sequence[str], user: User, env: Mapping[str, str], *, session: Session, quiet: bool,
) -> Started:
    one_socket.hear()
    home = user.home if os.path.isdir(user.home) else "/"
    become = os.geteuid() == 0 and (user.uid, user.gid) != (0, os.getegid())    # changing nothing lets Python use vfork
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        try:
            stdin, child_stdin = _socketpair(ours, theirs)
            stdout, child_stdout = _socketpair(ours, theirs)
            stderr, child_stderr = os.pipe2(os.O_CLOEXEC)
            ours.callback(os.close, stderr)
            theirs.callback(os.close, child_stderr)
            with memory.lifted(), inheritance.of(session):
                process = subprocess.Popen(
                    argv, executable=program, env=env, cwd=home, start_new_session=True, umask=session.umask,
                    stdin=subprocess.DEVNULL if quiet else child_stdin.fileno(),
                    stdout=subprocess.DEVNULL if quiet else child_stdout.fileno(),
                    stderr=subprocess.DEVNULL if quiet and not env.get("QREXEC_SERVICE_FULL_NAME") else child_stderr,
                    user=user.uid if become else None, group=user.gid if become else None,
                    extra_groups=user.groups if become else None,
                )
            inheritance.limit_time(process.pid, session)
            inheritance.free(process.pid)
        except OSError as error:
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else FAILED
            raise CannotStart(status, f"{program}: {error.strerror}") from None
        except MemoryError:
            raise CannotStart(FAILED, f"{program}: the session's limits leave no memory to start it") from None
        ours.pop_all()
    return Started(process, stdin, stdout, stderr)


def _socketpair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    return ours.enter_context(one), theirs.enter_context(other)


# -- socket services -----------------------------------------------------------------------------------------------------


def _connect(service: SocketService | TcpService, command: Command, config: Config) -> Connected:
    greeting = b"" if config.skip_service_descriptor else os.fsencode(command.descriptor) + b"\0"
    def connect() -> socket.socket:
        return unix.connect(service.path, blocking=False) if isinstance(service, SocketService) else _connect_tcp(service)

    try:
        return Connected(connect(), greeting, config, connect)
    except BlockingIOError:
        return Connected(None, greeting, config, connect)
    except OSError as error:
        raise CannotStart(FAILED, f"{service}: {error.strerror}") from None


def _connect_tcp(service: TcpService) -> socket.socket:
    """A connection under way. Raises OSError for what shows at once."""
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family = socket.AF_INET6 if ":" in service.host or "%" in service.host else socket.AF_INET
    host = service.host.encode("ascii")            # as text it would load the codec of international names
    address = socket.getaddrinfo(host, service.port, family, socket.SOCK_STREAM, flags=numeric)[0][4]
    stream = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(BlockingIOError):
            stream.connect(address)
    except OSError:
        stream.close()
        raise
    return stream

