"""Holds one user's PAM session for the agent: a program of its own, because a session belongs to the process that opened it.

It runs as root, with a listening socket as stdin. To the agent that connects it says what the session gives to its programs, one
line of JSON; when PAM refuses one, it hangs up. An agent that hangs up has ended: the session stays open for the next one, which
finds the socket by its name, for as long as SUCCESSOR. An agent that sends anything wants the session closed.
Started by its path, so it imports nothing of ours, and little else: a first call waits for it.
"""
from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import sys
from ctypes import POINTER, c_char_p, c_int, c_void_p

SERVICE = "qrexec"
LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
SUCCESSOR = 300_000                      # ms until nobody is taken to follow: Python starts slowly where nobody stood by
_CLOEXEC = 0o2000000
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
    wanted = True
    while wanted and (agent := _next_agent()) is not None:
        wanted = _serve(agent, line)
    pam.close()
    return 0


def _next_agent() -> int | None:
    """Its connection; None when nobody comes."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    if not poll.poll(SUCCESSOR):
        return None
    fd: int = ctypes.CDLL(None).accept4(0, None, None, _CLOEXEC)
    return fd if fd >= 0 else None


def _serve(agent: int, line: bytes) -> bool:
    """Until it hangs up or wants the session closed; False then."""
    try:
        while line:
            line = line[os.write(agent, line):]
        return not os.read(agent, 1)
    except OSError:
        return True                      # it is gone
    finally:
        os.close(agent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
