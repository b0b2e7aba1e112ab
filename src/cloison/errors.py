"""Every failure a caller may handle. One root; fields, not prose; words are made in `__str__`, advice in `hint`.

`wire` is the exception class name the Admin API sends for it (reference/admin-api.md 3). A class exists where a caller
would tell it apart, no more.
"""
from __future__ import annotations


class CloisonError(Exception):
    """Root. `hint` is what the person can do about it; `exit_status` is what a tool ends with."""

    wire = "QubesException"
    hint = ""
    exit_status = 1


class PeerError(CloisonError):
    """The other side left the protocol: its connection is dropped. Never shown to a guest."""

    wire = "ProtocolError"


class StorageError(CloisonError):
    """A volume or its pool can't do what was asked; what was there is still there."""

    wire = "StoragePoolException"


class MachineError(CloisonError):
    """The virtual machine could not be started or driven."""


class HostError(CloisonError):
    """The host lacks something Cloison needs (a program, user namespaces, disk, memory)."""
