"""The caller's light end of a call, in this process: outputs that stand still or go away, the input, the end."""
from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import pytest
from tests.patience import PATIENCE

from cloison.qrexec.caller import Caller, Sink
from cloison.wire import qrexec

HELLO = qrexec.hello(4)
OUT_END, ERR_END = qrexec.end_of_stream(qrexec.STDOUT), qrexec.end_of_stream(qrexec.STDERR)
BIG = os.urandom(300_000)


def said(kind: int, data: bytes) -> bytes:
    return b"".join(qrexec.data(kind, data))


def run(work: Callable[[], int]) -> int:
    """In a thread, so that one that goes round for ever fails."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it does not end"
    return found[0]


def ends(kind: str) -> tuple[int, int]:
    if kind == "pipe":
        return os.pipe()
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("gone", [qrexec.STDOUT, qrexec.STDERR])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "while it is full"])
def test_an_output_that_nobody_reads_any_more_costs_the_other_nothing(kind: str, gone: int, later: bool) -> None:
    ours, theirs = socket.socketpair()
    outputs = {qrexec.STDOUT: ends(kind), qrexec.STDERR: ends(kind)}
    other = qrexec.STDERR if gone == qrexec.STDOUT else qrexec.STDOUT
    theirs.sendall(HELLO)
    sender = threading.Thread(target=theirs.sendall, args=[
        said(gone, BIG if later else b"x") + said(other, b"whole") + said(gone, b"y") + OUT_END + ERR_END + qrexec.exit_code(3)])
    sender.start()
    if not later:
        os.close(outputs[gone][0])
    sinks = {number: Sink(pair[1]) for number, pair in outputs.items()}

    def close_later() -> None:
        os.read(outputs[gone][0], 1)
        os.close(outputs[gone][0])

    closing = threading.Thread(target=close_later)
    if later:
        closing.start()
    with ours, theirs:
        assert run(Caller(ours, None, sinks[qrexec.STDOUT], sinks[qrexec.STDERR]).run) == 3
        sender.join()
    if later:
        closing.join()
    for _, writer in outputs.values():
        os.close(writer)
    assert read_all(outputs[other][0]) == b"whole"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_an_output_that_is_full_is_waited_for_and_gets_everything_in_order(kind: str) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = ends(kind)
    err, err_writer = os.pipe()
    sender = threading.Thread(target=theirs.sendall, args=[
        HELLO + said(qrexec.STDOUT, BIG) + said(qrexec.STDERR, b"err") + said(qrexec.STDOUT, b"end") + OUT_END
        + qrexec.exit_code(0)])
    sender.start()
    texts: list[bytes] = []
    reading = threading.Thread(target=lambda: texts.append(read_all(reader)))
    with ours, theirs:
        out, complaints = Sink(writer), Sink(err_writer)
        reading.start()
        assert run(Caller(ours, None, out, complaints).run) == 0
        sender.join()
    os.close(writer)
    os.close(err_writer)
    reading.join()
    assert texts == [BIG + b"end"] and read_all(err) == b"err"


def sent(stream: socket.socket) -> list[qrexec.Message]:
    """All that the caller said, to its end."""
    decoder = qrexec.Decoder(qrexec.FROM_CALLER)
    while data := stream.recv(1 << 16):
        decoder.feed(data)
    return list(iter(decoder.next_message, None))


@pytest.mark.parametrize(("version", "limit"), [(2, 4096), (3, 65536), (4, 65536)])
@pytest.mark.parametrize("prefix", [b"", b"first ", b"p" * 5000])
def test_the_input_is_sent_in_the_services_pieces_behind_the_prefix(version: int, limit: int, prefix: bytes) -> None:
    ours, theirs = socket.socketpair()
    with open(os.memfd_create("input"), "r+b") as source, ours, theirs:
        source.write(BIG[:100_000])
        source.seek(0)
        found: list[qrexec.Message] = []
        receiver = threading.Thread(target=lambda: found.extend(sent(theirs)))
        receiver.start()
        theirs.sendall(qrexec.hello(version))

        def work() -> int:
            call = Caller(ours, source.fileno(), None, None, prefix)
            while call._source is not None or call._outgoing:
                call._step()
            theirs.sendall(OUT_END + qrexec.exit_code(4))
            status = call.run()
            ours.close()
            return status

        assert run(work) == 4
        receiver.join()
    hello, *parts, end = found
    assert hello == qrexec.Hello(qrexec.VERSION) and end == qrexec.Data(qrexec.STDIN, b"")
    payloads = [part.payload for part in parts if isinstance(part, qrexec.Data)]
    assert len(payloads) == len(parts) and b"".join(payloads) == prefix + BIG[:100_000]
    assert all(0 < len(payload) <= limit for payload in payloads) and max(map(len, payloads)) == limit


def test_without_an_input_its_end_is_said_at_once_and_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(HELLO + OUT_END + qrexec.exit_code(0))
        assert run(Caller(ours, None, None, None).run) == 0
        ours.close()
        assert sent(theirs) == [qrexec.Hello(qrexec.VERSION), qrexec.Data(qrexec.STDIN, b"")]


def test_a_service_that_has_ended_is_sent_no_more_input() -> None:
    ours, theirs = socket.socketpair()
    source, writer = os.pipe()
    with ours, theirs:
        theirs.sendall(HELLO + OUT_END + qrexec.exit_code(6))
        assert run(Caller(ours, source, None, None).run) == 6          # its input is still open
        ours.close()
        assert sent(theirs)[1:] == [qrexec.Data(qrexec.STDIN, b"")]
    os.close(source)
    os.close(writer)


def test_what_could_drive_a_terminal_is_replaced_where_it_is_told_to() -> None:
    ours, theirs = socket.socketpair()
    out, err = os.pipe(), os.pipe()
    with ours, theirs:
        theirs.sendall(HELLO + said(qrexec.STDOUT, b"\x1b[2J\xe9\n\t") + said(qrexec.STDERR, b"\x1b"))
        theirs.sendall(OUT_END + qrexec.exit_code(0))
        assert run(Caller(ours, None, Sink(out[1], clean=True), Sink(err[1])).run) == 0
    for _, writer in (out, err):
        os.close(writer)
    assert read_all(out[0]) == b"_[2J_\n\t" and read_all(err[0]) == b"\x1b"


@pytest.mark.parametrize("own", [True, False])
def test_an_output_that_has_ended_shows_its_end_and_keeps_its_number(own: bool) -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        sink = Sink(writer.fileno(), own=own)
        sink.put(memoryview(b"last"))
        number = writer.fileno()
        sink.close()
        reader.settimeout(PATIENCE)
        assert reader.recv(10) == b"last" and reader.recv(10) == b""
        assert os.fstat(number)
        if not own:
            assert os.readlink(f"/proc/self/fd/{number}") == os.devnull
