"""What is said to the policy daemon: one request of `key=value` lines and an empty one, one answer, end (reference/qrexec.md 15.1).

The evaluation services of 15.4 are here too: they ask the same daemon in other words, and may not start anything.
"""
from __future__ import annotations

import re
from typing import Final, NamedTuple

from cloison.errors import PeerError

MAX_REQUEST: Final = 1 << 17             # bytes; a service with its argument has at most 65,000
MAX_EVALUATION: Final = 96               # bytes after the descriptor
MAX_DESCRIPTOR: Final = 1 << 16
DENY: Final = b"result=deny"
ALLOW: Final = b"result=allow"

_REQUIRED: Final = frozenset({"source", "intended_target", "service_and_arg"})
_KEYS: Final = _REQUIRED | {"requested_source", "assume_yes_for_ask", "just_evaluate"}
_FLAGS: Final = {"yes": True, "no": False}
_SOURCE: Final = re.compile(r"[A-Za-z0-9@_.-]{1,31}")
_TARGET: Final = re.compile(r"[A-Za-z0-9@_.-]{1,63}")


class Query(NamedTuple):
    """A call to be judged. `untrusted_service` may have an argument behind `+`.

    `just_evaluate`: nothing is to be run, so nobody is asked or told. `assume_yes`: a question counts as answered with the
    target that was asked for. `window_owner`: only if both qubes' windows are this qube's business.
    """

    source: str
    untrusted_target: str
    untrusted_service: str
    untrusted_requested_source: str = ""
    assume_yes: bool = False
    just_evaluate: bool = False
    window_owner: str = ""


def encode_query(query: Query) -> bytes:
    """Inverse of `parse_query`. Raises PeerError for a text that can't stand in a line."""
    lines = {"source": query.source, "intended_target": query.untrusted_target, "service_and_arg": query.untrusted_service}
    if query.untrusted_requested_source:
        lines["requested_source"] = query.untrusted_requested_source
    if query.assume_yes:
        lines["assume_yes_for_ask"] = "yes"
    if query.just_evaluate:
        lines["just_evaluate"] = "yes"
    for value in lines.values():
        if not value.isascii() or "\n" in value:
            raise PeerError("a call's text must be ASCII without line ends")
    return "".join(f"{key}={value}\n" for key, value in lines.items()).encode() + b"\n"


def is_whole(untrusted: bytes | bytearray) -> bool:
    """Whether the empty line has come. Raises PeerError for more than any request has."""
    if len(untrusted) > MAX_REQUEST:
        raise PeerError("request too long", len(untrusted))
    return b"\n\n" in untrusted or untrusted.startswith(b"\n")


def parse_query(untrusted: bytes | bytearray) -> Query:
    """A whole request. Raises PeerError: close without an answer."""
    fields = _fields(untrusted)
    if not fields.keys() >= _REQUIRED:
        raise PeerError("a request lacks a key that it must have")
    if not fields["source"] or not fields["service_and_arg"]:
        raise PeerError("a request must name a source and a service")
    return Query(
        fields["source"], fields["intended_target"], fields["service_and_arg"], fields.get("requested_source", ""),
        _flag(fields, "assume_yes_for_ask"), _flag(fields, "just_evaluate"))


def _fields(untrusted: bytes | bytearray) -> dict[str, str]:
    fields: dict[str, str] = {}
    try:
        text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise PeerError("a request must be ASCII") from None
    for line in text.split("\n"):
        if not line:
            break
        key, equals, value = line.partition("=")
        if not equals or key not in _KEYS or key in fields:
            raise PeerError("a request's line must be one of the known keys, once, and a value")
        fields[key] = value
    return fields


def _flag(fields: dict[str, str], key: str) -> bool:
    value = fields.get(key, "no")
    if value not in _FLAGS:
        raise PeerError(f"{key} must be yes or no")
    return _FLAGS[value]


def parse_evaluation(untrusted: bytes | bytearray, *, windows: bool) -> Query:
    """All that came to `policy.EvalSimple`, or (`windows`) `policy.EvalGUI`, until its end. Raises PeerError: close."""
    if len(untrusted) > MAX_DESCRIPTOR + MAX_EVALUATION:
        raise PeerError("request too long", len(untrusted))
    descriptor, nul, body = bytes(untrusted).partition(b"\0")
    words = descriptor.decode("ascii", "replace").split(" ")
    if not nul or len(words) < 2 or len(body) > MAX_EVALUATION:
        raise PeerError("an evaluation begins with a service descriptor and has two names")
    source, between, target = body.decode("ascii", "replace").partition("\0")
    if not between or not _SOURCE.fullmatch(source) or not _TARGET.fullmatch(target):
        raise PeerError("an evaluation has two names")
    _, _, service = words[0].partition("+")
    if not service:
        raise PeerError("an evaluation's argument is a service")
    return Query(source, target, service, assume_yes=True, just_evaluate=True, window_owner=words[1] if windows else "")
