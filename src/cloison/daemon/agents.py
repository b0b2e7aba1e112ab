"""Which templates hold another agent than the one that this Cloison ships, and what renews them.

Whoever builds a template records the digest of the agent in it as a feature. Only Debian templates that have an agent are looked
at, so another system is never told to be renewed. The digest of what is shipped here is taken once, off the event loop.
"""
from __future__ import annotations

import asyncio

from cloison.model.domains import Qube, System
from cloison.model.own_features import AGENT
from cloison.templates import agent_package


class Agents:
    """`current`: the digest, once it is known; empty where it can't be had: then nothing is said."""

    def __init__(self) -> None:
        self.current: str | None = None

    async def older(self, system: System) -> dict[str, str]:
        """By name of a template, and of a qube that runs from one: a sentence for the person."""
        if self.current is None:
            self.current = await asyncio.to_thread(_digest)
        if not self.current:
            return {}
        found = {qube.name: sentence(qube) for qube in system.sorted_qubes() if is_older(qube, self.current)}
        for qube in system.sorted_qubes():
            if not qube.is_halted and (name := next((each.name for each in qube.templates() if each.name in found), None)):
                found[qube.name] = found[name]
        return found


def is_older(qube: Qube, current: str) -> bool:
    ours = qube.features.get("os-distribution") == "debian" and "qubes-agent-version" in qube.features
    return qube.klass == "TemplateVM" and ours and qube.features.get(AGENT) != current


def sentence(template: Qube) -> str:
    return f"template {template.name} has the agent of an older Cloison; to renew it: cloison template build {template.name}"


def _digest() -> str:
    try:
        return agent_package.digest()
    except OSError:
        return ""
