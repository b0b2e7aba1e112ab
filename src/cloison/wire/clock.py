"""The time as service qubes.GetDate says it: `2026-11-21T06:00:00+00:00` or `2026-11-21T06:00:00,123456789+00:00`, and LF."""
from __future__ import annotations

import datetime

from cloison.errors import PeerError

LENGTH, LENGTH_MAX = 26, 36              # bytes, without and with nanoseconds
_NANOSECONDS = 10**9
# No clock that is right says less: this program is younger.
_EARLIEST = int(datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC).timestamp()) * _NANOSECONDS
_SHAPE = "0000-00-00T00:00:00"
_ZONE = "+00:00\n"


def parse(untrusted: bytes) -> int:
    """Nanoseconds since 1970. Raises PeerError for anything but the two forms, and for times before this program was."""
    if len(untrusted) not in (LENGTH, LENGTH_MAX) or not untrusted.isascii():
        raise PeerError(f"a time has {LENGTH} or {LENGTH_MAX} ASCII characters, this has {len(untrusted)} bytes")
    text = untrusted.decode("ascii")
    fraction = text[19:-len(_ZONE)]
    digits = fraction[1:]
    shape = "".join("0" if character.isdigit() else character for character in text[:19])
    if shape != _SHAPE or not text.endswith(_ZONE) or (fraction and not (fraction[0] == "," and digits.isdigit())):
        raise PeerError("not a time in UTC")
    try:
        seconds = int(datetime.datetime.fromisoformat(text[:19] + "+00:00").timestamp())
    except ValueError:
        raise PeerError("no such time") from None
    now = seconds * _NANOSECONDS + int(digits or "0")
    if now < _EARLIEST:
        raise PeerError("a time before this program was made")
    return now


def encode(now: int, *, nanoseconds: bool) -> bytes:
    """The form of `now`, in nanoseconds since 1970."""
    seconds, rest = divmod(now, _NANOSECONDS)
    text = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return (text + (f",{rest:09}" if nanoseconds else "") + _ZONE).encode()
