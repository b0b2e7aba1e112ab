"""Runs the distribution's tools so that nothing of them outlives us: in their own pid and mount namespaces.

For an ordinary user also in a user namespace where this user is root and the subordinate ids are everybody else, which is
all that making a Debian tree takes. Killing the first process ends them all, their mounts go with the namespace, and
they die with us by the kernel's doing (pdeathsig), a kill -9 included.
"""
from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO

from cloison.errors import HostError
from cloison.runtime.programs import find
from cloison.templates import complaints

LAST_LINES = 40
MAX_LINE = 4096      # bytes of one line of a tool's output that are looked at


class ToolFailed(HostError):
    """A tool ended with an error. `lines` are the last it said; the sentence and the hint are made of them."""

    def __init__(self, tool: str, status: int, log: str, lines: Sequence[str]) -> None:
        why, last = complaints.cause(lines), complaints.last_words(lines)
        super().__init__(why.sentence if why else f"{tool} failed with status {status}" + (f": {last}" if last else ""))
        self.lines = tuple(lines)
        self.hint = f"{why.advice} All that {tool} said: {log}" if why else f"All that it said: {log}"


def contained() -> list[str]:
    """What to put before an argv. Raises ProgramMissing."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    return [
        find("setpriv"), "--pdeathsig", "KILL", "--",
        find("unshare"), *user, "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--",
    ]


class Tools:
    """Runs tools, from any thread, and can end all that run. After `stop` none starts any more."""

    def __init__(self, log: str) -> None:
        self.log = log
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, argv: Sequence[str], *, folder: str, on_line: Callable[[str], None] | None = None) -> None:
        """Run to the end in the namespaces, with `folder` for temporary files; output goes to the log.

        `on_line` sees each line. Raises ToolFailed, also when stopped; ProgramMissing.
        """
        command = [*contained(), find(argv[0]), *argv[1:]]
        with open(self.log, "ab") as log:
            process = self._start(command, folder)
            try:
                lines = _copy(process, log, on_line)
                status = process.wait()
            finally:
                self._end(process)
        if status:
            raise ToolFailed(argv[0], status, self.log, lines)

    def stop(self) -> None:
        """End every tool now. What they made is the work folder's to remove."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def _start(self, command: list[str], folder: str) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy") or name == "PYTHONPATH"}
        path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
        environment = {**kept, "PATH": path, "TMPDIR": folder, "HOME": folder, "LC_ALL": "C.UTF-8"}
        with self._lock:
            if self._stopped:
                raise ToolFailed(os.path.basename(command[0]), -signal.SIGKILL, self.log, ("stopped",))
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
                cwd=folder, start_new_session=True,  # a Ctrl-C is ours to handle, not theirs
            )
            self._running.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._running.discard(process)
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _copy(process: subprocess.Popen[bytes], log: IO[bytes], on_line: Callable[[str], None] | None) -> list[str]:
    """Everything to the log; the last lines are kept for the error's text, control characters replaced."""
    last: list[str] = []
    while process.stdout is not None and (line := process.stdout.readline(MAX_LINE)):
        log.write(line)
        log.flush()
        text = "".join(c if c.isprintable() else " " for c in line.decode(errors="replace")).strip()
        last = [*last, text][-LAST_LINES:]
        if on_line is not None:
            on_line(text)
    return last
