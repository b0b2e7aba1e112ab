"""`qrexec-client-vm` as a program: its words, its exit statuses, its streams, with the agent and the service played by the test."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.qrexec.qube import client_vm
from cloison.runtime import inotify
from cloison.wire import qrexec
from cloison.wire.qrexec import STDIN, Data

SOURCES = Path(__file__).parents[3] / "src"
PROGRAM = [
    sys.executable, "-I", "-S", "-c",
    f"import sys; sys.path.insert(0, {str(SOURCES)!r})\nfrom cloison.qrexec.qube.client_vm import main; sys.exit(main())",
]
REAL = {"PATH": os.environ["PATH"]}


class Place:
    """The agent's socket, and a call that the test answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "agent")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen(1)
        self._server.settimeout(PATIENCE)
        self._open: list[socket.socket] = [self._server]

    def start(self, *words: str, stdin: bytes | None = b"", **env: str) -> None:
        argv = [*PROGRAM, f"--agent-socket={self.path}", *words]
        self.program = subprocess.Popen(argv, env=REAL | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if stdin is not None and self.program.stdin is not None:
            self.program.stdin.write(stdin)
            self.program.stdin.close()
            self.program.stdin = None
        self.agent, _ = self._server.accept()
        self._open.append(self.agent)
        self.agent.settimeout(PATIENCE)
        decoder = qrexec.Decoder(qrexec.FROM_CLIENT_VM)
        while (request := decoder.next_message()) is None:
            data = self.agent.recv(1 << 16)
            assert data
            decoder.feed(data)
        self.request = request

    def accept(self) -> socket.socket:
        """By descriptor, as in a qube of ours."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.agent, [qrexec.PARAMS.pack(3, 513)], [theirs.fileno()])
        self._open.append(ours)
        ours.settimeout(PATIENCE)
        return ours

    def result(self) -> tuple[bytes, bytes, int]:
        out, err = self.program.communicate(timeout=PATIENCE)
        return out, err, self.program.returncode

    def close(self) -> None:
        for each in self._open:
            each.close()
        if hasattr(self, "program"):
            self.program.kill()
            self.program.communicate()


@pytest.fixture
def place(tmp_path: Path) -> object:
    made = Place(tmp_path)
    yield made
    made.close()


def serve(stream: socket.socket, out: bytes = b"", err: bytes = b"", status: int | None = 0) -> list[Data]:
    """The service's end: what it says, then what the caller said until it hung up."""
    said = [qrexec.hello(4), *qrexec.data(qrexec.STDOUT, out), *qrexec.data(qrexec.STDERR, err)]
    said += [qrexec.end_of_stream(qrexec.STDOUT), qrexec.end_of_stream(qrexec.STDERR)] if status is not None else []
    stream.sendall(b"".join(said + ([qrexec.exit_code(status)] if status is not None else [])))
    if status is None:
        stream.shutdown(socket.SHUT_WR)
    decoder = qrexec.Decoder(qrexec.FROM_CALLER)
    found: list[Data] = []
    while data := stream.recv(1 << 16):
        decoder.feed(data)
        while (message := decoder.next_message()) is not None:
            found += [message] if isinstance(message, Data) else []
    return found


@pytest.mark.parametrize(("words", "request_"), [
    (["work", "test.S+a"], ("", "work", "test.S+a")), (["", "test.S"], ("", "", "test.S")),
    (["$default", "test.S"], ("", "@default", "test.S")), (["-s", "other", "--", "work", "test.S"], ("other", "work", "test.S")),
    (["--source-qube=other", "work", "test.S"], ("other", "work", "test.S")),
])
def test_request(place: Place, words: list[str], request_: tuple[str, str, str]) -> None:
    place.start(*words)
    asked = place.request
    assert isinstance(asked, qrexec.Trigger) and (asked.source, asked.target, asked.service) == request_
    place.agent.close()
    assert place.result() == (b"", b"Request refused\n(On the host, this tells why: cloison policy log)\n", 126)


def test_a_call(place: Place) -> None:
    place.start("-p", "first ", "work", "test.S", stdin=b"then")
    said = serve(place.accept(), b"out", b"err", 7)
    assert b"".join(part.payload for part in said) in (b"first then", b"first ") and all(part.kind == STDIN for part in said)
    assert place.result() == (b"out", b"err", 7)


def test_input_whole_and_its_end(place: Place) -> None:
    place.start("work", "test.S", stdin=b"question")
    stream = place.accept()
    stream.sendall(qrexec.hello(4))
    decoder = qrexec.Decoder(qrexec.FROM_CALLER)
    found = b""
    while True:
        decoder.feed(stream.recv(1 << 16))
        parts = [message for message in iter(decoder.next_message, None) if isinstance(message, Data)]
        found += b"".join(part.payload for part in parts)
        if any(not part.payload for part in parts):
            break
    assert found == b"question"
    serve_end = qrexec.end_of_stream(qrexec.STDOUT) + qrexec.exit_code(0)
    stream.sendall(serve_end)
    assert place.result() == (b"", b"", 0)


def test_qsb_013b_filter_and_its_absence(place: Place) -> None:
    place.start("-t", "-T", "work", "test.S")
    serve(place.accept(), b"a\x1b[2Jb\n", b"\x9b\0", 0)
    assert place.result() == (b"a_[2Jb\n", b"__", 0)


def test_lost_channel_is_255(place: Place) -> None:
    place.start("work", "test.S")
    serve(place.accept(), b"half", status=None)
    assert place.result() == (b"half", b"", 255)


def test_broken_protocol_is_125(place: Place) -> None:
    place.start("work", "test.S")
    place.accept().sendall(qrexec.hello(4) + qrexec.HEADER.pack(qrexec.STDOUT, 65537))
    assert place.result()[2] == 125


@pytest.mark.parametrize(("program", "status", "expected"), [
    ("exit 0", 0, 0), ("exit 5", 0, 5), ("exit 5", 3, 3), ("kill -9 $$", 0, 137),
])
def test_program_and_its_status(place: Place, program: str, status: int, expected: int) -> None:
    place.start("work", "test.S", "/bin/sh", "-c", program)
    serve(place.accept(), status=status)
    assert place.result() == (b"", b"", expected)


def test_program_s_streams_and_words(place: Place) -> None:
    """It talks to the service; the descriptors that were ours are told to it, and our output is still open there."""
    script = 'read x; echo "$0 $x ${SAVED_FD_2-none} $QREXEC_AGENT_PID" > /proc/self/fd/$SAVED_FD_1'
    place.start("work", "test.S", "/bin/sh", "-c", script, stdin=None)
    serve(place.accept(), b"answer\n", status=0)
    assert place.result() == (b"sh answer none %d\n" % place.program.pid, b"", 0)


def test_program_that_uses_one_socket(place: Place) -> None:
    place.start("work", "test.S", "/bin/sh", "-c", 'kill -USR1 $QREXEC_AGENT_PID; echo hello >&0; read x; echo "got $x" >&0')
    stream = place.accept()
    stream.sendall(qrexec.hello(4) + b"".join(qrexec.data(qrexec.STDOUT, b"line\n")) + qrexec.end_of_stream(qrexec.STDOUT))
    decoder = qrexec.Decoder(qrexec.FROM_CALLER)
    found: list[bytes] = []
    while not found or found[-1]:
        decoder.feed(stream.recv(1 << 16))
        found += [message.payload for message in iter(decoder.next_message, None) if isinstance(message, Data)]
    assert b"".join(found) == b"hello\ngot line\n"
    stream.sendall(qrexec.exit_code(0))
    assert place.result() == (b"", b"", 0)


def test_a_program_that_can_not_be_started(place: Place) -> None:
    place.start("work", "test.S", "/nowhere/program")
    place.accept()
    assert place.result()[2] == 125


def test_standard_input_as_the_one_socket(place: Place) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = subprocess.Popen([*PROGRAM, f"--agent-socket={place.path}", "--use-stdin-socket", "work", "test.S"], stdin=theirs)
        agent, _ = place._server.accept()
        with agent:
            assert agent.recv(1 << 16)
            place.agent = agent
            ours.sendall(b"in")
            ours.shutdown(socket.SHUT_WR)
            said = serve(place.accept(), b"out", status=4)
            assert b"".join(part.payload for part in said) in (b"in", b"")
            assert ours.recv(100) == b"out"
            assert program.wait(PATIENCE) == 4


def test_the_channel_is_listened_for_where_vchans_are_sockets(place: Place) -> None:
    place.start("work", "test.S", VCHAN_SOCKET_DIR=str(place.folder), VCHAN_DOMAIN="42")
    place.agent.sendall(qrexec.PARAMS.pack(43, 520))
    path = place.folder / "vchan.42.43.520.sock"
    assert inotify.wait_for(str(path))
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(str(path))
        serve(stream, b"through a socket", status=0)
    assert place.result() == (b"through a socket", b"", 0)


@pytest.mark.parametrize("words", [
    [], ["work"], ["--nonsense", "work", "s"], ["-x", "work", "s"], ["--buffer-size=x", "work", "s"], ["-p"],
])
def test_bad_command_lines_are_2(words: list[str]) -> None:
    done = subprocess.run([*PROGRAM, *words], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and b"usage: qrexec-client-vm" in done.stderr and not done.stdout


def test_no_agent_is_1_and_closed_descriptors_125(tmp_path: Path) -> None:
    words = [f"--agent-socket={tmp_path}/none", "work", "s"]
    assert subprocess.run([*PROGRAM, *words], capture_output=True, check=False).returncode == 1
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *PROGRAM, *words]
    assert subprocess.run(shell, capture_output=True, check=False).returncode == 125
    assert subprocess.run([*PROGRAM, "--help"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("size", "fits"), [(0, True), (63, True), (64, False)])
def test_qsb_009_names_are_filled_with_zeros(size: int, fits: bool) -> None:
    name = "n" * size
    if not fits:
        with pytest.raises(client_vm.Failure):
            client_vm.trigger("", name, "s")
        return
    message = client_vm.trigger(name, name, "s")
    field = name.encode().ljust(64, b"\0")
    assert message == qrexec.HEADER.pack(0x213, 162) + field + field + b"SOCKET".ljust(32, b"\0") + b"s\0"


@pytest.mark.parametrize(("size", "fits"), [(64999, True), (65000, False)])
def test_qsb_089_length_of_the_service(size: int, fits: bool) -> None:
    if fits:
        assert len(client_vm.trigger("", "", "s" * size)) == 8 + 160 + size + 1
    else:
        with pytest.raises(client_vm.Failure):
            client_vm.trigger("", "", "s" * size)


def test_it_imports_next_to_nothing() -> None:
    """Each of these costs an emulated qube more than the whole program does."""
    script = f"import sys; sys.path.insert(0, {str(SOURCES)!r}); import cloison.qrexec.qube.client_vm; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    costly = {"typing", "socket", "signal", "enum", "re", "asyncio", "argparse", "subprocess", "collections"}
    assert not costly & set(done.stdout.split())
