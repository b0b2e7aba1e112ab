"""`qrexec-fork-server`: calls of its user, in its environment, over both ways of getting the data channel."""
from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.qrexec.qube.agent import FORK_REQUEST
from cloison.wire import qrexec
from cloison.wire.qrexec import STDERR, STDOUT, Data, Exit, Message


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The program, in the background; ended by its process group, for it has left its parent."""
    path = str(tmp_path / "fork.sock")
    env = dict(os.environ, SESSION="mine", QREXEC_REMOTE_DOMAIN="not this call's", SHELL="/bin/sh",
               QREXEC_SERVICE_PATH=str(tmp_path), QUBES_RPC_CONFIG_PATH=str(tmp_path / "none"), VCHAN_SOCKET_DIR=str(tmp_path))
    program = subprocess.Popen([sys.executable, "-m", "cloison.qrexec.qube.fork_server", path], env=env, start_new_session=True)
    assert program.wait(PATIENCE) == 0
    yield path
    os.killpg(program.pid, signal.SIGKILL)


def request(path: str, words: bytes, kind: int = qrexec.EXEC_CMDLINE) -> tuple[socket.socket, socket.socket]:
    """A call whose data channel goes along: the connection that lasts as long, and our end of the channel."""
    control = socket.socket(socket.AF_UNIX)
    control.settimeout(PATIENCE)
    control.connect(path)
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with theirs:
        socket.send_fds(control, [FORK_REQUEST.pack(kind, 0, 513, len(words)) + words], [theirs.fileno()])
    ours.sendall(qrexec.hello(4) + qrexec.end_of_stream(qrexec.STDIN))
    return control, ours


def messages(stream: socket.socket) -> list[Message]:
    decoder = qrexec.Decoder(qrexec.FROM_SERVICE)
    found: list[Message] = []
    while True:
        try:
            data = stream.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            return found
        decoder.feed(data)
        found += iter(decoder.next_message, None)


def test_a_command_sees_the_session(server: str) -> None:
    control, stream = request(server, b'echo "$SESSION $0 ${QREXEC_REMOTE_DOMAIN-none}"; exit 3\0')
    with control, stream:
        found = messages(stream)
        assert Data(STDOUT, b"mine sh none\n") in found and found[-1] == Exit(3)
        assert control.recv(1) == b""


def test_a_service_and_one_that_is_not_there(server: str, tmp_path: Path) -> None:
    (tmp_path / "test.S").write_text('#!/bin/sh\necho "$QREXEC_REMOTE_DOMAIN $1 $SESSION"\n')
    (tmp_path / "test.S").chmod(0o755)
    control, stream = request(server, b"QUBESRPC test.S+a work\0")
    with control, stream:
        assert Data(STDOUT, b"work a mine\n") in messages(stream)
    control, stream = request(server, b"QUBESRPC test.None work\0")
    with control, stream:
        assert messages(stream)[1:] == [Data(STDOUT, b""), Data(STDERR, b""), Exit(127)]


def test_the_channel_is_connected_to_where_vchans_are_sockets(server: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as control:
        listener.bind(str(tmp_path / "vchan.9.0.513.sock"))
        listener.listen(1)
        listener.settimeout(PATIENCE)
        control.connect(server)
        words = b"echo x\0"
        control.sendall(FORK_REQUEST.pack(qrexec.EXEC_CMDLINE, 9, 513, len(words)) + words)
        stream, _ = listener.accept()
        with stream:
            stream.settimeout(PATIENCE)
            stream.sendall(qrexec.hello(4))
            assert Data(STDOUT, b"x\n") in messages(stream)


@pytest.mark.parametrize("data", [
    b"", b"\0" * 15, FORK_REQUEST.pack(0x202, 0, 513, 2) + b"x\0", FORK_REQUEST.pack(0x200, -1, 513, 2) + b"x\0",
    FORK_REQUEST.pack(0x200, 0, -1, 2) + b"x\0", FORK_REQUEST.pack(0x200, 0, 513, 0), FORK_REQUEST.pack(0x200, 0, 513, 0xFFFFFFFF),
    FORK_REQUEST.pack(0x200, 0, 513, 2) + b"xy", FORK_REQUEST.pack(0x200, 0, 513, 3) + b"x\0\0",
    FORK_REQUEST.pack(0x200, 0, 513, 2) + b"x\0y",
])
def test_qsb_089_bad_requests_are_hung_up_on(server: str, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(PATIENCE)
        control.connect(server)
        control.sendall(data)
        control.shutdown(socket.SHUT_WR)
        assert control.recv(1) == b""
    control, stream = request(server, b"echo next\0")
    with control, stream:
        assert Data(STDOUT, b"next\n") in messages(stream)


def test_only_its_user_may_connect(server: str) -> None:
    assert stat.S_IMODE(os.stat(server).st_mode) == 0o600


def test_bad_command_lines_and_places(tmp_path: Path) -> None:
    for words in (["a", "b"], ["--x"], [str(tmp_path / "none" / "sock")]):
        done = subprocess.run([sys.executable, "-m", "cloison.qrexec.qube.fork_server", *words], capture_output=True, check=False)
        assert done.returncode == 1 and done.stderr


def first_output(stream: socket.socket) -> bytes:
    decoder = qrexec.Decoder(qrexec.FROM_SERVICE)
    while True:
        decoder.feed(stream.recv(1 << 16))
        while (message := decoder.next_message()) is not None:
            if isinstance(message, Data) and message.payload:
                return message.payload


def test_a_caller_that_hangs_up_ends_its_program(server: str) -> None:
    control, stream = request(server, b"trap '' HUP; echo $$; while :; do sleep 1000; done\0")
    with control:
        with stream:
            pidfd = os.pidfd_open(int(first_output(stream)))
        assert select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)


def test_the_agents_end_ends_no_programs(server: str, tmp_path: Path) -> None:
    """It hangs up on everything: the programs of the session go on."""
    gate, done = tmp_path / "gate", tmp_path / "done"
    os.mkfifo(gate)
    os.mkfifo(done)
    control, stream = request(server, f"trap 'exit 1' HUP; echo up; read x < {gate}; echo lives > {done}\0".encode())
    assert first_output(stream) == b"up\n"
    control.close()
    stream.close()
    for _ in range(2):                   # once it has answered others, it has seen both ends
        control, stream = request(server, b"true\0")
        with control, stream:
            assert messages(stream)[-1] == Exit(0)
    reader = os.open(done, os.O_RDONLY | os.O_NONBLOCK)
    go = os.open(gate, os.O_RDWR)        # waits for no reader
    os.write(go, b"\n")
    assert select.select([reader], [], [], PATIENCE)[0]
    assert os.read(reader, 100) == b"lives\n"
    os.close(reader)
    os.close(go)


def test_a_signal_of_the_hosts_reaches_a_service_of_the_session(server: str, tmp_path: Path) -> None:
    (tmp_path / "test.S").write_text("#!/bin/sh\necho up\nsleep 1000\n")
    (tmp_path / "test.S").chmod(0o755)
    control, stream = request(server, b"QUBESRPC test.S dom0\0")
    with control, stream:
        assert first_output(stream) == b"up\n"
        stream.sendall(qrexec.exit_code(128 + signal.SIGTERM))
        said = b"".join(iter(lambda: stream.recv(1 << 16), b""))
        assert said.endswith(qrexec.exit_code(128 + signal.SIGTERM))
