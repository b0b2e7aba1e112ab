"""The policy daemon: rules and facts kept ready, one verdict a connection (reference/qrexec.md 15.1, 15.4).

It holds no state that matters: killed and started again it decides the same. A request that arrives whole and takes no
person is answered on the spot; everything else gets a task, which the caller's hang-up ends. Nobody is waited for: of too
many callers who never finish their request the oldest is dropped.
"""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from cloison.errors import CloisonError, HostError, PeerError
from cloison.qrexec.call_log import CallLog, path
from cloison.qrexec.policyd.ask import Agents
from cloison.qrexec.policyd.judge import Judge
from cloison.qrexec.policyd.policy_files import LivePolicy, folders, make_folders
from cloison.qrexec.policyd.system_info import Snapshot, SystemInfo
from cloison.runtime import unix
from cloison.runtime.daemon import begin, told_to_end
from cloison.runtime.files import try_lock
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.paths import Paths
from cloison.runtime.tasks import Tasks
from cloison.wire import policy as wire

log = logging.getLogger(__name__)
SOCKET = "policy.sock"
LOCK = "policyd.lock"
EVALUATIONS = {"policy.EvalSimple": False, "policy.EvalGUI": True}      # and whether windows are meant
MAX_UNFINISHED = 512      # callers whose request is not whole yet
MAX_WAITING = 2048        # callers whose verdict takes time
_ACCEPTS = 16             # connections taken in one go, so that other sockets get their turn
_PAUSE = 1.0              # seconds without accepting when descriptors have run out
_CHUNK = 1 << 16

# What has come so far and whether it is all -> the query, or None for more. Raises PeerError: close without an answer.
Parse = Callable[[bytearray, bool], wire.Query | None]


def _parse_query(untrusted: bytearray, ended: bool) -> wire.Query | None:
    return wire.parse_query(untrusted) if wire.is_whole(untrusted) or ended else None


def _parse_evaluation(untrusted: bytearray, ended: bool, *, windows: bool) -> wire.Query | None:
    if ended or len(untrusted) > wire.MAX_DESCRIPTOR + wire.MAX_EVALUATION:
        return wire.parse_evaluation(untrusted, windows=windows)
    return None


class PolicyDaemon:
    """`listen` and serve; `close` ends everything."""

    def __init__(self, paths: Paths, agents: Agents | None = None) -> None:
        self._paths = paths
        self._policy = LivePolicy(folders(paths))
        self._system = SystemInfo(paths)
        self._call_log = CallLog(path(paths))
        self._judge = Judge(self._policy.rules, self._facts, agents or Agents(paths), self._call_log)
        self._listeners: list[tuple[str, socket.socket]] = []
        self._tasks = Tasks()
        self.unfinished: dict[_Caller, None] = {}
        self._loop = asyncio.get_running_loop()

    def listen(self) -> None:
        """The caller holds the daemon's lock, so sockets that lie there are stale. Raises OSError."""
        services = os.path.join(self._paths.run, "qubes-rpc")
        os.makedirs(services, mode=0o700, exist_ok=True)
        for name, windows in EVALUATIONS.items():
            self._listen(os.path.join(services, name), partial(_parse_evaluation, windows=windows), end="\n")
        self._listen(self._paths.socket(SOCKET), _parse_query)

    def _listen(self, name: str, parse: Parse, end: str = "") -> None:
        listener = unix.listen(name, 1024)
        self._listeners.append((name, listener))
        self._loop.add_reader(listener, self._accept, listener, parse, end.encode())

    async def close(self) -> None:
        for name, listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        for caller in list(self.unfinished):
            caller.close()
        await self._tasks.end()
        self._system.close()
        self._policy.close()
        self._call_log.close()

    # -- callers -------------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, parse: Parse, end: bytes) -> None:
        for _ in range(_ACCEPTS):
            try:
                stream, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:     # out of descriptors
                if self.unfinished:      # one that dawdles makes room
                    next(iter(self.unfinished)).close()
                    continue
                log.error("no caller can be accepted: %s", error)
                self._loop.remove_reader(listener)
                self._loop.call_later(_PAUSE, self._resume, listener, parse, end)
                return
            stream.setblocking(False)
            _Caller(stream, parse, end, self).readable()

    def _resume(self, listener: socket.socket, parse: Parse, end: bytes) -> None:
        if listener.fileno() >= 0:       # not closed meanwhile
            self._loop.add_reader(listener, self._accept, listener, parse, end)

    def admit(self, caller: _Caller) -> None:
        self.unfinished[caller] = None
        if len(self.unfinished) > MAX_UNFINISHED:
            log.info("a caller is dropped: too many have not finished their request")
            next(iter(self.unfinished)).close()

    async def _facts(self) -> Snapshot:
        return self._system.current() or await self._system.fetch()

    def verdict(self, query: wire.Query) -> bytes | None:
        """The answer, if it can be given at once."""
        now = self._system.current()
        found = None if now is None else self._judge.at_once(query, now)
        return None if found is None else found.answer()

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """A task that lives as long as the daemon at most. None, and nothing done, when there are too many."""
        if len(self._tasks) >= MAX_WAITING:
            work.close()
            return None
        return self._tasks.begin(work)

    async def judge(self, query: wire.Query) -> bytes:
        return (await self._judge.judge(query)).answer()


