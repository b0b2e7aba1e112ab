"""The session keyring of whoever starts us is not handed on."""
from __future__ import annotations

import ctypes
import errno
import subprocess
import sys

import pytest

from cloison.daemon import main as qubesd
from cloison.runtime import keyring
from cloison.warden import zygote

SCRIPT = """
import ctypes, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
JOIN, READ, SESSION, USER_TYPE = 1, 11, -3, b"user"
assert libc.syscall(250, JOIN, None) > 0
key = libc.syscall(248, USER_TYPE, b"cloison-test", b"secret", 6, SESSION)
assert key > 0
READS = '''
import ctypes, sys
print(ctypes.CDLL(None).syscall(250, 11, int(sys.argv[1]), ctypes.create_string_buffer(9), 9))
'''
if sys.argv[1] == "leave":
    from cloison.runtime import keyring
    keyring.leave()
print(subprocess.run([sys.executable, "-c", READS, str(key)], capture_output=True, text=True, check=True).stdout.strip())
"""


def read_by_a_child(do: str) -> str:
    return subprocess.run([sys.executable, "-c", SCRIPT, do], capture_output=True, text=True, check=True).stdout.strip()


def test_what_is_started_afterwards_can_not_read_the_keys_of_the_session() -> None:
    assert read_by_a_child("stay") == "6", "otherwise this shows nothing"
    assert read_by_a_child("leave") == "-1"


class _Left(Exception):
    """Instead of leaving."""


def _left() -> None:
    raise _Left


def test_qubesd_leaves_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "leave", _left)
    with pytest.raises(_Left):
        qubesd.main([])


def test_the_zygote_leaves_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "leave", _left)
    with pytest.raises(_Left):
        zygote.main()


def test_a_kernel_that_refuses_is_an_error_and_one_without_keys_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        error = errno.EDQUOT

        def syscall(self, *_arguments: object) -> int:
            ctypes.set_errno(self.error)
            return -1

    libc = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: libc)
    with pytest.raises(OSError, match="session keyring"):
        keyring.leave()
    libc.error = errno.ENOSYS
    keyring.leave()
