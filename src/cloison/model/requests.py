"""What a qube says of itself in qubes.FeaturesRequest, and how much of it is believed (reference/admin-api.md 11.5).

Only a qube with a system of its own is believed; one made from a template may only tell which services it has. Values have
passed `check`; what is not understood is left out, and a request never clears what it does not mention.
"""
from __future__ import annotations

import datetime
import re
from collections.abc import Mapping

from cloison.errors import BadRequest
from cloison.model.domains import Qube
from cloison.model.features import MAX_NAME, check_name

MAX_REQUESTED = 1024
MAX_BOOT_MODES = 64
_SAFE = re.compile(r"[A-Za-z0-9.,_= -]*")
_SAFE_TOOLS = re.compile(r"[A-Za-z0-9]*")
_OS_VERSION = re.compile(r"[0-9][0-9.-]*")
_AGENT_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ONCE = ("qrexec", "gui", "gui-emulated")           # believed only while nobody has said otherwise
_ALWAYS = ("qubes-firewall", "vmexec")
_MODE_KINDS = ("kernelopts", "name", "default-user")
TOOLS = ("qrexec", "gui", "gui-emulated", "default-user", "os")


def check(untrusted: Mapping[str, bytes], *, tools: bool = False) -> dict[str, str]:
    """Names and values of the safe characters. Raises BadRequest."""
    safe = _SAFE_TOOLS if tools else _SAFE
    if len(untrusted) > MAX_REQUESTED:
        raise BadRequest(f"more than {MAX_REQUESTED} features are requested")
    checked = {}
    for name, untrusted_value in untrusted.items():
        value = untrusted_value.decode("ascii", "replace")
        if not safe.fullmatch(value) or len(name) > MAX_NAME:
            raise BadRequest("a requested feature holds characters outside of the safe set, or is too long")
        checked[name] = value
    return checked


def apply(qube: Qube, requested: Mapping[str, str]) -> None:
    """Set the features that are believed; the journal has the changes."""
    qube.journal.emit(qube.name, "features-request", untrusted_features=dict(requested))
    if qube.template is None:
        had_qrexec = bool(qube.features.get("qrexec"))
        _operating_system(qube, requested)
        _switches(qube, requested)
        _boot_modes(qube, requested)
        _replace(qube, requested, "supported-service.")
        _replace(qube, requested, "supported-feature.")
        _windows(qube, requested)
        if not had_qrexec and qube.features.get("qrexec"):
            qube.journal.emit(qube.name, "template-postinstall")
    _replace(qube, requested, "supported-rpc.")


def _put(qube: Qube, name: str, value: str) -> None:
    if qube.features.get(name) != value:
        qube.set_feature(name, value)


def _operating_system(qube: Qube, requested: Mapping[str, str]) -> None:
    for name in ("os-distribution", "os-distribution-like"):
        if requested.get(name):
            _put(qube, name, requested[name])
    if _OS_VERSION.fullmatch(requested.get("os-version", "")):
        _put(qube, "os-version", requested["os-version"])
    if _is_date(requested.get("os-eol", "")):
        _put(qube, "os-eol", requested["os-eol"])
    if _AGENT_VERSION.fullmatch(requested.get("qubes-agent-version", "")):
        _put(qube, "qubes-agent-version", requested["qubes-agent-version"])
    if requested.get("os") in ("Linux", "Windows"):
        _put(qube, "os", requested["os"])


def _is_date(text: str) -> bool:
    try:
        return bool(_DATE.fullmatch(text)) and bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _switches(qube: Qube, requested: Mapping[str, str]) -> None:
    for name in (*_ONCE, *_ALWAYS):
        if requested.get(name) in ("0", "1") and (name in _ALWAYS or name not in qube.features):
            _put(qube, name, "1" if requested[name] == "1" else "")
    if requested.get("anon-timezone") == "1":           # may be switched on, never off
        _put(qube, "anon-timezone", "1")


def _boot_modes(qube: Qube, requested: Mapping[str, str]) -> None:
    """The advertised set replaces the old one if it is whole: names unique, each with its kernel options."""
    offered = {}
    for name, value in requested.items():
        prefix, _, rest = name.partition("boot-mode.")
        kind, _, mode = rest.partition(".")
        if prefix or kind not in _MODE_KINDS or not mode or "." in mode:
            continue
        known = f"boot-mode.kernelopts.{mode}" in requested
        if (known and mode != "default") or (mode == "default" and kind == "name"):
            offered[name] = value
    names = [value for name, value in offered.items() if name.startswith("boot-mode.name.")]
    if offered and len(offered) <= MAX_BOOT_MODES and len(set(names)) == len(names):
        for name in [name for name in qube.features if name.startswith(tuple(f"boot-mode.{kind}." for kind in _MODE_KINDS))]:
            if name not in offered:
                qube.remove_feature(name)
        for name, value in offered.items():
            _put(qube, check_name(name), value)
    for name in ("boot-mode.active", "boot-mode.appvm-default", "boot-mode.standalone-default"):
        mode = requested.get(name, "")
        if mode and (mode == "default" or f"boot-mode.kernelopts.{mode}" in qube.features):
            _put(qube, name, mode)


def _replace(qube: Qube, requested: Mapping[str, str], prefix: str) -> None:
    """Advertised services: the request's set takes the place of the old one, unless it is empty."""
    new = [name for name, value in requested.items() if name.startswith(prefix) and value == "1"]
    old = [name for name, value in qube.features.items() if name.startswith(prefix) and value]
    if not new:
        return
    for name in new:
        if name not in old:
            qube.set_feature(check_name(name), "1")
    for name in old:
        if name not in new:
            qube.remove_feature(name)
    if prefix == "supported-service.":
        _apparmor(qube, "supported-service.apparmor" in old, "supported-service.apparmor" in new)


def _apparmor(qube: Qube, before: bool, now: bool) -> None:
    """Used where it is offered, unless somebody has decided otherwise."""
    if now and not before and "apparmor" not in qube.features:
        qube.set_feature("apparmor", "1")
    elif before and not now and qube.features.get("apparmor") == "1":
        qube.remove_feature("apparmor")


def _windows(qube: Qube, requested: Mapping[str, str]) -> None:
    if requested.get("os") != "Windows" or requested.get("qrexec") != "1":
        return
    _put(qube, "rpc-clipboard", "1")
    qube.set("maxmem", 0)
    qube.set("qrexec_timeout", 6000)
    unset = {"stubdom-qrexec": "1", "audio-model": "ich6", "timezone": "localtime", "no-monitor-layout": "1"}
    for name, value in unset.items():
        if qube.feature_or_none(name, template=True) is None:
            qube.set_feature(name, value)
