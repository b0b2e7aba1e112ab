"""One rule, its action, and the ordered set of all rules with its index by service."""
from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cloison.policy.tokens import Token


class Verb(enum.StrEnum):
    """What a rule does."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


class Action(NamedTuple):
    """A verb with its parameters. `user` None or empty: the called qube's default user."""

    verb: Verb
    notify: bool
    autostart: bool = True
    user: str | None = None
    target: str | None = None
    default_target: str | None = None


class Rule(NamedTuple):
    """`service` and `argument` may be `*`; an argument begins with `+`. `line` is None for rules that no line holds."""

    service: str
    argument: str
    source: Token
    target: Token
    action: Action
    file: str
    line: int | None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def __str__(self) -> str:
        """As a line of a policy file."""
        action = self.action
        words = [self.service, self.argument, self.source.text, self.target.text, action.verb.value]
        texts = {"target": action.target, "default_target": action.default_target, "user": action.user}
        words += [f"{key}={value}" for key, value in texts.items() if value is not None]
        if not action.autostart:
            words.append("autostart=no")
        if action.notify != (action.verb is Verb.DENY):
            words.append(f"notify={'yes' if action.notify else 'no'}")
        return " ".join(words)


class Rules:
    """All rules in order. Never changes: a reload makes another."""

    __slots__ = ("_any_service", "_by_service", "all")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.all = tuple(rules)
        self._by_service: dict[str, list[Rule]] = {}
        self._any_service: list[Rule] = []
        for rule in self.all:
            if rule.service == "*":
                self._any_service.append(rule)
                for own in self._by_service.values():
                    own.append(rule)
            else:
                self._by_service.setdefault(rule.service, [*self._any_service]).append(rule)

    def for_service(self, service: str) -> Sequence[Rule]:
        """The rules that may apply to calls of the service, in order; those for every service included."""
        return self._by_service.get(service, self._any_service)
