"""Which Debian a template is: by its name, by what was asked for, or by what it is already. They must agree; nothing is guessed."""
from __future__ import annotations

import re

from cloison.values import InvalidValue

USUAL = "debian-13"                      # the template of a new installation
RELEASES = {"12": "bookworm", "13": "trixie", "14": "forky"}     # older ones have no Python for the agent
_ROLLING = ("testing", "sid", "unstable")
_NAMED = {suite: suite for suite in (*RELEASES.values(), *_ROLLING)}
_NAME = re.compile(r"(?:(debian)-?)?([a-z]+|[0-9]+)(?:-.*)?")


class WhichDebian(InvalidValue):
    """A template's name and what was asked for name no Debian release, or two."""


def of_name(name: str) -> str | None:
    """`debian-13`, `debian-13-dev`, `trixie`, `debian-trixie-x`: trixie. None if the name says nothing."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return _NAMED.get(match[2]) or (RELEASES.get(match[2]) if match[1] else None)


def of_option(text: str) -> str:
    """`trixie`, `13` and `debian-13` are the same; another word is taken for a suite of the archive's."""
    return of_name(text) or RELEASES.get(text) or text


def chosen(name: str, option: str | None, version: str = "") -> str:
    """The suite. `version`: what the template of that name is now, if there is one, as os-release has it. Raises WhichDebian."""
    said, asked = of_name(name), option and of_option(option)
    if said and asked and said != asked:
        raise WhichDebian(f"the name {name} says {said}, and --suite says {asked}: choose another name, or leave --suite out")
    suite = asked or said or RELEASES.get(version)
    if suite is None:
        raise WhichDebian(f"which Debian is {name} to be? Add --suite trixie, or name it after a release, as {USUAL} is")
    return suite


def described(suite: str) -> str:
    """`Debian 13 (trixie)`."""
    number = next((number for number, each in RELEASES.items() if each == suite), None)
    return f"Debian {number} ({suite})" if number else f"Debian's {suite}"
