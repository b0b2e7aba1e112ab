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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.patience import PATIENCE

from cloison.qrexec import vmexec
from cloison.wire import admin
from cloison.wire import qrexec as wire

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
        untrusted = b""
        while data := sock.recv(65536):
            untrusted += data
        if not untrusted:                # a tool that was interrupted before it asked
            sock.close()
            return
        request = admin.parse_request(untrusted)
        if request.method == "cloison.Disposable" and (self.leases or "disp1" not in self.qubes):
            self._lease(sock, request)
            return
        with sock, suppress(BrokenPipeError):       # a tool that was interrupted has gone
            sock.sendall(self.reply(request))

    def _lease(self, sock: socket.socket, request: admin.Request) -> None:
        self.calls.append((request.dest, request.method, request.argument, request.payload))
        self.qubes["disp1"] = {"class": "DispVM", "state": "Running", "label": "red", "template": "debian-12"}
        self.features["disp1"] = {}
        self.leases.append(sock)
        sock.sendall(admin.event("disp1", "disposable-ready", [("name", "disp1"), ("start", "warm")]))
        hangup = select.poll()
        hangup.register(sock, 0)         # POLLHUP is always reported
        hangup.poll(30000)
        sock.close()
        self.ended_leases.set()


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
        try:
            self._serve(sock)
        except (BrokenPipeError, ConnectionResetError):
            sock.close()                 # whoever asked has gone

    def _serve(self, sock: socket.socket) -> None:
        if self.gate is not None:
            self.gate.wait(30)
        sock.sendall(wire.hello(wire.SOCKET_VERSION))
        decoder = wire.Decoder(wire.FROM_CLIENT)
        fds: array.array[int] = array.array("i")
        request = None
        while request is None:
            data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4))
            if not data:                 # whoever came has gone without a word
                sock.close()
                return
            for _, _, descriptors in ancillary:
                fds.frombytes(descriptors)
            decoder.feed(data)
            while message := decoder.next_message():
                request = message if isinstance(message, wire.Exec) else request
        self.commands.append(request)
        with socket.socket(fileno=fds[0]) as channel:
            if self.refuse:
                sock.close()
                return
            sock.sendall(wire.allocated(request.kind, 5, 513))
            if self.script:
                self.script(channel)
            elif request.kind == wire.JUST_EXEC:
                channel.sendall(wire.hello(wire.VERSION) + wire.exit_code(0))
            else:
                self._execute(channel, wire.parse_command(request.command))
        sock.close()

    def _execute(self, channel: socket.socket, command: wire.Command) -> None:
        argv = ["/bin/sh"] if command.service.startswith("qubes.VMShell") else ["/bin/sh", "-c", command.command]
        if command.service == "qubes.VMExec":
            argv = [os.fsdecode(word) for word in vmexec.decode(command.argument or "")]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
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
            while data := os.read(fd, wire.MAX_CHUNK):
                send(b"".join(wire.data(kind, data)))
            send(wire.end_of_stream(kind))

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
        with suppress(OSError), stdin:      # it may be closed at the other end with something still to be written
            try:
                while data := channel.recv(1 << 17):
                    decoder.feed(data)
                    while message := decoder.next_message():
                        if isinstance(message, wire.Exit):
                            self._signal(process, message.status - 128)
                        if isinstance(message, wire.Data):
                            if not message.payload:
                                stdin.close()
                            else:
                                stdin.write(message.payload)
                                stdin.flush()
            except (OSError, ValueError):    # the program reads no more, or the caller has gone
                pass

    def _await_hangup(self, channel: socket.socket, process: subprocess.Popen[bytes], feeder: threading.Thread) -> None:
        """The caller's ends the program's group (`cloison.qrexec.ending`), ours ends this. What it sent before comes first."""
        hangup = select.poll()
        hangup.register(channel, 0)
        hangup.poll()
        feeder.join(1)                   # it may be stuck, with a program that reads nothing
        self._signal(process, signal.SIGHUP)


@contextmanager
def listening(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A socket whose connections are served by a thread each."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        path.unlink()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads), "a connection is held open"
