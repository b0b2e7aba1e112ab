"""A small qubesd and small wardens for tests of the tools: the real wire formats over real sockets, a model of a few dicts.

A call into a qube runs the command with the host's shell; that is enough to see streams, statuses and back-pressure.
"""
from __future__ import annotations

import array
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.qrexec import vmexec
from cloison.wire import admin
from cloison.wire import qrexec as wire

GRACE = 5.0                  # s for what is to end at once
LAST_WORDS = 1.0             # s for a program to read what its caller said before it went
Handler = Callable[["FakeQubesd", admin.Request], bytes]


class Refused(Exception):
    """What a handler raises to answer an exception: class name, message."""


class FakeQubesd:
    """`calls` is the conversation; tests print and compare it."""

    def __init__(self, root: Path) -> None:
        self.run = root / "run"
        (self.run / "qubes").mkdir(parents=True)
        self.calls: list[tuple[str, str, str, bytes]] = []
        self.qubes: dict[str, dict[str, str]] = {
            "dom0": {"class": "AdminVM", "state": "Running", "label": "black"},
            "debian-12": {"class": "TemplateVM", "state": "Halted", "label": "black"},
            "work": {"class": "AppVM", "state": "Halted", "label": "blue", "template": "debian-12", "netvm": "sys-net"},
            "sys-net": {"class": "AppVM", "state": "Running", "label": "red", "template": "debian-12", "provides_network": "True"},
        }
        self.features: dict[str, dict[str, str]] = {name: {} for name in self.qubes}
        self.tags: dict[str, list[str]] = {name: [] for name in self.qubes}
        self.answers: dict[str, Handler] = {}   # method -> handler of a test's own
        self.leases: list[socket.socket] = []
        self.ended_leases = threading.Event()

    # -- the Admin API

    def reply(self, request: admin.Request) -> bytes:
        self.calls.append((request.dest, request.method, request.argument, request.payload))
        try:
            if request.method in self.answers:
                return self.answers[request.method](self, request)
            if request.dest not in self.qubes:
                raise Refused("QubesVMNotFoundError", f"no qube {request.dest}")
            return admin.ok(self._answer(request))
        except Refused as refused:
            return admin.exception(*refused.args)

    def _answer(self, request: admin.Request) -> bytes:
        family = request.method.rpartition(".")[0].rpartition(".")[2]
        if family == "property":
            return self._property(request)
        if family in ("feature", "tag"):
            return self._feature(request) if family == "feature" else self._tag(request)
        if request.method == "admin.vm.List":
            names = self.qubes if request.dest == "dom0" else [request.dest]
            return "".join(
                f"{name} class={self.qubes[name]['class']} state={self.qubes[name]['state']} uuid=u-{name}\n" for name in names
            ).encode()
        if request.method.startswith("admin.vm.Create."):
            return self._create(request)
        return self._power(request)

    def _create(self, request: admin.Request) -> bytes:
        words = dict(word.split("=") for word in request.payload.decode().split(" "))
        if words["name"] in self.qubes:
            raise Refused("QubesVMAlreadyExistsError", f"qube {words['name']} exists, 100% sure")
        klass = request.method.rpartition(".")[2]
        self.qubes[words["name"]] = {
            "class": klass, "state": "Halted", "label": words["label"], "template": request.argument or "debian-12"}
        self.features[words["name"]], self.tags[words["name"]] = {}, []
        if "unfinished" in words:
            self.features[words["name"]]["prohibit-start"] = words["unfinished"]
        return b""

    def _power(self, request: admin.Request) -> bytes:
        qube = self.qubes[request.dest]
        word = request.method.removeprefix("admin.vm.")
        if word == "Remove":
            del self.qubes[request.dest]
            return b""
        becomes = {"Start": "Running", "Shutdown": "Halted", "Kill": "Halted", "Pause": "Paused", "Unpause": "Running"}
        if word not in becomes:
            raise Refused("ProtocolError", f"unknown method {request.method}")
        if word in ("Shutdown", "Kill", "Pause") and qube["state"] == "Halted":
            raise Refused("QubesVMNotStartedError", f"{request.dest} is halted")
        qube["state"] = becomes[word]
        return b""

    def _property(self, request: admin.Request) -> bytes:
        qube = self.qubes[request.dest]
        word = request.method.rpartition(".")[2]
        if word in ("GetAll", "List"):
            kinds = {"netvm": "vm", "template": "vm", "label": "label", "provides_network": "bool"}
            lines = []
            for name, value in qube.items():
                text = value.replace("\\", "\\\\").replace("\n", "\\n")
                lines.append(name if word == "List" else f"{name} default=False type={kinds.get(name, 'str')} {text}")
            return ("\n".join([*lines, "" if word == "List" else "qid default=True type=int "]).rstrip("\n") + "\n").encode()
        if word == "Set":
            if request.argument not in (*qube, "memory"):
                raise Refused("QubesNoSuchPropertyError", f"no property {request.argument}")
            qube[request.argument] = request.payload.decode()
            return b""
        if request.argument not in qube:
            raise Refused("QubesNoSuchPropertyError", f"no property {request.argument}")
        if word == "Reset":
            del qube[request.argument]
            return b""
        return f"default=False type=str {qube[request.argument]}".encode()

    def _feature(self, request: admin.Request) -> bytes:
        features = self.features[request.dest]
        word = request.method.rpartition(".")[2]
        if word == "List":
            return "".join(f"{name}\n" for name in features).encode()
        if word == "Set":
            features[request.argument] = request.payload.decode()
            return b""
        value = features.get(request.argument)
        if value is None and word == "CheckWithTemplate":
            value = self.features[self.qubes[request.dest].get("template", request.dest)].get(request.argument)
        if value is None:
            raise Refused("QubesFeatureNotFoundError", f"{request.argument} is not set")
        if word == "Remove":
            del features[request.argument]
        return value.encode()

    def _tag(self, request: admin.Request) -> bytes:
        tags = self.tags[request.dest]
        word = request.method.rpartition(".")[2]
        if word == "List":
            return "".join(f"{tag}\n" for tag in sorted(tags)).encode()
        if word == "Set":
            tags.append(request.argument)
        elif request.argument not in tags:
            raise Refused("QubesTagNotFoundError", f"no tag {request.argument}")
        elif word == "Remove":
            tags.remove(request.argument)
        return b""

    def serve(self, sock: socket.socket) -> None:
        with sock:
            request = _asked(sock)
            if request is None:
                return
            if request.method == "cloison.Disposable" and (self.leases or "disp1" not in self.qubes):
                self._lease(sock, request)
                return
            answer = self.reply(request)
            with suppress(OSError):      # a tool that was interrupted has gone
                sock.sendall(answer)

    def _lease(self, sock: socket.socket, request: admin.Request) -> None:
        self.calls.append((request.dest, request.method, request.argument, request.payload))
        self.qubes["disp1"] = {"class": "DispVM", "state": "Running", "label": "red", "template": "debian-12"}
        self.features["disp1"] = {}
        self.leases.append(sock)
        with suppress(OSError):
            sock.sendall(admin.event("disp1", "disposable-ready", [("name", "disp1"), ("start", "warm")]))
        hung_up(sock, None)
        sock.close()
        self.ended_leases.set()


