"""The deprecated form of the policy program: what was allowed is also done, by `qrexec-client` (reference/qrexec.md 15.2).

Today's daemons do that part themselves. In the words of the policy's answer, as they do (15.3): its user, service and source
count, and a target is started, or a disposable made, only if it says so.
"""
from __future__ import annotations

import contextlib
import subprocess
from typing import NamedTuple

from cloison.client.connection import Connection
from cloison.errors import CloisonError, QubeNotHalted
from cloison.policy.evaluate import Deny, Response
from cloison.policy.facts import HOST
from cloison.qrexec.policyd.ask import QREXEC_CLIENT
from cloison.qrexec.policyd.judge import Verdict
from cloison.wire.policy import Query
from cloison.wire.qrexec import Command, build_command, request_id

REFUSED = 1
_HOSTS = (HOST, "@adminvm", "uuid:00000000-0000-0000-0000-000000000000")
_DISPOSABLE = "@dispvm:"


class Caller(NamedTuple):
    """What an answer to the caller needs besides its name: its domain's number, and the id of its request."""

    xid: int
    ident: str

    @classmethod
    def parse(cls, xid: str, ident: str) -> Caller:
        """Raises ValueError."""
        if not (xid.isascii() and xid.isdecimal() and 0 < int(xid) < 1 << 32):
            raise ValueError(f"{xid!r} is not a domain's id")
        request_id(ident)
        return cls(int(xid), ident)


def carry_out(connection: Connection, verdict: Verdict, caller: Caller) -> int:
    """The call from its start to its end, or as far as qrexec-client waits: that one's exit status. A refusal is REFUSED.

    Raises CloisonError if the target can't be started, ValueError for words that make no command line, OSError.
    """
    answer = verdict.outcome
    if isinstance(answer, Deny):
        return REFUSED
    words = command(answer, verdict.query, caller)
    target = _target(answer)
    if answer.autostart and target != HOST and not target.startswith(_DISPOSABLE):
        with contextlib.suppress(QubeNotHalted):
            connection.call(target, "admin.vm.Start")
    return subprocess.call(words, stdin=subprocess.DEVNULL)


def command(answer: Response, query: Query, caller: Caller) -> list[str]:
    """What joins the caller with the target. Raises CloisonError, ValueError."""
    target = _target(answer)
    if target.startswith(_DISPOSABLE) and not answer.autostart:
        raise CloisonError("a disposable can't be had without being started")
    service, _, argument = (answer.service or query.untrusted_service).partition("+")
    source, asked_for = answer.policy_source or query.source, answer.requested_target
    if target == HOST:
        kind = "keyword" if asked_for.startswith("@") else "name"
        call = Command("", False, "", service, argument, source, kind, asked_for.removeprefix("@"))
    else:
        call = Command(answer.user, False, "", service, argument, source)
    request = f"{caller.ident},{query.source},{caller.xid}"
    return [*QREXEC_CLIENT, "-E", "-d", target, "-c", request, "--", build_command(call)]


def _target(answer: Response) -> str:
    target = answer.target_uuid or answer.target
    return HOST if answer.target in _HOSTS or target in _HOSTS else target
