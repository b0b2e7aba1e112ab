"""The bench's own qubes, and tools run against the clock.

All its qubes carry a tag; they are killed and removed at the end, and what a killed bench left is removed by the next one. One
that was killed before its qube had the tag is known by the name, which nobody else would choose and which was written down
before. A lock keeps two benches from running at once: they would measure each other.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cloison.client.connection import Connection
from cloison.client.create import Creation, clone, create
from cloison.client.domains import get_property, lines, list_qubes
from cloison.client.events import subscribe
from cloison.errors import CloisonError, HostError
from cloison.runtime import files
from cloison.runtime.paths import Paths
from cloison.templates import suites

TAG = "cloison-bench"
RULES = "05-bench.policy"               # among the runtime policy files
LABEL = "gray"
PATIENCE = 120.0                        # seconds for a start under way to end, at the bench's end
MAX_ERRORS = 1 << 16                    # bytes of a tool's errors that are read


class ToolFailed(CloisonError):
    """A tool that is being measured ended with a failure."""


class Timed(NamedTuple):
    """Seconds since a tool was spawned, and what it put out."""

    first: float                    # the first byte of its output
    last: float                     # the end of its output: the program in the qube has ended
    exit: float
    output: bytes


@contextlib.contextmanager
def alone(paths: Paths) -> Iterator[None]:
    """Hold the lock. Raises HostError if another bench does."""
    fd = os.open(os.path.join(paths.run, "bench.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise HostError("another bench is running") from None
    finally:
        os.close(fd)


class Qubes:
    """Makes throw-away qubes of one template; the context's end removes all that were ever made, and what they were allowed."""

    def __init__(self, connection: Connection, template: str) -> None:
        self.connection, self.template = connection, template
        self._ordered = os.path.join(connection.paths.data, "bench-qube")     # holds the name of the qube being made
        self._rules = os.path.join(connection.paths.run, "policy.d", RULES)

    def __enter__(self) -> Qubes:
        self.sweep()
        return self

    def __exit__(self, *_: object) -> None:
        self.sweep()

    def sweep(self) -> None:
        """Remove our rule and our qubes; who can't be is told and left. Disposable templates go after their disposables."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._rules)
        half_made = self._half_made()
        for qube in reversed(list_qubes(self.connection).values()):
            tagged = qube.klass != "AdminVM" and TAG in lines(self.connection.call(qube.name, "admin.vm.tag.List"))
            if tagged or qube.name == half_made:
                self._remove(qube.name)

    def _remove(self, name: str) -> None:
        """Twice: a start that a killed bench left under way may come to its end between the two calls."""
        for attempt in range(2):
            self._settle(name)
            with contextlib.suppress(CloisonError):
                self.kill(name)
            try:
                self.connection.call(name, "admin.vm.Remove")
                return
            except CloisonError as error:
                if attempt:
                    print(f"bench: {name} is left: {error}", file=sys.stderr)

    def _settle(self, name: str) -> None:
        """A start that an interrupt left under way can't be killed yet: wait until it is done, or undone."""
        if not self._is_starting(name):
            return
        with subscribe(self.connection) as events:
            coming = events.until(time.monotonic() + PATIENCE)
            while self._is_starting(name) and next(coming, None):
                pass

    def _is_starting(self, name: str) -> bool:
        qube = list_qubes(self.connection).get(name)
        return qube is not None and qube.state == "Transient"

    def app(self, name: str, *, disposables: bool = False) -> str:
        """A halted AppVM; `disposables`: others can be made of it. Its name, which begins with `name`."""
        name = self._order(name)
        create(self.connection, Creation(name, "AppVM", LABEL, self.template))
        self._tag(name)
        if disposables:
            self.connection.call(name, "admin.vm.property.Set", "template_for_dispvms", b"True")
        return name

    def standalone(self, name: str) -> str:
        """A halted StandaloneVM with the template's root: it always starts cold. Its name, which begins with `name`."""
        name = self._order(name)
        clone(self.connection, self.template, Creation(name, "StandaloneVM", LABEL), skip_volumes=("private",))
        self._tag(name)
        return name

    def kill(self, name: str) -> None:
        """Returns when it is halted."""
        self.connection.call(name, "admin.vm.Kill")

    def allow(self, rule: str) -> None:
        """A policy rule about qubes of ours, until the next `sweep`. The user's files stay as they are."""
        files.write_atomic(self._rules, f"{rule}\n".encode())

    def _order(self, name: str) -> str:
        """A name of our own for the next qube, written down before there is one."""
        name = f"{name}-{secrets.token_hex(4)}"
        files.write_atomic(self._ordered, name.encode())
        return name

    def _half_made(self) -> str:
        """The name that was written down last; empty if there is none."""
        try:
            with open(self._ordered, encoding="utf-8") as file:
                return file.read(64)
        except FileNotFoundError:
            return ""

    def _tag(self, name: str) -> None:
        self.connection.call(name, "admin.vm.tag.Set", TAG)


def choose_template(connection: Connection) -> str:
    """The default template, else the only one. Raises HostError."""
    chosen = get_property(connection, None, "default_template").value
    templates = [qube.name for qube in list_qubes(connection).values() if qube.klass == "TemplateVM"]
    if chosen or len(templates) == 1:
        return chosen or templates[0]
    error = HostError("there is no default template to make qubes of" if templates else "there is no template to make qubes of")
    error.hint = f"cloison template build {suites.USUAL}"
    raise error


def tool_command(name: str, *words: str) -> list[str]:
    """The argv of one of our tools: the installed one beside this Python, or its module."""
    installed = os.path.join(os.path.dirname(sys.executable), name)
    if os.access(installed, os.X_OK):
        return [installed, *words]
    code = f"import sys; from cloison.cli.{name.replace('-', '_')} import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", code, *words]


def timed(command: Sequence[str], stdin: int = subprocess.DEVNULL, keep: int = 1 << 16, env: dict[str, str] | None = None) -> Timed:
    """Run a tool. `keep`: bytes of its output that are kept. Raises ToolFailed for another exit status than 0."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=env) as process:
        try:
            return _follow(process, begun, keep)
        finally:
            process.kill()               # an interrupt must not wait for it


def _follow(process: subprocess.Popen[bytes], begun: float, keep: int) -> Timed:
    assert process.stdout is not None and process.stderr is not None
    output = process.stdout.read(keep) or b""
    first = time.perf_counter() - begun
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        while os.splice(process.stdout.fileno(), null, 1 << 20):
            pass
    finally:
        os.close(null)
    last = time.perf_counter() - begun
    status = process.wait()
    end = time.perf_counter() - begun
    if status:
        said = (process.stderr.read(MAX_ERRORS) or b"").decode(errors="replace").strip()
        raise ToolFailed(f"a measured tool ended with {status}: {said[-500:]}")
    return Timed(first, last, end, output)
