"""Holds one user's PAM session for the agent: a program of its own, because a session belongs to the process that opened it.

It runs as root, with a stream socket as stdin: it says there what the session gives to its programs, one line of JSON, or hangs
up when PAM refuses one. It keeps the session until the other end hangs up, that is, until the agent ends; then it closes it.
Started by its path, so it imports nothing of ours.
"""
from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from ctypes import POINTER, c_char_p, c_int, c_void_p

SERVICE = "qrexec"
LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_SUCCESS, _CONVERSATION_ERROR = 0, 19
_ESTABLISH, _DELETE, _SILENT = 0x2, 0x4, 0x8000

_Conversation = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p, c_void_p)


class _ConversationStruct(ctypes.Structure):
    _fields_ = (("converse", _Conversation), ("data", c_void_p))


class Refused(Exception):
    """PAM's reason in its words."""


def _nobody_answers(_count: int, _messages: object, _responses: object, _data: object) -> int:
    """Nobody is there to be asked for a password: whoever asks is told so, and fails."""
    return _CONVERSATION_ERROR


class Pam:
    """One transaction with libpam, for one user. Raises Refused, OSError where there is no libpam."""

    def __init__(self, user: str, folder: str | None = None) -> None:
        """`folder`: of service files, None for the system's."""
        self._library = ctypes.CDLL("libpam.so.0")
        self._library.pam_strerror.restype = c_char_p
        self._library.pam_getenvlist.restype = POINTER(c_void_p)
        self._handle = c_void_p()
        self._conversation = _ConversationStruct(_Conversation(_nobody_answers), None)
        self._status = self._library.pam_start_confdir(
            SERVICE.encode(), os.fsencode(user), ctypes.byref(self._conversation),
            None if folder is None else os.fsencode(folder), ctypes.byref(self._handle))
        self._check()

    def open(self) -> None:
        """Who asks is root, and the account is good; then credentials and the session."""
        self._do("pam_authenticate", 0)
        self._do("pam_acct_mgmt", 0)
        self._do("pam_setcred", _ESTABLISH)
        self._do("pam_open_session", 0)

    def environment(self) -> dict[str, str]:
        pairs: dict[str, str] = {}
        found = self._library.pam_getenvlist(self._handle)
        index = 0
        while found and (entry := found[index]):
            name, _, value = os.fsdecode(ctypes.string_at(entry)).partition("=")
            pairs[name] = value
            index += 1
        return pairs                     # its memory goes with this process

    def close(self) -> None:
        """Whatever of it fails: there is nobody to tell."""
        self._library.pam_close_session(self._handle, _SILENT)
        self._status = self._library.pam_setcred(self._handle, _DELETE | _SILENT)
        self._library.pam_end(self._handle, self._status)

    def _do(self, step: str, flags: int) -> None:
        self._status = getattr(self._library, step)(self._handle, flags)
        self._check(step)

    def _check(self, step: str = "pam_start") -> None:
        if self._status != _SUCCESS:
            reason = self._library.pam_strerror(self._handle, self._status) or b""
            self._library.pam_end(self._handle, self._status)
            raise Refused(f"{step}: {reason.decode(errors='replace')}")


def describe(environment: dict[str, str]) -> bytes:
    """What a program of this session is to have: the line for the agent (`session.parse`)."""
    mask = os.umask(0)
    os.umask(mask)
    limits = [[which, *resource.getrlimit(which)] for which in LIMITS]
    return json.dumps({"environment": environment, "limits": limits, "umask": mask}).encode() + b"\n"


def main(user: str, folder: str | None = None) -> int:
    try:
        pam = Pam(user, folder)
        pam.open()
    except (Refused, OSError) as error:
        print(f"no session for {user}: {error}", file=sys.stderr)
        return 1
    line = describe(pam.environment())
    try:
        while line:
            line = line[os.write(0, line):]
        while os.read(0, 4096):
            pass
    except OSError:
        pass                             # the agent is gone
    pam.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