class _Caller:
    """One connection: a request, an answer, end. `end` follows each answer."""

    def __init__(self, stream: socket.socket, parse: Parse, end: bytes, daemon: PolicyDaemon) -> None:
        self._stream, self._parse, self._end, self._daemon = stream, parse, end, daemon
        self._untrusted = bytearray()
        self._watched = False
        self._loop = asyncio.get_running_loop()

    def readable(self) -> None:
        """Read what there is; go on when the request is whole."""
        try:
            data = self._stream.recv(_CHUNK)
        except BlockingIOError:
            self._wait()
            return
        except OSError:
            self.close()
            return
        self._untrusted += data
        try:
            query = self._parse(self._untrusted, not data)
        except PeerError as error:
            if self._untrusted or data:
                log.info("a caller is dropped: %s", error)
            self.close()
            return
        if query is None:
            self._wait()
        else:
            self._judge(query)

    def _wait(self) -> None:
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._stream, self.readable)
            self._daemon.admit(self)

    def _judge(self, query: wire.Query) -> None:
        try:
            if not unix.is_same_user(self._stream):
                log.warning("a caller is dropped: it runs as another user")
                self.close()
                return
            answer = self._daemon.verdict(query)
        except Exception:
            log.exception("a call was not judged")
            self.close()
            return
        if answer is not None:
            self._reply(answer)
            return
        self._unwatch()
        task = self._daemon.keep(self._judged(query))
        if task is None:
            self._reply(wire.DENY)
            return
        stop = watch_hangup(self._stream, task.cancel)

        def end(_: asyncio.Task[None]) -> None:
            stop()
            self.close()

        task.add_done_callback(end)

    async def _judged(self, query: wire.Query) -> None:
        try:
            answer = await self._daemon.judge(query)
        except Exception:
            log.exception("a call was not judged")
            return
        self._reply(answer)

    def _reply(self, answer: bytes) -> None:
        """Into an empty socket buffer: it takes all at once, or the caller is gone."""
        with contextlib.suppress(OSError):
            self._stream.send(answer + self._end if answer else b"")
        self.close()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._stream)
            self._daemon.unfinished.pop(self, None)

    def close(self) -> None:
        self._unwatch()
        self._stream.close()


# -- the process ---------------------------------------------------------------------------------------------------------


def take_lock(paths: Paths) -> int:
    """The descriptor that holds the lock. Raises HostError when another lives."""
    fd = try_lock(paths.socket(LOCK))
    if fd is None:
        raise HostError("another policy daemon runs already")
    return fd


async def serve(paths: Paths) -> None:
    """Until SIGTERM or SIGINT. Raises OSError."""
    end = told_to_end()
    daemon = PolicyDaemon(paths)
    try:
        daemon.listen()
        await end.wait()
    finally:
        await daemon.close()


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="policyd", description="Decides which calls between qubes are allowed.").parse_args(arguments)
    try:
        paths = begin()
        make_folders(folders(paths))
        lock = take_lock(paths)
        asyncio.run(serve(paths))
        os.close(lock)
    except (CloisonError, OSError) as error:
        print(f"policyd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
