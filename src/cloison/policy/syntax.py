"""One line of a policy file -> a rule, or a directive and its words (reference/qrexec.md 12, 14)."""
from __future__ import annotations

import re
from typing import NamedTuple

from cloison.policy.rules import Action, Rule, Verb
from cloison.policy.tokens import DEFAULT, Column, Token, TokenError, parse_token

LEGACY_DIRECTIVE = "!compat-4.0"

_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_ARGUMENT = re.compile(r"[A-Za-z0-9+._-]*")
_DIRECTIVES = {"!include": 1, "!include-dir": 1, "!include-service": 3, LEGACY_DIRECTIVE: 0}    # with how many words
_SERVICE_DIRECTIVES = {"!include": 1}
_PARAMETERS = {
    Verb.ALLOW: frozenset({"target", "user", "notify", "autostart"}),
    Verb.ASK: frozenset({"target", "default_target", "user", "notify", "autostart"}),
    Verb.DENY: frozenset({"notify"}),
}


class Fault(Exception):
    """A PolicySyntaxError that doesn't know its place yet."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Service(NamedTuple):
    """What a file in service format is read for."""

    name: str
    argument: str


def parse_directive(line: str, service: Service | None) -> tuple[str, list[str]]:
    """Its name and its words, as many as it takes. Raises Fault."""
    name, *words = line.split()
    counts = _DIRECTIVES if service is None else _SERVICE_DIRECTIVES
    if name not in counts:
        raise Fault("directive", f"there is no directive {name!r} in a file of this kind")
    if len(words) != counts[name]:
        raise Fault("directive-params", f"{name} takes {counts[name]} parameters, not {len(words)}")
    if name == "!include-service":
        _check_service(*words[:2])
    return name, words


def parse_rule_line(line: str, service: Service | None, file: str, number: int | None) -> Rule:
    """A line that is a rule, and where it stands. Raises Fault."""
    words = line.split()
    if service is not None:
        words[:0] = service
    if len(words) < 5:
        raise Fault("field-count", "a rule has at least the fields service, argument, source, target, action"
                     if service is None else "a rule has at least the fields source, target, action")
    name, argument, source, target, verb, *parameters = words
    if service is None:
        _check_service(name, argument)
    columns = _token(source, Column.SOURCE), _token(target, Column.TARGET)
    action = parse_action(verb, parameters)
    if action.verb is Verb.ALLOW and target == DEFAULT and action.target is None:
        raise Fault("allow-default-needs-target", f"allow for {DEFAULT} needs target=, or there is nothing to call")
    return Rule(name, argument, *columns, action, file, number)


def _check_service(name: str, argument: str) -> None:
    if name != "*" and not _SERVICE.fullmatch(name):
        raise Fault("service-chars", f"the service {name!r} may only hold letters, digits, '-', '.', '_'")
    if argument == "*":
        return
    if not _ARGUMENT.fullmatch(argument):
        raise Fault("argument-chars", f"the argument {argument!r} may only hold letters, digits, '+', '-', '.', '_'")
    if not argument.startswith("+"):
        raise Fault("argument-plus", f"the argument {argument!r} must be '*' or begin with '+'")
    if name == "*":
        raise Fault("wildcard-service-arg", "a rule for every service must be for every argument too")


def _token(text: str, column: Column) -> Token:
    try:
        return parse_token(text, column)
    except TokenError as error:
        raise Fault(error.kind, str(error)) from None


def parse_action(verb: str, words: list[str]) -> Action:
    """What a rule does, from its fields after the target. Raises Fault."""
    try:
        kind = Verb(verb)
    except ValueError:
        raise Fault("action", f"the action must be allow, ask or deny, not {verb!r}") from None
    values = _parameters(words)
    notify = _yes("notify", values.get("notify", "yes" if kind is Verb.DENY else "no"))
    autostart = _yes("autostart", values.get("autostart", "yes"))
    for key in values:
        if key not in _PARAMETERS[kind]:
            raise Fault("param-unknown", f"{kind} has no parameter {key!r}")
    return Action(
        verb=kind,
        notify=notify,
        autostart=autostart,
        user=values.get("user"),
        target=_redirect(values.get("target")),
        default_target=_redirect(values.get("default_target")),
    )


def _parameters(words: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise Fault("param-syntax", f"{word!r} is not of the form name=value")
        if key in values:
            raise Fault("param-duplicate", f"{key} is given twice")
        values[key] = value
    return values


def _yes(key: str, value: str) -> bool:
    if value not in ("yes", "no"):
        raise Fault("param-bool", f"{key} must be yes or no, not {value!r}")
    return value == "yes"


def _redirect(text: str | None) -> str | None:
    return None if text is None else _token(text, Column.REDIRECT).text


def modernised(line: str) -> str:
    """A line of the format of Qubes OS 4.0 in today's."""
    return line.replace("$include:", "!include ").replace("$", "@").replace(",", " ")
