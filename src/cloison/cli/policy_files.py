"""What the tools that read and change policy files share: the same calls as policy.* services, made here."""
from __future__ import annotations

import os

from cloison.qrexec.policyd.policy_admin import INCLUDE, PolicyAdmin
from cloison.qrexec.policyd.policy_admin_main import policy_folders
from cloison.qrexec.policyd.policy_files import make_folders
from cloison.runtime.paths import Paths


class PolicyFile:
    """A policy file by the name that tools give it: `NAME` or `include/NAME`, with or without `.policy`."""

    def __init__(self, text: str, admin: PolicyAdmin) -> None:
        self._admin = admin
        self._include = text.startswith(f"{INCLUDE}/")
        self.name = text.removeprefix(f"{INCLUDE}/") if self._include else text.removesuffix(".policy")

    def get(self) -> tuple[bytes, bytes]:
        """Its token and content. Raises PolicyAdminFileNotFoundException, other PolicyAdminException."""
        token, _, content = self._call("Get", b"").partition(b"\n")
        return token, content

    def replace(self, token: bytes, content: bytes) -> None:
        """Raises PolicyAdminException."""
        self._call("Replace", token + b"\n" + content)

    def remove(self, token: bytes) -> None:
        """Raises PolicyAdminException."""
        self._call("Remove", token)

    def _call(self, what: str, payload: bytes) -> bytes:
        return self._admin.call(f"policy.{'include.' if self._include else ''}{what}", self.name, payload)


def administration() -> PolicyAdmin:
    """Of this installation's policy. Raises OSError."""
    paths = Paths.from_environment()
    where = policy_folders(paths, os.environ)
    make_folders(where)
    return PolicyAdmin(where)