def _asked(sock: socket.socket) -> admin.Request | None:
    """What a tool asks; None for one that was interrupted before it had, or in the middle of it."""
    untrusted = b""
    try:
        while data := sock.recv(65536):
            untrusted += data
        return admin.parse_request(untrusted)
    except (OSError, PeerError):
        return None


def hung_up(sock: socket.socket, seconds: float | None = 0.0) -> bool:
    """Whether the other side is gone, or this one has been shut down; waits that long for it, None: until it is."""
    poll = select.poll()
    poll.register(sock, 0)               # POLLHUP is always reported
    return bool(poll.poll(None if seconds is None else seconds * 1000))


class FakeWarden:
    """The qrexec daemon and the agent of one qube. `commands`: what it was asked to run."""

    def __init__(self) -> None:
        self.commands: list[wire.Exec] = []
        self.signals: list[int] = []
        self.script: Callable[[socket.socket], None] | None = None   # plays the agent instead, for hostile ones
        self.refuse = False
        self.home: str | None = None     # where programs start
        self.gate: threading.Event | None = None     # nobody is answered before it is set

    def serve(self, sock: socket.socket) -> None:
        with sock, suppress(BrokenPipeError, ConnectionResetError, PeerError):      # whoever asked has gone
            self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        if self.gate is not None:
            self.gate.wait(PATIENCE)
        sock.sendall(wire.hello(wire.SOCKET_VERSION))
        fds: array.array[int] = array.array("i")
        channels: list[socket.socket] = []
        try:
            request = self._request(sock, fds)
            channels = [socket.socket(fileno=fds.pop()) for _ in range(len(fds))]
            if request is None or not channels:
                return
            self.commands.append(request)
            if self.refuse:
                return
            sock.sendall(wire.allocated(request.kind, 5, 513))
            if self.script:
                self.script(channels[0])
            elif request.kind == wire.JUST_EXEC:
                channels[0].sendall(wire.hello(wire.VERSION) + wire.exit_code(0))
            else:
                self._execute(channels[0], wire.parse_command(request.command))
        finally:
            for fd in fds:
                os.close(fd)
            for channel in channels:
                channel.close()

    def _request(self, sock: socket.socket, fds: array.array[int]) -> wire.Exec | None:
        """None for whoever has gone without a word, or in the middle of one."""
        decoder = wire.Decoder(wire.FROM_CLIENT)
        while True:
            data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4))
            for _, _, descriptors in ancillary:
                fds.frombytes(descriptors)
            if not data:
                return None
            decoder.feed(data)
            while message := decoder.next_message():
                if isinstance(message, wire.Exec):
                    return message

    def _execute(self, channel: socket.socket, command: wire.Command) -> None:
        argv = ["/bin/sh"] if command.service.startswith("qubes.VMShell") else ["/bin/sh", "-c", command.command]
        if command.service == "qubes.VMExec":
            argv = [os.fsdecode(word) for word in vmexec.decode(command.argument or "")]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                                   start_new_session=True, cwd=self.home)
        assert process.stdin and process.stdout and process.stderr
        lock = threading.Lock()

        def send(data: bytes) -> None:
            with lock:
                try:
                    channel.sendall(data)
                except OSError:          # the caller has gone
                    self._signal(process, signal.SIGKILL)

        def forward(kind: int, fd: int) -> None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.register(channel, 0)
            while channel.fileno() not in dict(poll.poll()):     # else there is nobody to read it
                data = os.read(fd, wire.MAX_CHUNK)
                if not data:
                    send(wire.end_of_stream(kind))
                    return
                send(b"".join(wire.data(kind, data)))

        send(wire.hello(wire.VERSION))
        feeder = threading.Thread(target=self._feed, args=(channel, process), daemon=True)
        watcher = threading.Thread(target=self._await_hangup, args=(channel, process, feeder), daemon=True)
        readers = [
            threading.Thread(target=forward, args=(wire.STDOUT, process.stdout.fileno()), daemon=True),
            threading.Thread(target=forward, args=(wire.STDERR, process.stderr.fileno()), daemon=True),
        ]
        for thread in [feeder, watcher, *readers]:
            thread.start()
        for thread in readers:
            thread.join()
        code = process.wait()
        send(wire.exit_code(code if code >= 0 else 128 - code))
        with suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)
        feeder.join()
        watcher.join()
        process.stdout.close()
        process.stderr.close()

    def _signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        if process.returncode is None:
            self.signals.append(number)
        if process.returncode is None:   # else its number may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def _feed(self, channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
        decoder = wire.Decoder(wire.FROM_CALLER)
        stdin = process.stdin
        assert stdin is not None
        os.set_blocking(stdin.fileno(), False)
        with stdin, suppress(OSError, ValueError, PeerError):    # the program reads no more, or the caller has gone
            while data := channel.recv(1 << 17):
                decoder.feed(data)
                while message := decoder.next_message():
                    if isinstance(message, wire.Exit):
                        self._signal(process, message.status - 128)
                    if isinstance(message, wire.Data):
                        if not message.payload:
                            stdin.close()
                        else:
                            _write(stdin.fileno(), message.payload, channel)

    def _await_hangup(self, channel: socket.socket, process: subprocess.Popen[bytes], feeder: threading.Thread) -> None:
        """The caller's ends the program's group (`cloison.qrexec.ending`), ours ends this. What it sent before comes first."""
        hung_up(channel, None)
        feeder.join()
        self._signal(process, signal.SIGHUP)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:            # it cares for no signal, and there is nobody left to end it
            self._signal(process, signal.SIGKILL)


