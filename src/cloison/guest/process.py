"""Programs that the host's calls start: as which user, with which environment, found where (reference/qrexec.md 9.3, 10)."""
from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import stat
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cloison.guest import vmexec
from cloison.wire.qrexec import Command

SERVICE_PATH = "/run/qubes-rpc:/usr/local/etc/qubes-rpc:/etc/qubes-rpc"
ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
VMEXEC = "/etc/qubes-rpc/qubes.VMExec"
NAME_MAX = 255
FAILED, NOT_FOUND = 125, 127


class CannotStart(Exception):
    """The call ends with `status` (125 or 127); the text is for the guest's own log."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


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


_users: dict[str, tuple[tuple[int, int], User]] = {}


def lookup(name: str) -> User:
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


def service_path() -> str:
    """Folders of services, the first one first."""
    return os.environ.get("QREXEC_SERVICE_PATH", SERVICE_PATH)


def find_service(service: str, argument: str | None, path: str) -> str:
    """The executable of a service: SERVICE+ARGUMENT in all folders first, then SERVICE. Raises CannotStart."""
    full = f"{service}+{argument or ''}"
    names = [service] if len(full) > NAME_MAX or "/" in full else [full, service]
    for name in names:
        for folder in path.split(":"):
            candidate = f"{folder}/{name}"
            try:
                mode = os.stat(candidate).st_mode
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CannotStart(FAILED, f"{candidate}: {error.strerror}") from None
            if not stat.S_ISREG(mode) or not os.access(candidate, os.X_OK):
                raise CannotStart(FAILED, f"{candidate} is not executable")
            return candidate
    raise CannotStart(NOT_FOUND, f"no service {service!r}")


def environment(user: User, command: Command) -> dict[str, str]:
    """What the program sees; nothing is inherited but the locale and where services are."""
    env = {key: value for key, value in os.environ.items() if key in ("LANG", "QREXEC_SERVICE_PATH") or key.startswith("LC_")}
    env |= {"HOME": user.home, "SHELL": user.shell, "USER": user.name, "LOGNAME": user.name,
            "PATH": USER_PATH if user.uid else ROOT_PATH, "QREXEC_AGENT_PID": str(os.getpid())}
    if command.service:
        full = command.service if command.argument is None else f"{command.service}+{command.argument}"
        env |= {"QREXEC_REMOTE_DOMAIN": command.source, "QREXEC_SERVICE_FULL_NAME": full, "QREXEC_REQUESTED_TARGET_TYPE": ""}
        if command.argument is not None:
            env["QREXEC_SERVICE_ARGUMENT"] = command.argument
    return env


def start(command: Command, *, quiet: bool = False) -> Started:
    """Start a parsed command line. `quiet`: stdin and stdout are /dev/null (JUST_EXEC). Raises CannotStart.

    An agent that isn't root (in tests) runs programs of its own user only.
    """
    user = lookup(command.user)
    if os.getuid() not in (0, user.uid):
        raise CannotStart(FAILED, f"the agent is not root and can't become {user.name!r}")
    if command.service:
        program = find_service(command.service, command.argument, service_path())
        argv = _service_argv(program, command.argument)
        program = argv[0] if program == VMEXEC else program
    else:
        program = user.shell
        argv = ["-" + os.path.basename(program), "-c", command.command]
    return _spawn(program, argv, user, environment(user, command), quiet)


def _service_argv(program: str, argument: str | None) -> list[str]:
    """A service's words. Our own qubes.VMExec is done here: starting Python for it costs a quarter of a second under emulation."""
    if program != VMEXEC:
        return [program, argument] if argument else [program]
    try:
        return [os.fsdecode(word) for word in vmexec.decode(argument or "")]
    except ValueError as error:
        raise CannotStart(FAILED, str(error)) from None


def _spawn(program: str, argv: Sequence[str], user: User, env: Mapping[str, str], quiet: bool) -> Started:
    home = user.home if os.path.isdir(user.home) else "/"
    as_root = os.getuid() == 0
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        try:
            stdin, child_stdin = _socketpair(ours, theirs)
            stdout, child_stdout = _socketpair(ours, theirs)
            stderr, child_stderr = os.pipe2(os.O_CLOEXEC)
            ours.callback(os.close, stderr)
            theirs.callback(os.close, child_stderr)
            process = subprocess.Popen(
                argv, executable=program, env=env, cwd=home, start_new_session=True,
                stdin=subprocess.DEVNULL if quiet else child_stdin.fileno(),
                stdout=subprocess.DEVNULL if quiet else child_stdout.fileno(),
                stderr=subprocess.DEVNULL if quiet else child_stderr,
                user=user.uid if as_root else None, group=user.gid if as_root else None,
                extra_groups=user.groups if as_root else None,
            )
        except OSError as error:
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else FAILED
            raise CannotStart(status, f"{program}: {error.strerror}") from None
        ours.pop_all()
    return Started(process, stdin, stdout, stderr)


def _socketpair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    return ours.enter_context(one), theirs.enter_context(other)
