"""The kernel's keys of whoever started us: let go of once, so that nothing we start has them.

A session keyring is handed down from a login to all that runs in it, and may hold what opens encrypted disks and tickets of
network logins. Daemons, wardens and what runs in boxes need none of it.
"""
from __future__ import annotations

import ctypes
import errno
import os

_KEYCTL, _JOIN_SESSION_KEYRING = 250, 1


def leave() -> None:
    """Have a new, empty session keyring from here on, children included. Raises OSError where the kernel has keys and refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_KEYCTL, _JOIN_SESSION_KEYRING, None) < 0:
        number = ctypes.get_errno()
        if number != errno.ENOSYS:          # a kernel without keys
            raise OSError(number, f"can't leave the session keyring: {os.strerror(number)}")
