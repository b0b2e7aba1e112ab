"""qubesd-query against a fake qubesd: what goes out, what comes back byte for byte, and how it ends."""
from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd

from cloison.cli import qubesd_query
from cloison.wire import admin


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[io.BufferedRandom]:
    """Standard input, to be written by the test; `main` reads it from the start."""
    with open(tmp_path / "stdin", "w+b") as file:
        yield file


def ask(monkeypatch: pytest.MonkeyPatch, typed: io.BufferedRandom, data: bytes, *argv: str) -> int:
    typed.write(data)
    typed.seek(0)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed, write_through=True))
    return qubesd_query.main(argv)


CALL = ("dom0", "admin.vm.property.Set", "work", "memory")
LIST = ("dom0", "admin.vm.List", "work")


def test_payload_out_and_reply_back(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, typed: io.BufferedRandom, capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    qubesd.answers["admin.vm.property.Set"] = lambda *_: admin.ok(b"a\0b\xff")
    assert ask(monkeypatch, typed, b"4\n00", *CALL) == 0
    assert qubesd.calls == [("work", "admin.vm.property.Set", "memory", b"4\n00")]
    assert capfdbinary.readouterr().out == b"0\0a\0b\xff"


@pytest.mark.parametrize(("options", "reply", "status", "printed"), [
    ((), admin.ok(b""), 0, b"0\0"), (("--fail",), admin.ok(b""), 0, b"0\0"), (("--null",), admin.ok(b"x"), 0, b"0\0x\0"),
    ((), admin.exception("QubesException", "no"), 0, admin.exception("QubesException", "no")),
    (("--fail",), admin.exception("QubesException", "no"), 2, admin.exception("QubesException", "no")),
    (("--fail", "--null"), admin.ok(b"x"), 0, b"0\0x"),
])
def test_how_it_ends(
    qubesd: FakeQubesd, capfdbinary: pytest.CaptureFixture[bytes], options: tuple[str, ...], reply: bytes, status: int,
    printed: bytes,
) -> None:
    qubesd.answers["admin.vm.List"] = lambda *_: reply
    assert qubesd_query.main(["-e", *options, *LIST]) == status
    assert capfdbinary.readouterr().out == printed
    assert qubesd.calls == [("work", "admin.vm.List", "", b"")]


@pytest.mark.parametrize(("options", "data", "payload"), [
    (("--single-line",), b"one\ntwo\n", b"one"), (("--single-line",), b"\n", b""),
    (("--single-line",), b"x" * 1023 + b"\n", b"x" * 1023),
    (("--max-bytes", "3"), b"abc", b"abc"), (("--max-bytes", "0"), b"", b""),
])
def test_what_is_read(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, typed: io.BufferedRandom, options: tuple[str, ...], data: bytes,
    payload: bytes,
) -> None:
    qubesd.answers["admin.vm.property.Set"] = lambda *_: admin.ok(b"")
    assert ask(monkeypatch, typed, data, *options, *CALL) == 0
    assert qubesd.calls[0][3] == payload


@pytest.mark.parametrize(("options", "data"), [
    (("--single-line",), b""), (("--single-line",), b"no end"), (("--single-line",), b"\xff\n"), (("--single-line",), b"a\tb\n"),
    (("--single-line",), b"x" * 1024 + b"\n"), (("--max-bytes", "3"), b"abcd"), (("--max-bytes", "65537"), b""),
    (("--max-bytes", "-1"), b""), (("--single-line", "--max-bytes", "2"), b"ab\n"), ((), b"x" * 65537), ((), b"x" * 65530),
])
def test_what_is_too_long_or_no_line_is_not_sent(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, typed: io.BufferedRandom, options: tuple[str, ...], data: bytes,
) -> None:
    assert ask(monkeypatch, typed, data, *options, *CALL) != 0
    assert qubesd.calls == []


def test_the_rest_of_standard_input_is_left_for_the_script(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    qubesd.answers["admin.vm.property.Set"] = lambda *_: admin.ok(b"")
    read, write = os.pipe()
    os.write(write, b"first\nrest")
    os.close(write)
    with open(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert qubesd_query.main(["--single-line", *CALL]) == 0
        assert os.read(read, 100) == b"rest"


def test_another_socket_and_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path) -> None:
    path = str(tmp_path / "other.sock")
    assert qubesd_query.main(["-e", "--connect", path, *LIST]) == 1
    assert f"nobody answers on {path}" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(0)
        listener.shutdown(socket.SHUT_RDWR)
        assert qubesd_query.main(["-e", "-c", path, *LIST]) == 1


def test_a_word_that_can_not_be_sent(qubesd: FakeQubesd) -> None:
    assert qubesd_query.main(["-e", "dom0", "admin.vm.List", "a b"]) == 1
    assert qubesd_query.main(["-e", "dom0"]) == 2
    assert qubesd.calls == []
