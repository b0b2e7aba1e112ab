"""A small system and policies in memory, for the tests of policy."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloison.policy
from cloison.policy.evaluate import Request
from cloison.policy.facts import Facts, facts_from_system_info
from cloison.policy.memory import MappingReader
from cloison.policy.parse import Root, parse
from cloison.policy.rules import Rules

DEFAULT_FOLDER = Path(cloison.policy.__file__).parent / "default"


def reader(
    main: Mapping[str, str | bytes], runtime: Mapping[str, str] | None = None, legacy: Mapping[str, str] | None = None
) -> MappingReader:
    roots = {Root.MAIN: main, Root.RUNTIME: runtime or {}, Root.LEGACY: legacy or {}}
    return MappingReader({root: {path: _bytes(text) for path, text in files.items()} for root, files in roots.items()})


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def rules(text: str) -> Rules:
    return parse(reader({"a.policy": text}))


def default_files() -> dict[str, bytes]:
    files = (path for path in DEFAULT_FOLDER.rglob("*") if path.is_file())
    return {path.relative_to(DEFAULT_FOLDER).as_posix(): path.read_bytes() for path in files}


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """What GetSystemInfo says of one qube."""
    return {
        "type": "AppVM", "tags": [], "template_for_dispvms": False, "default_dispvm": "dvm", "power_state": "Running",
        "uuid": f"00000000-0000-0000-0000-{number:012}", "internal": None, "guivm": "dom0", "icon": "appvm-red",
        "label": "0xcc0000", "relayvm": None, "transport_rpc": None, **changes,
    }


def system_info() -> dict[str, Any]:
    return {"domains": {
        "dom0": entry(0, type="AdminVM", default_dispvm=None),
        "work": entry(1, tags=["blue"]),
        "vault": entry(2, power_state="Halted", default_dispvm=None),
        "dvm": entry(3, template_for_dispvms=True, tags=["blue"]),
        "other-dvm": entry(4, template_for_dispvms=True),
        "hidden": entry(5, internal="1"),
        "relay": entry(6),
        "far": entry(7, type="RemoteVM", relayvm="relay", transport_rpc="test.Transport"),
        "debian": entry(8, type="TemplateVM"),
    }}


def facts() -> Facts:
    return facts_from_system_info(system_info())


def request(target: str, source: str = "work", argument: str = "+", requested_source: str = "", service: str = "s") -> Request:
    return Request(service, argument, source, target, requested_source)
