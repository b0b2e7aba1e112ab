"""Asking the policy about one call, and what its answer means (reference/qrexec.md 13.6, 15.1, 15.2). Any error denies.

The answer comes from the policy daemon, or, where none answers, from the policy program if there is one.
"""
from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

from cloison.errors import CloisonError, PeerError
from cloison.runtime import unix_async
from cloison.wire.policy import Query, encode_query

MAX_ANSWER = 4095                        # bytes
MAX_SERVICE = 65000 + 256                # bytes of a service that a relay's transport is put in front of
_KEYS = frozenset({"result", "user", "target", "target_uuid", "autostart", "requested_target", "service", "policy_source"})
_NEEDED = frozenset({"user", "target", "autostart", "requested_target"})
_BOOLEANS = {"True": True, "False": False}


class Denied(CloisonError):
    """The call is not to take place: the policy says so, or could not be asked."""


class Verdict(NamedTuple):
    """An allowed call. Empty texts: not said. `target`: name, `dom0` or `@dispvm:NAME`; `target_uuid`: the same by `uuid:...`."""

    user: str
    target: str
    autostart: bool
    requested_target: str
    target_uuid: str = ""
    service: str = ""
    policy_source: str = ""


def parse_answer(untrusted: bytes) -> Verdict:
    """All that came until the end. Raises Denied for a refusal, PeerError for what is no answer."""
    fields = _fields(untrusted)
    result = fields.pop("result", "")
    if result == "deny" and not fields.keys() & _NEEDED:
        raise Denied("denied by policy")
    if result != "allow" or not fields.keys() >= _NEEDED or fields["autostart"] not in _BOOLEANS:
        raise PeerError("the policy's answer is incomplete")
    return Verdict(
        fields["user"], fields["target"], _BOOLEANS[fields["autostart"]], fields["requested_target"],
        fields.get("target_uuid", ""), fields.get("service", ""), fields.get("policy_source", ""))


def _fields(untrusted: bytes) -> dict[str, str]:
    """Lines by their known keys. Raises PeerError."""
    if len(untrusted) > MAX_ANSWER:
        raise PeerError("the policy's answer is too long")
    try:
        text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise PeerError("the policy's answer must be ASCII") from None
    if "\0" in text or not text:
        raise PeerError("the policy gave no answer")
    fields: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):
        key, equals, value = line.partition("=")
        if not equals or key in fields:
            raise PeerError("the policy's answer has a line that is none of `key=value`, or one twice")
        if key in _KEYS:
            fields[key] = value
    return fields


async def ask(path: str, program: str | None, query: Query) -> Verdict:
    """The policy's verdict on a call. Raises Denied for everything else than an allowed one."""
    try:
        return parse_answer(await _ask_daemon(path, query))
    except (OSError, PeerError) as error:
        if program is None:
            raise Denied(f"the policy can't be asked: {error}") from error
    try:
        return parse_answer(await _ask_program(program, query))
    except (OSError, PeerError) as error:
        raise Denied(f"the policy program failed: {error}") from error


async def _ask_daemon(path: str, query: Query) -> bytes:
    loop = asyncio.get_running_loop()
    with await unix_async.connect(path) as stream:
        await loop.sock_sendall(stream, encode_query(query))
        return await _read(stream)


async def _read(stream: socket.socket) -> bytes:
    """To the end, or a little more than an answer may have."""
    loop = asyncio.get_running_loop()
    answer = b""
    while len(answer) <= MAX_ANSWER and (data := await loop.sock_recv(stream, MAX_ANSWER + 1)):
        answer += data
    return answer


async def _ask_program(program: str, query: Query) -> bytes:
    """Raises OSError, PeerError for one that fails."""
    words = (program, "--", query.source, query.untrusted_target, query.untrusted_service)
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(*words, stdin=theirs.fileno(), stdout=theirs.fileno())
        try:
            answer = await _read(ours)
            status = await process.wait()
        except BaseException:
            if process.returncode is None:
                process.kill()
            raise
    if status != 0:
        raise PeerError("it ended with a status", status)
    return answer
