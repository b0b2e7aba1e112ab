"""The session keyring of whoever starts us is not handed on."""
from __future__ import annotations

import subprocess
import sys

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
