"""Features: free texts attached to qubes, some of which mean something to the core. Rules: admin-api.md 2 and 11.2."""
from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Mapping

from cloison.errors import BadRequest, BadTag, BadValue, NotPermitted
from cloison.model import own_features

MAX_NAME = 256
MAX_FEATURES, MAX_BYTES, MAX_TAGS = 2048, 1 << 18, 512      # of one qube, as far as qubes may set them
MAX_DELAY = 86400           # seconds before a used disposable is replaced
PRELOAD_SERVICES = ("qubes.WaitForRunningSystem", "qubes.WaitForSession")
_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
TAG = re.compile(r"[A-Za-z0-9_-]{1,256}")
_PERSIST = re.compile(r"((file|dir):[A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+:[0-7]{1,4}:)?/[^\0]*")
PROHIBIT_START = "prohibit-start"                    # why a qube may not be started
RESERVED = frozenset(("deferred-netvm-original", "preload-dispvm", "preload-dispvm-completed", "preload-dispvm-in-progress"))


def check_quota(features: Mapping[str, str], tags: Collection[str]) -> None:
    """How much a qube may say of itself, or of another that policy lets it change. Raises NotPermitted.

    The host's own person is not bound by it, so a qube that fills its share keeps nobody from setting another feature.
    """
    if len(features) > MAX_FEATURES or sum(len(name) + len(value) for name, value in features.items()) > MAX_BYTES:
        raise NotPermitted(f"a qube may give no more than {MAX_FEATURES} features of {MAX_BYTES} bytes in all")
    if len(tags) > MAX_TAGS:
        raise NotPermitted(f"a qube may give no more than {MAX_TAGS} tags")


def unfinished(tool: str) -> str:
    """Why a qube may not be started that a tool has not finished making."""
    return f"{tool} has not finished making it; remove it with qvm-remove, and make it anew"


def check_name(untrusted: str) -> str:
    """Raises BadRequest."""
    if not _NAME.fullmatch(untrusted) or len(untrusted) > MAX_NAME:
        raise BadRequest(f"{untrusted[:60]!r} can't be a feature's name: use letters, digits, '_', '.', '-'")
    return untrusted


def check_value(untrusted: bytes) -> str:
    """Raises BadRequest for anything but printable ASCII."""
    if any(not 0x20 <= byte <= 0x7E for byte in untrusted):
        raise BadRequest("a feature's value may only hold printable ASCII")
    return untrusted.decode("ascii")


def check_tag(untrusted: str) -> str:
    """Raises BadTag."""
    if not TAG.fullmatch(untrusted):
        raise BadTag(f"{untrusted[:60]!r} is not a tag: use letters, digits, '_', '-'")
    return untrusted


def check_meaning(name: str, value: str) -> None:
    """What the core demands of the features it acts on. Raises BadValue."""
    own_features.check(name, value)
    prefix, dot, rest = name.partition(".")
    if dot and prefix == "service":
        if not rest or rest in (".", "..") or (len(rest) > 48 and not rest.startswith("app-dispvm.")):
            raise BadValue(f"service name {rest[:60]!r} must have 1 to 48 characters and be no folder")
    elif dot and prefix == "vm-config":
        if not rest[:1].isalpha() or len(rest) > 52:
            raise BadValue(f"vm-config name {rest[:60]!r} must begin with a letter and have at most 52 characters")
    elif dot and prefix == "custom-persist":
        if not 1 <= len(rest) <= 54 or not _PERSIST.fullmatch(value):
            raise BadValue("custom-persist takes a name of 1 to 54 characters and an absolute path, or "
                           "file|dir:<owner>:<group>:<mode>:<path>")


def check_preload(name: str, value: str, *, dom0: bool) -> None:
    """What is demanded of qubes that can have disposables, and of dom0, whose threshold is everybody's. Raises BadValue."""
    numbers = ("preload-dispvm-max", "preload-dispvm-threshold") if dom0 else ("preload-dispvm-max",)
    if name in numbers and value and not (value.isdecimal() and len(value) < 8):
        raise BadValue(f"feature {name} takes a number")
    if name == "preload-dispvm-delay" and value:
        try:
            seconds = float(value)
        except ValueError:
            raise BadValue(f"feature {name} takes a number of seconds") from None
        if not -MAX_DELAY <= seconds <= MAX_DELAY:      # also what is no number at all
            raise BadValue(f"feature {name} takes at most {MAX_DELAY} seconds")


def check_permitted(name: str) -> None:
    """Features that only the core itself may change. Raises NotPermitted."""
    if name in RESERVED:
        raise NotPermitted(f"feature {name} is kept by qubesd itself")


def qdb_entries(name: str, value: str | None) -> dict[str, str | None]:
    """What a running qube reads of this feature in its QubesDB, by path; None where there is nothing (any more)."""
    for prefix, path in (("vm-config.", "/vm-config/"), ("custom-persist.", "/persist/")):
        if name.startswith(prefix):
            return {path + name.removeprefix(prefix): value}
    service = name.removeprefix("service.")
    if service == name:
        return {}
    entries: dict[str, str | None] = {f"/qubes-service/{service}": None if value is None else "1" if value else "0"}
    application = service.removeprefix("app-dispvm.")
    if application != service:
        digest = base64.urlsafe_b64encode(hashlib.sha256(application.encode()).digest()).decode().rstrip("=")
        entries = {f"/hash-app-dispvm/{digest}": application if value else None}     # its own name may be too long for a path
    return entries