def _write(fd: int, data: bytes, channel: socket.socket) -> None:
    """Raises TimeoutError for a program that reads nothing any more when its caller has gone."""
    poll, writable = select.poll(), select.poll()
    for each in (poll, writable):
        each.register(fd, select.POLLOUT)
    poll.register(channel, 0)
    while data:
        if fd not in dict(poll.poll()) and not writable.poll(LAST_WORDS * 1000):
            raise TimeoutError
        with suppress(BlockingIOError):
            data = data[os.write(fd, data):]


@contextmanager
def listening(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A socket whose connections are served by a thread each."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    threads: list[tuple[threading.Thread, socket.socket]] = []

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append((threading.Thread(target=serve, args=(sock,), daemon=True), sock))
            threads[-1][0].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        path.unlink()
        assert _ended(threads), "a connection is held open"


def _ended(threads: list[tuple[threading.Thread, socket.socket]]) -> bool:
    """Whether all end by themselves, in a time that all have together. No thread is left, whatever it waits for."""
    deadline = time.monotonic() + PATIENCE / 2
    for thread, _ in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = [(thread, sock) for thread, sock in threads if thread.is_alive()]
    for _, sock in late:
        with suppress(OSError):          # it has closed it
            sock.shutdown(socket.SHUT_RDWR)
    for thread, _ in late:
        thread.join(GRACE)
    return not late
