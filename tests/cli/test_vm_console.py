"""admin.vm.Console as a program: bytes both ways, one caller at a time, and qubesd's refusals passed on."""
from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import tty
from collections.abc import Iterator

import pytest
from fake_qubesd import FakeQubesd
from tests.patience import PATIENCE

from cloison.cli import vm_console
from cloison.wire.admin import Failure, ok, parse_reply

ENVIRON = {"QREXEC_REMOTE_DOMAIN": "dom0", "QREXEC_REQUESTED_TARGET": "work"}


@contextlib.contextmanager
def descriptors(*made: int) -> Iterator[tuple[int, ...]]:
    try:
        yield made
    finally:
        for fd in made:
            with contextlib.suppress(OSError):
                os.close(fd)


def test_bytes_go_both_ways_until_the_caller_ends(qubesd: FakeQubesd) -> None:
    with descriptors(*os.openpty(), *os.pipe(), *os.pipe()) as (qube, terminal, stdin, keyboard, screen, stdout):
        tty.setraw(terminal)
        path = os.ttyname(terminal)
        qubesd.answers["admin.vm.Console"] = lambda _fake, _request: ok(path.encode())
        statuses: list[int] = []
        caller = threading.Thread(target=lambda: statuses.append(vm_console.run(ENVIRON, stdin, stdout)))
        caller.start()
        os.write(qube, b"login: ")
        assert os.read(screen, 100) == b"login: "
        os.write(keyboard, b"root\n")
        assert os.read(qube, 100) == b"root\n"
        os.close(keyboard)
        caller.join(PATIENCE)
        assert statuses == [0]


def test_a_console_in_use_is_refused_with_200(qubesd: FakeQubesd) -> None:
    with descriptors(*os.openpty(), *os.pipe()) as (_qube, terminal, stdin, stdout):
        path = os.ttyname(terminal)
        qubesd.answers["admin.vm.Console"] = lambda _fake, _request: ok(path.encode())
        fcntl.flock(terminal, fcntl.LOCK_EX)
        assert vm_console.run(ENVIRON, stdin, stdout) == 200


@pytest.mark.parametrize(("environ", "failure"), [
    (ENVIRON | {"QREXEC_REQUESTED_TARGET": "nowhere"}, "QubesVMNotFoundError"),
    (ENVIRON | {"QREXEC_REQUESTED_TARGET": "../work"}, "ProtocolError"),
    ({}, "ProtocolError"),
])
def test_what_qubesd_refuses_is_passed_on(qubesd: FakeQubesd, environ: dict[str, str], failure: str) -> None:
    with descriptors(*os.pipe()) as (reader, writer):
        assert vm_console.run(environ, reader, writer) == 1
        reply = parse_reply(os.read(reader, 4096))
        assert isinstance(reply, Failure)
        assert reply.class_name == failure
