"""Starting and ending the daemons of a session: each is known by the socket it listens on."""
from __future__ import annotations

import os
import select
import signal
import time

from cloison.errors import HostError
from cloison.runtime.paths import Paths
from cloison.runtime.spawn import listener, spawn
from cloison.runtime.unix import connect

POLICY_SOCKET = "policy.sock"
AGENT_SOCKET = "policy-agent.sock"
START_TIME = 30.0                        # seconds a daemon may take until it answers
OTHER_TIME = 1.0                         # seconds another may take, for which ours gave way
END_TIME = 20.0                          # seconds it may take to end
_LOG_TAIL = 2000                         # bytes of its log that are shown if it fails


class StartFailed(HostError):
    """A daemon ended, or did not answer in time."""

    hint = "cloison doctor looks for causes; the log has more."


def ensure(paths: Paths, name: str, at: str, command: list[str]) -> bool:
    """Start the daemon and wait until it answers; False if it runs already. Raises StartFailed."""
    if answers(paths, at):
        return False
    log = os.path.join(paths.log, f"{name}.log")
    before = os.path.getsize(log) if os.path.exists(log) else 0
    await_answer(paths, spawn(command, log), log, at, before)
    return True


def await_answer(paths: Paths, child: int, log: str, at: str, before: int = 0) -> None:
    """Until somebody answers on the socket; that may be another daemon, started at the same time. `before`: the log's old size.

    A daemon's socket is moved into its folder once it listens (`unix.listen`), so the folder tells. Raises StartFailed.
    """
    from cloison.runtime import inotify  # it loads what the other verbs do without

    news = inotify.Watch(paths.run, inotify.MOVED_TO)
    process = os.pidfd_open(child)
    poll = select.poll()
    poll.register(news, select.POLLIN)
    poll.register(process, select.POLLIN)
    deadline, alive = time.monotonic() + START_TIME, True
    try:
        while not answers(paths, at):
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            news.clear()
            if process in ready:
                os.waitpid(child, 0)
                poll.unregister(process)
                alive, deadline = False, min(deadline, time.monotonic() + OTHER_TIME)
            elif not ready:
                raise StartFailed(_failure(log, before, alive=alive))
    finally:
        news.close()
        os.close(process)


def _failure(log: str, before: int, *, alive: bool) -> str:
    name = os.path.basename(log).removesuffix(".log")
    return f"{name} {'does not answer' if alive else 'ended'}; the end of {log}:\n{_tail(log, before)}"


def answers(paths: Paths, at: str) -> bool:
    """Whether a daemon of this user listens on the socket."""
    try:
        connect(paths.socket(at), own=True).close()
    except OSError:
        return False
    return True


def _tail(log: str, before: int) -> str:
    """The end of what came after `before`: what a former daemon said would mislead."""
    try:
        with open(log, "rb") as file:
            file.seek(max(before, os.path.getsize(log) - _LOG_TAIL))
            return file.read().decode("utf-8", "replace").strip()
    except OSError as error:
        return str(error)


def end(paths: Paths, at: str) -> None:
    """End the process that listens on the socket, and wait for it. Raises HostError if it does not end."""
    found = listener(paths.socket(at))
    if found is None:
        return
    pid, process = found
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(END_TIME * 1000):
            raise HostError(f"the process {pid} behind {at} did not end within {END_TIME:.0f} s")
    except ProcessLookupError:
        pass                             # it was quicker
    finally:
        os.close(process)
