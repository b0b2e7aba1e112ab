"""What a qube may see of others through the Admin API: what policy allows it to ask, without asking a person.

`admin.vm.List` and `admin.Events` of a qube to dom0 are filtered qube by qube and event by event. No policy, a broken one, or
any doubt: it sees nothing. (Whether the call itself may be made is decided before it gets here, by policy as well.)
"""
from __future__ import annotations

import json
from collections.abc import Callable

from cloison.errors import CloisonError
from cloison.model.domains import Qube, System
from cloison.model.journal import Event
from cloison.policy.evaluate import Allow, Request, evaluate
from cloison.policy.facts import Facts, facts_from_system_info
from cloison.qrexec.policyd.policy_files import LivePolicy

HOST = "@adminvm"


class Visibility:
    """`facts_text` gives what `internal.GetSystemInfo` answers now."""

    def __init__(self, system: System, policy: LivePolicy, facts_text: Callable[[], str]) -> None:
        self._system, self._policy, self._facts_text = system, policy, facts_text
        self._text = ""
        self._facts = Facts({})

    def allows(self, source: Qube, method: str, target: str, argument: str = "") -> bool:
        if source is self._system.dom0:
            return True
        try:
            request = Request(method, f"+{argument}", source.name, target)
            return isinstance(evaluate(self._policy.rules(), self._current(), request), Allow)
        except CloisonError:
            return False

    def allows_event(self, source: Qube, event: Event) -> bool:
        """Asked of the qube the event is about: its subject, else the one it names, else the host."""
        if source is self._system.dom0:
            return True
        about = event.subject or dict(event.pairs).get("vm", HOST)
        return self.allows(source, "admin.Events", about, event.name.replace(":", "_"))

    def _current(self) -> Facts:
        text = self._facts_text()
        if text != self._text:
            self._facts, self._text = facts_from_system_info(json.loads(text)), text
        return self._facts

    def close(self) -> None:
        self._policy.close()
