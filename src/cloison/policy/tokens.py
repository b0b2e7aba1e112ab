"""Who may stand where in a rule, what each word matches, and what it stands for (reference/qrexec.md 12.3, 13.2, 13.5).

A token is made from the text of a rule; an `Endpoint` is one end of an actual call, looked up in the facts once.
"""
from __future__ import annotations

import enum

from cloison.policy.facts import HOST, HOST_SPELLINGS, Facts

ADMINVM = "@adminvm"
DEFAULT = "@default"
DISPVM = "@dispvm"
DISPVM_OF = "@dispvm:"


class TokenError(ValueError):
    """A word that has no meaning, or none in this column. `kind` is `token` or `token-empty`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Unresolvable(Exception):
    """Whether a rule holds can't be told: the call is denied. `why` is a word for programs, the text for people."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


class Column(enum.Flag):
    """Places where a token may stand."""

    SOURCE = enum.auto()
    TARGET = enum.auto()
    REDIRECT = enum.auto()      # target= and default_target=
    REQUEST = enum.auto()       # what a caller asks for


class Endpoint:
    """One end of a call. `template` is set for `@dispvm:X`; `caller` is the other end, for a target."""

    __slots__ = ("caller", "facts", "is_host", "qube", "spellings", "template", "text")

    def __init__(self, text: str, facts: Facts, caller: Endpoint | None = None) -> None:
        self.text = text
        self.facts = facts
        self.caller = caller
        self.is_host = text in HOST_SPELLINGS
        self.qube = facts.qubes.get(text)
        self.spellings = (text,) if self.qube is None else (self.qube.name, self.qube.alias)
        self.template = facts.template(text[len(DISPVM_OF):]) if text.startswith(DISPVM_OF) else None

    def default_dispvm(self) -> str | None:
        """Name of the disposable template of this qube's own choice; what doesn't exist has none."""
        return None if self.qube is None else self.qube.default_dispvm


class Token:
    """A word of a rule. The base class is a qube's name or `uuid:` alias, taken literally."""

    __slots__ = ("text", "value")

    def __init__(self, text: str, value: str = "") -> None:
        self.text = text
        self.value = value

    def matches(self, end: Endpoint) -> bool:
        """Raises Unresolvable where it depends on a default disposable template that is missing or does not exist."""
        return self.text in end.spellings

    def expand(self, facts: Facts) -> frozenset[str]:
        """The targets it stands for, as a person may choose them; `@dispvm` and `@adminvm` are left to the caller."""
        qube = facts.qubes.get(self.text)
        return frozenset() if qube is None else frozenset({qube.name})


class Anything(Token):
    """`*`"""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        return True

    def expand(self, facts: Facts) -> frozenset[str]:
        return facts.names | facts.disposables | {DISPVM}


class AnyQube(Token):
    """`@anyvm`: all but the host."""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        return not end.is_host

    def expand(self, facts: Facts) -> frozenset[str]:
        return facts.names - {HOST} | facts.disposables | {DISPVM}


class Host(Token):
    """`@adminvm`, `dom0`, the zero uuid: three spellings of one thing."""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        return end.is_host

    def expand(self, facts: Facts) -> frozenset[str]:
        return frozenset({ADMINVM if self.text == ADMINVM else HOST})


class Default(Token):
    """`@default`: the caller named no target, or one that doesn't exist."""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        return end.text == DEFAULT

    def expand(self, facts: Facts) -> frozenset[str]:
        return frozenset()


class Disposable(Token):
    """`@dispvm`: a disposable of the caller's own default template."""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        return end.text == DISPVM

    def expand(self, facts: Facts) -> frozenset[str]:
        return frozenset({DISPVM})


class DisposableOf(Token):
    """`@dispvm:NAME`"""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        if end.template is not None:
            return self.value in (end.template.name, end.template.alias)
        if end.text != DISPVM or end.caller is None:
            return False
        default = end.caller.default_dispvm()
        if default is None:
            raise Unresolvable("no-default-dispvm", f"{end.caller.text} has no default disposable template")
        return self.value == default

    def expand(self, facts: Facts) -> frozenset[str]:
        qube = facts.qubes.get(self.value)
        if qube is None:
            raise Unresolvable("unknown-template", f"{self.value} does not exist")
        return frozenset({f"{DISPVM_OF}{qube.name}"}) if qube.template_for_dispvms else frozenset()


class DisposableTagged(Token):
    """`@dispvm:@tag:TAG`: a disposable of a template with that tag."""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        template = end.template
        if end.text == DISPVM and end.caller is not None:
            default = end.caller.default_dispvm()
            if default is not None and default not in end.facts.qubes:
                raise Unresolvable("unknown-template", f"{default}, of which {end.caller.text} has disposables, does not exist")
            template = None if default is None else end.facts.template(default)
        return template is not None and self.value in template.tags

    def expand(self, facts: Facts) -> frozenset[str]:
        return frozenset(each for each in facts.disposables if self.value in facts.qubes[each[len(DISPVM_OF):]].tags)


class Tagged(Token):
    """`@tag:TAG`"""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        return end.qube is not None and self.value in end.qube.tags

    def expand(self, facts: Facts) -> frozenset[str]:
        return frozenset(name for name in facts.names if self.value in facts.qubes[name].tags)


class OfClass(Token):
    """`@type:CLASS`"""

    __slots__ = ()

    def matches(self, end: Endpoint) -> bool:
        return end.qube is not None and self.value == end.qube.klass

    def expand(self, facts: Facts) -> frozenset[str]:
        return frozenset(name for name in facts.names if self.value == facts.qubes[name].klass)


_RULE = Column.SOURCE | Column.TARGET
_EVERYWHERE = _RULE | Column.REDIRECT | Column.REQUEST
_WORDS: dict[str, tuple[type[Token], Column]] = {
    "*": (Anything, _RULE),
    "@anyvm": (AnyQube, _RULE),
    DEFAULT: (Default, Column.TARGET | Column.REQUEST),
    DISPVM: (Disposable, Column.TARGET | Column.REDIRECT | Column.REQUEST),
}
_PREFIXES: tuple[tuple[str, type[Token], Column], ...] = (      # the longer one of two that begin alike comes first
    ("@dispvm:@tag:", DisposableTagged, _RULE),
    (DISPVM_OF, DisposableOf, _EVERYWHERE),
    ("@tag:", Tagged, _RULE),
    ("@type:", OfClass, _RULE),
)


def parse_token(text: str, column: Column) -> Token:
    """Raises TokenError."""
    if text in HOST_SPELLINGS:
        return Host(text)
    if text in _WORDS:
        kind, columns = _WORDS[text]
        return _placed(kind(text), columns, column)
    if not text:
        raise TokenError("token-empty", "a qube or a word for qubes is missing")
    if not text.startswith("@"):
        return Token(text)
    for prefix, kind, columns in _PREFIXES:
        if text.startswith(prefix):
            value = text[len(prefix):]
            if not value:
                raise TokenError("token-empty", f"{text!r} lacks what comes after the colon")
            if value.startswith("@"):
                break
            return _placed(kind(text, value), columns, column)
    raise TokenError("token", f"{text!r} has no meaning")


def _placed(token: Token, allowed: Column, column: Column) -> Token:
    if column not in allowed:
        raise TokenError("token", f"{token.text!r} can't stand here")
    return token
