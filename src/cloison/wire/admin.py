"""The Admin API on the wire: one request, then one reply or a stream of events.

    request    METHOD[+ARGUMENT] SOURCE name|keyword DEST NUL payload, then half-close
    reply      "0" NUL content  |  "2" NUL class NUL traceback NUL message NUL, or NUL "hint: " hint NUL in the traceback's place
    event      "1" NUL subject NUL event NUL (key NUL value NUL)* NUL

A message of an exception is a printf format for the client, so every `%` is doubled here and nowhere else. No encoder lets
a NUL through: it would end the field early. A hint stands where no client of Qubes OS looks (decision 67). Facts:
reference/admin-api.md 1.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from cloison.errors import CloisonError, PeerError

MAX_REQUEST: Final = 65536               # bytes, header and payload
MAX_NOTES: Final = 256000                # bytes of the one payload that may be longer
MAX_EVENT: Final = 1 << 20               # bytes of one event, or of the exception after events

_OK: Final = b"0\0"
_EVENT: Final = b"1"
_EXCEPTION: Final = b"2"
_HINT: Final = "hint: "                  # begins the field of a traceback that is none
_LONG: Final = b"admin.vm.notes.Set"


class Request(NamedTuple):
    """A framed request; its words are not checked yet. Text that isn't ASCII has become U+FFFD, which no name may hold."""

    method: str
    argument: str                        # without `+`; empty also if there was none
    source: str
    dest_kind: str                       # name, or keyword (then dest is adminvm)
    dest: str
    payload: bytes = b""


class Failure(NamedTuple):
    """An exception reply. `message` is for a person, its `%` undone; `hint` what helps, if that was said."""

    class_name: str
    message: str
    hint: str = ""


class Event(NamedTuple):
    """`subject` is a qube's name, or empty for the whole system."""

    subject: str
    event: str
    pairs: tuple[tuple[str, str], ...]


def request_limit(untrusted: bytes | bytearray) -> int:
    """Bytes that a request that begins like this may have."""
    return MAX_REQUEST if not untrusted.startswith(_LONG) else MAX_REQUEST + MAX_NOTES


# -- requests ------------------------------------------------------------------------------------------------------------


def parse_request(untrusted: bytes) -> Request:
    """Everything that came before the half-close. Raises PeerError for bad framing: close without a reply."""
    if len(untrusted) > request_limit(untrusted):
        raise PeerError("request too long", len(untrusted))
    header, nul, payload = untrusted.partition(b"\0")
    words = header.decode("ascii", "replace").split(" ", 3)     # a space in the last one is for the check of names to find
    if not nul or len(words) != 4:
        raise PeerError("a request must have four words and a NUL", len(words))
    call, source, dest_kind, dest = words
    if dest_kind != "name" and (dest_kind, dest) != ("keyword", "adminvm"):
        raise PeerError("the destination must be a name or the keyword adminvm")
    method, _, argument = call.partition("+")
    return Request(method, argument, source, dest_kind, dest, payload)


def encode_request(request: Request) -> bytes:
    """Inverse of `parse_request`. Raises CloisonError for a word that can't be sent or a payload that is too long."""
    method, argument, source, dest_kind, dest, payload = request
    for word in request[:5]:
        if not word.isascii() or not word.isprintable() or " " in word:
            raise CloisonError(f"{word[:60]!r} can't be part of a call: only ASCII without spaces and controls can")
    data = f"{method}+{argument} {source} {dest_kind} {dest}\0".encode() + payload
    if len(data) > request_limit(data):
        raise CloisonError(f"the call {method} has {len(data)} bytes, more than the {request_limit(data)} that can be sent")
    return data


# -- replies -------------------------------------------------------------------------------------------------------------


def ok(content: bytes = b"") -> bytes:
    return _OK + content


def exception(class_name: str, message: str, hint: str = "") -> bytes:
    """`message` is the final text for a person, `hint` what helps. No traceback is ever sent."""
    told = _field(_HINT + hint) if hint else b""
    return b"2\0%b\0%b\0%b\0" % (_field(class_name), told, _field(message.replace("%", "%%")))


