"""Users' sessions, as PAM gives them (reference/qrexec.md 9.3), without a PAM transaction in each call's way.

A keeper (`session_keeper.py`) per user opens a session and holds it; what the session gives to programs is put on those that the
agent starts. A keeper that dies is replaced. One outlives its agent, which may be killed: the next one finds it by its socket, so
that no call waits for a session to be closed and opened anew. A user without a session can't run programs: PAM has refused, or
can't be asked.
"""
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

from cloison.qrexec import process
from cloison.qrexec.inheritance import Session
from cloison.qrexec.lookup import FAILED, CannotStart
from cloison.qrexec.qube import session_keeper
from cloison.runtime.children import when_ended
from cloison.runtime.say import say

KEEPERS = "/run/cloison-sessions"        # a socket for each user's keeper; root's alone
KEEPER = (sys.executable, "-ISE", session_keeper.__file__)
SERVICE_FILE = f"/etc/pam.d/{session_keeper.SERVICE}"
MAX_WAITING = 256                # calls that wait for one user's session
MAX_LINE = 1 << 16
LASTING = 10.0                   # s: a keeper that died sooner than that is replaced when the next call wants it, not at once

Then = Callable[[Session | CannotStart], None]


class Sessions:
    """Every user's. `keeper`: the program, to which the user's name is added; `keepers`: the folder of their sockets. In `folder`,
    if given, is a file for each session.
    """

    def __init__(self, folder: str = "", keeper: Sequence[str] = KEEPER, lasting: float = LASTING, keepers: str = KEEPERS) -> None:
        """Raises OSError for a folder that can't be made. Keepers of a killed agent are taken over."""
        self._folder, self._keeper, self._lasting, self._keepers = folder, keeper, lasting, keepers
        self._users: dict[str, _User] = {}
        self.on_lost: Callable[[str], None] = lambda _user: None
        if folder:
            os.makedirs(folder, exist_ok=True)
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
        os.makedirs(keepers, mode=0o700, exist_ok=True)
        for name in os.listdir(keepers):
            user = self._user(name)
            if user.find():
                self._users[name] = user

    def enter(self, name: str, then: Then) -> None:
        """Call `then` with that user's session, at once if there is one; or, later, with why there is none. Raises CannotStart
        where that is known at once, as for nobody's name. An empty name: ourselves.
        """
        user = process.find_user(name) if name else process.own_user()
        if user.name not in self._users:
            self._users[user.name] = self._user(user.name)
        self._users[user.name].enter(then)

    def _user(self, name: str) -> _User:
        return _User([*self._keeper, name], f"{self._keepers}/{name}", self._lasting, partial(self._changed, name))

    def _changed(self, name: str, there: bool) -> None:
        """The session of that user is there, or is lost."""
        if self._folder and there:
            os.close(os.open(f"{self._folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        elif self._folder:
            os.unlink(f"{self._folder}/{name}")
        if not there:
            self.on_lost(name)

    def close(self) -> None:
        """No agent is to follow: the keepers close their sessions and end."""
        for user in self._users.values():
            user.close()


class _User:
    """One user: no keeper, one that is opening the session, or one that holds it. `changed` hears that it does, or no longer."""

    def __init__(self, argv: Sequence[str], path: str, lasting: float, changed: Callable[[bool], None]) -> None:
        """`path`: of its keeper's socket."""
        self._name, self._argv, self._path, self._lasting, self._changed = argv[-1], argv, path, lasting, changed
        self._loop = asyncio.get_running_loop()
        self._stream: socket.socket | None = None        # to the keeper, while there is one
        self._line = b""
        self._session: Session | None = None
        self._since = 0.0
        self._waiting: list[Then] = []

    def enter(self, then: Then) -> None:
        """Raises CannotStart."""
        if self._session is not None:
            then(self._session)
            return
        if len(self._waiting) >= MAX_WAITING:
            raise CannotStart(FAILED, "too many calls wait for a session")
        if self._stream is None:
            self._open()
        self._waiting.append(then)

    def find(self) -> bool:
        """Take over the keeper that a former agent has left, if there is one."""
        try:
            self._connect()
        except OSError:
            _unlink(self._path)
            return False
        return True

    def _open(self) -> None:
        """Start a keeper. Raises CannotStart."""
        try:
            with socket.socket(socket.AF_UNIX) as server:
                _unlink(self._path)
                server.bind(self._path)
                server.listen()
                keeper = subprocess.Popen(
                    self._argv, stdin=server.fileno(), stdout=subprocess.DEVNULL, cwd="/", start_new_session=True)
                when_ended(keeper.pid, partial(_reap, keeper))
                self._connect()
        except OSError as error:
            raise CannotStart(FAILED, f"no session for {self._name}: {error.strerror or error}") from None

    def _connect(self) -> None:
        """Raises OSError."""
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.setblocking(False)        # never waits: it is answered when the keeper has time, or refused
            stream.connect(self._path)
        except BaseException:
            stream.close()
            raise
        self._stream, self._line = stream, b""
        self._loop.add_reader(stream, self._readable, stream)

    def _readable(self, stream: socket.socket) -> None:
        try:
            data = stream.recv(MAX_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._line += data
        if not data or len(self._line) > MAX_LINE:
            self._lost(stream)
        elif self._session is None and self._line.endswith(b"\n"):
            self._opened(stream)

    def _opened(self, stream: socket.socket) -> None:
        try:
            self._session, self._since = parse(self._line), self._loop.time()
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            self._lost(stream)
            say(f"the keeper of {self._name}'s session speaks another language: {error}")
            return
        self._changed(True)
        self._tell(self._session)

    def _lost(self, stream: socket.socket) -> None:
        """The keeper is gone: PAM has refused, or it was killed. Programs that run go on."""
        had_one = self._session is not None
        self._close(stream)
        if not had_one:
            self._tell(CannotStart(FAILED, f"{self._name} gets no session; the keeper's words are in this system's log"))
            return
        self._changed(False)
        say(f"the session of {self._name} has ended")
        if self._loop.time() - self._since >= self._lasting:
            with contextlib.suppress(CannotStart):
                self._open()             # what it gives, /run/user for one, goes if nobody holds it

    def _tell(self, session: Session | CannotStart) -> None:
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(session)

    def _close(self, stream: socket.socket) -> None:
        """The keeper is to end, if it hasn't, and nobody is to find it."""
        self._loop.remove_reader(stream)
        with contextlib.suppress(OSError):
            stream.send(b"\n")
        stream.close()
        _unlink(self._path)
        self._stream = self._session = None

    def close(self) -> None:
        if self._stream is not None:
            self._close(self._stream)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _reap(keeper: subprocess.Popen[bytes]) -> None:
    keeper.wait()


def parse(line: bytes) -> Session:
    """What a keeper said (`session_keeper.describe`). Limits that are this process's already are left out.

    Raises ValueError, TypeError, LookupError, AttributeError for anything else.
    """
    said = json.loads(line)
    environment = {name: value for name, value in said["environment"].items() if isinstance(value, str) and "\0" not in value}
    if len(environment) != len(said["environment"]) or not 0 <= said["umask"] <= 0o777:
        raise ValueError("variables are text, and a umask has nine bits")
    limits = tuple((which, soft, hard) for which, soft, hard in said["limits"] if resource.getrlimit(which) != (soft, hard))
    return Session(environment, limits, said["umask"])


def available() -> bool:
    """Whether this process may open sessions, and this system says how."""
    return os.geteuid() == 0 and os.path.exists(SERVICE_FILE)
