"""Who gets which network address: a pure function of the qube's number (reference/admin-api.md 15)."""
from __future__ import annotations

DNS = ("10.139.1.1", "10.139.1.2")
NETMASK = "255.255.255.255"
_IP6_PREFIX = "fd09:24ef:4179::"


def ip(number: int, *, disposable: bool) -> str:
    """IPv4 address for a qid, or for a dispid of a disposable."""
    prefix = "10.138" if disposable else "10.137"
    if number < 255:
        return f"{prefix}.0.{number}"
    return f"{prefix}.{(number - 1) // 254}.{(number - 1) % 254 + 1}"


def ip6(number: int, *, disposable: bool) -> str:
    return f"{_IP6_PREFIX}{'a8a' if disposable else 'a89'}:{number:x}"
