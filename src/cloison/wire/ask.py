"""What is said to the agent that asks the person: `policy.Ask` and `policy.Notify` (reference/qrexec.md 16).

A service descriptor and a NUL, one JSON object, end; the answer is `allow:TARGET`, `deny` or nothing. Every text is checked
here against what such a text may hold, so that what a qube sent can't draw anything in a dialog but plain names.
"""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cloison.errors import PeerError

ASK: Final = "policy.Ask"
NOTIFY: Final = "policy.Notify"
MAX_REQUEST: Final = 16 << 20            # bytes: each qube's icon is listed
MAX_ANSWER: Final = 128                  # bytes
MAX_TARGETS: Final = 1 << 17
RESOLUTIONS: Final = ("allow", "deny", "fail")

_CALLER: Final = "dom0 name dom0"
_DENY: Final = "deny"
_ALLOW: Final = "allow:"
_NAME: Final = re.compile(r"(@dispvm:)?[A-Za-z][A-Za-z0-9_.-]{0,62}|@(dispvm|default|adminvm)|(@dispvm:)?uuid:[0-9a-f-]{36}")
_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_ARGUMENT: Final = re.compile(r"\+[A-Za-z0-9+._-]{0,65000}")
_ICON: Final = re.compile(r"[A-Za-z0-9._-]{0,128}")


class Question(NamedTuple):
    """May `source` call the service, and in which of `targets`? `default_target` is one of them, or empty.

    `icons`: icon name by qube and by `@dispvm:NAME`.
    """

    source: str
    service: str
    argument: str
    targets: tuple[str, ...]
    default_target: str
    icons: Mapping[str, str]


class Notice(NamedTuple):
    """What became of a call. `resolution` is one of RESOLUTIONS."""

    resolution: str
    service: str
    argument: str
    source: str
    target: str


def encode_question(question: Question) -> bytes:
    body = {**question._asdict(), "targets": list(question.targets), "icons": dict(question.icons)}
    return _encode(ASK, body)


def encode_notice(notice: Notice) -> bytes:
    return _encode(NOTIFY, notice._asdict())


def _encode(service: str, body: Mapping[str, object]) -> bytes:
    return f"{service} {_CALLER}\0{json.dumps(body)}".encode("ascii")


def parse(untrusted: bytes) -> Question | Notice:
    """A whole request. Raises PeerError: deny."""
    descriptor, nul, body = untrusted.partition(b"\0")
    words = descriptor.decode("ascii", "replace").split(" ")
    if not nul or len(words) < 2:
        raise PeerError("a question begins with a service descriptor")
    try:
        fields = json.loads(body.decode("ascii"))
    except (ValueError, RecursionError):
        raise PeerError("a question must be one JSON object") from None
    if not isinstance(fields, dict):
        raise PeerError("a question must be one JSON object")
    service = words[0].partition("+")[0]
    if service == ASK:
        return _question(fields)
    if service == NOTIFY:
        return _notice(fields)
    raise PeerError("neither a question nor a notice")


def _question(fields: Mapping[str, Any]) -> Question:
    targets, icons = fields.get("targets"), fields.get("icons")
    if not isinstance(targets, list) or not 1 <= len(targets) <= MAX_TARGETS or not isinstance(icons, dict):
        raise PeerError("a question must have targets and icons")
    names = tuple(sorted({_checked(target, _NAME) for target in targets}))
    default = fields.get("default_target")
    if default != "" and default not in names:
        raise PeerError("a question's default must be one of its targets")
    return Question(
        _checked(fields.get("source"), _NAME), _checked(fields.get("service"), _SERVICE),
        _checked(fields.get("argument"), _ARGUMENT), names, str(default), _icons(icons))


def _icons(untrusted: Mapping[str, object]) -> dict[str, str]:
    if len(untrusted) > MAX_TARGETS:
        raise PeerError("more icons than qubes can be")
    return {_checked(name, _NAME): _checked(icon, _ICON) for name, icon in untrusted.items()}


def _notice(fields: Mapping[str, Any]) -> Notice:
    if fields.get("resolution") not in RESOLUTIONS:
        raise PeerError("a notice must tell a resolution")
    return Notice(
        fields["resolution"], _checked(fields.get("service"), _SERVICE), _checked(fields.get("argument"), _ARGUMENT),
        _checked(fields.get("source"), _NAME), _checked(fields.get("target"), _NAME))


def _checked(untrusted: object, pattern: re.Pattern[str]) -> str:
    if not isinstance(untrusted, str) or not pattern.fullmatch(untrusted):
        raise PeerError("a text has characters or a length that such a text can't have")
    return untrusted


def encode_answer(target: str | None) -> bytes:
    """`None` refuses."""
    return (_DENY if target is None else f"{_ALLOW}{target}").encode("ascii")


def parse_answer(untrusted: bytes) -> str | None:
    """The chosen target, or None for a refusal. Raises PeerError for anything else, which refuses too."""
    text = untrusted.decode("ascii", "replace").strip()
    if text == _DENY:
        return None
    if len(untrusted) > MAX_ANSWER or not text.startswith(_ALLOW):
        raise PeerError("the agent's answer is neither a choice nor a refusal")
    return _checked(text[len(_ALLOW):], _NAME)
