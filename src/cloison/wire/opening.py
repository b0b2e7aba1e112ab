"""What qubes.OpenInVM and qubes.OpenURL carry: a name in 256 bytes, or an address in one line (reference/qrexec.md 20.4)."""
from __future__ import annotations

from cloison.errors import PeerError

NAME_FIELD = 256
ADDRESS_MAX = 8192
ADDRESS_SCHEMES = ("http://", "https://", "ftp://")
_VIEW_ONLY = b"view-only-"
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+@")
_SCHEME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+")


def is_address(text: str) -> bool:
    """Whether this looks like `scheme://...`, in one line."""
    scheme, found, _ = text.partition("://")
    return bool(found and scheme[:1].isalpha() and _SCHEME.issuperset(scheme)) and "\n" not in text


def encode_name(name: bytes, *, view_only: bool) -> bytes:
    """The field: a base name, cut from the left to fit, so that its ending stays; the rest is zero (QSB-009)."""
    prefix = _VIEW_ONLY if view_only else b""
    return (prefix + name[-(NAME_FIELD - 1 - len(prefix)):]).ljust(NAME_FIELD, b"\0")


def decode_name(untrusted: bytes) -> tuple[str, bool]:
    """A name fit for a file of ours, and whether it is only to be viewed. Raises PeerError."""
    if len(untrusted) != NAME_FIELD or untrusted[-1] != 0:
        raise PeerError("the name's field is not whole")
    name = untrusted.partition(b"\0")[0]
    view_only = name.startswith(_VIEW_ONLY)
    name = name.removeprefix(_VIEW_ONLY)
    if not name or b"/" in name:
        raise PeerError("a name that is empty or has a '/'")
    safe = "".join(chr(byte) if byte in _SAFE else "_" for byte in name)
    if safe in (".", "..") or safe.startswith("-"):
        safe = "_" + safe[1:]
    return safe, view_only


def decode_address(untrusted: bytes) -> str:
    """An address of the web. Raises PeerError for any other line."""
    line, _, _ = untrusted.partition(b"\n")
    if len(line) > ADDRESS_MAX or not line.isascii() or not line.decode("ascii").isprintable():
        raise PeerError("not an address")
    address = line.decode("ascii")
    if not address.startswith(ADDRESS_SCHEMES) or " " in address:
        raise PeerError("not an address of the web")
    return address
