"""The services admin.vm.volume.Import and .ImportWithSize: what a caller may send, and what it gets for it."""
from __future__ import annotations

import io
from pathlib import Path

import pytest

from cloison.cli.volume_import import WITH_SIZE, run
from cloison.client.calls import Domain
from cloison.client.connection import Connection
from cloison.wire.admin import Failure, parse_reply

CALLER = {"QREXEC_REMOTE_DOMAIN": "dom0", "QREXEC_REQUESTED_TARGET": "work"}
PRIVATE = Domain("work").volume("private")


def test_a_volume_takes_the_announced_size(real: Connection) -> None:
    assert run(WITH_SIZE, "private", CALLER, io.BytesIO(b"4096\n" + b"x" * 4096)) == (0, b"0\0")
    assert real.do(PRIVATE).size == 4096


@pytest.mark.parametrize("untrusted", [
    b"", b"\n", b"4096", b"-1\n", b"+1\n", b"1 \n", b" 1\n", b"0x10\n", b"1" * 20 + b"\n", b"9" * 21, "٣\n".encode(), b"4096\0\n",
    b"4096\n" + b"x" * 4095, b"4096\n" + b"x" * 4097,
])
def test_what_is_not_as_announced_leaves_the_volume(real: Connection, untrusted: bytes) -> None:
    before = real.do(PRIVATE)
    status, reply = run(WITH_SIZE, "private", CALLER, io.BytesIO(untrusted))
    assert (status, isinstance(parse_reply(reply), Failure)) == (1, True)
    assert real.do(PRIVATE) == before


@pytest.mark.parametrize(("volume", "changed"), [
    ("nosuch", {}), ("", {}), ("../private", {}), ("private+x", {}),
    ("private", {"QREXEC_REQUESTED_TARGET": "nobody"}), ("private", {"QREXEC_REQUESTED_TARGET": "@dispvm"}),
    ("private", {"QREXEC_REMOTE_DOMAIN": ""}), ("private", {"QREXEC_REMOTE_DOMAIN": "a b"}),
    ("private", {"QREXEC_REMOTE_DOMAIN": "nobody"}),
])
def test_who_and_what_are_checked(real: Connection, volume: str, changed: dict[str, str]) -> None:
    status, reply = run(WITH_SIZE, volume, {**CALLER, **changed}, io.BytesIO(b"1\nx"))
    assert (status, isinstance(parse_reply(reply), Failure)) == (1, True)


def test_the_caller_is_the_qube_that_calls(real: Connection) -> None:
    """qubesd judges by it: an unknown one is refused by name."""
    _, reply = run(WITH_SIZE, "private", {**CALLER, "QREXEC_REMOTE_DOMAIN": "nobody"}, io.BytesIO(b"1\nx"))
    assert parse_reply(reply) == Failure("QubesVMNotFoundError", "there is no qube 'nobody'")


def test_without_qubesd(root: Path) -> None:
    status, reply = run(WITH_SIZE, "private", CALLER, io.BytesIO(b"1\nx"))
    assert status == 1
    assert b"qubesd is not running" in reply