def event(subject: str, name: str, pairs: Iterable[tuple[str, str]] = ()) -> bytes:
    """Raises ValueError for an empty key: it would end the list early."""
    fields = [subject, name]
    for key, value in pairs:
        if not key:
            raise ValueError("an event's key can't be empty")
        fields += (key, value)
    # Existing clients decode events as ASCII.
    return b"1\0" + b"".join(_field(text, "ascii") + b"\0" for text in fields) + b"\0"


def _field(text: str, encoding: str = "utf-8") -> bytes:
    return text.replace("\0", "\\x00").encode(encoding, "backslashreplace")


def parse_reply(untrusted: bytes) -> bytes | Failure:
    """The whole reply to a call without events: its content, or how it failed. Raises PeerError, also for no reply at all."""
    if untrusted.startswith(_OK):
        return untrusted[len(_OK):]
    if not untrusted:
        raise PeerError("empty reply: the call was refused or the daemon ended")
    fields = untrusted.split(b"\0")
    if fields[0] != _EXCEPTION:
        raise PeerError("not a reply", untrusted[:20])
    return _failure(fields[1:])


def _failure(fields: list[bytes]) -> Failure:
    """Class, traceback, message, arguments..., and the empty rest after the last NUL."""
    if len(fields) < 4 or fields[-1]:
        raise PeerError("an exception reply was cut short")
    class_name, told, message, *arguments = (field.decode("utf-8", "replace") for field in fields[:-1])
    return Failure(class_name, _fill_in(message, arguments), told.removeprefix(_HINT) if told.startswith(_HINT) else "")


def _fill_in(message: str, arguments: list[str]) -> str:
    """The message with `%s` and `%d` replaced in order and `%%` undone. Others stay as text: a width can be huge."""
    rest = iter(arguments)
    parts = message.split("%%")
    for index, part in enumerate(parts):
        pieces = part.replace("%d", "%s").split("%s")
        filled = pieces[0]
        for piece in pieces[1:]:
            filled += next(rest, "%s") + piece
        parts[index] = filled
    return "%".join(parts)


# -- events --------------------------------------------------------------------------------------------------------------


class EventDecoder:
    """Feed it a reply as it comes; take events until None, which means "need more"; `finish` at the end of the stream.

    Raises PeerError for what is no event and no exception, and for one beyond MAX_EVENT.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0                # bytes of the buffer that are fields already
        self._fields: list[bytes] = []   # of the frame under way

    def feed(self, untrusted: bytes) -> None:
        self._buffer += untrusted

    def next_event(self) -> Event | None:
        while (end := self._buffer.find(b"\0", self._scanned)) >= 0:
            self._fields.append(bytes(self._buffer[self._scanned:end]))
            self._scanned = end + 1
            self._check()
            if self._is_whole_event():
                return self._take_event()
        if len(self._buffer) > MAX_EVENT:
            raise PeerError("event too long", len(self._buffer))
        return None

    def finish(self) -> Failure | None:
        """The stream has ended: how the call failed after its last event, or None. Raises PeerError if it was cut short."""
        if not self._buffer:
            return None
        if self._buffer[:2] != b"2\0":
            raise PeerError("the event stream was cut short")
        return _failure(bytes(self._buffer[2:]).split(b"\0"))

    def _check(self) -> None:
        if self._fields[0] not in (_EVENT, _EXCEPTION):
            raise PeerError("not an event", bytes(self._fields[0][:20]))
        if self._scanned > MAX_EVENT:
            raise PeerError("event too long", self._scanned)

    def _is_whole_event(self) -> bool:
        """Mark, subject, name, pairs, and where a key would stand an empty field."""
        return self._fields[0] == _EVENT and len(self._fields) > 3 and len(self._fields) % 2 == 0 and not self._fields[-1]

    def _take_event(self) -> Event:
        subject, name, *rest = (field.decode("utf-8", "replace") for field in self._fields[1:-1])
        del self._buffer[:self._scanned]
        self._scanned = 0
        self._fields = []
        return Event(subject, name, tuple(zip(rest[::2], rest[1::2], strict=True)))
