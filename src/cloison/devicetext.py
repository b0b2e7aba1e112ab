"""How a device is named and told of in text: one form for the Admin API's server, its clients and the tools.

Pure, and light to import: it is on the time of every tool that deals with devices. Facts: reference/devices.md 1, 2.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

ANY: Final = "*"
UNKNOWN_INTERFACE: Final = "?******"
UNKNOWN_IDENTITY: Final = f"0000:0000::{UNKNOWN_INTERFACE}"
_PORT: Final = re.compile(r"[a-zA-Z0-9._-]{1,255}|\*")       # as anything real is called; the Admin API takes others, too
_WIDTH: Final = 7                       # characters of an interface


class Device(NamedTuple):
    """A device, or a pattern of them: where (backend qube, port) and what (identity). ANY may stand for each of the three."""

    devclass: str
    backend: str
    port: str
    identity: str = ANY

    @property
    def place(self) -> str:
        return f"{self.backend}:{self.port}"

    @property
    def head(self) -> str:
        """First word of a line about it."""
        return f"{self.backend}+{self.port}:{self.identity}"

    @property
    def key(self) -> str:
        """Unique among the assignments of one qube."""
        return " ".join(self)

    @property
    def argument(self) -> str:
        """As a call's argument carries it."""
        identity = self.identity.replace(UNKNOWN_INTERFACE, "_" * _WIDTH).replace(":", "+").replace(ANY, "_")
        return f"{self.backend}+{'_' if self.port == ANY else self.port}+{identity}"

    def __str__(self) -> str:
        return f"{self.place}:{self.identity}"

    def matches(self, device: Device) -> bool:
        """Whether this pattern means that device."""
        return (self.devclass == device.devclass and self.backend in (ANY, device.backend)
                and self.port in (ANY, device.port) and self.identity in (ANY, device.identity))


def is_port(untrusted: str) -> bool:
    """What a person means by a port. ANY is one, too."""
    return _PORT.fullmatch(untrusted) is not None


def serialise(pairs: Mapping[str, str]) -> str:
    """`key='value'` pairs, one space between."""
    return " ".join("{}='{}'".format(key, value.replace("'", "\\'")) for key, value in pairs.items())


def interfaces(concatenated: str) -> list[str]:
    """Of seven characters each; the last one may be short, which matches nothing."""
    return [concatenated[start:start + _WIDTH] for start in range(0, len(concatenated), _WIDTH)]


def interface_matches(pattern: str, interface: str) -> bool:
    """ANY in the pattern stands for one character."""
    return len(pattern) == len(interface) and all(a in (ANY, b) for a, b in zip(pattern, interface, strict=True))
