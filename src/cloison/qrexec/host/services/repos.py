"""qubes.repos.List, .Enable and .Disable: the package repositories of the host.

Where there is a file `config/repositories`, those it names: a line is `ID enabled|disabled NAME`, and a program of the
administrator's makes the host follow it. Otherwise those of the host's package manager, which are only shown.
"""
from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cloison.errors import CloisonError
from cloison.qrexec.host.services import host_repos
from cloison.runtime.files import write_atomic
from cloison.runtime.paths import Paths

FILE = "repositories"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STATES = ("enabled", "disabled")


class BadRepository(CloisonError):
    """No such repository, or a line that describes none."""


class Repository(NamedTuple):
    id: str
    state: str
    name: str


def main(argv: Sequence[str]) -> int:
    """The service that `argv[0]` names; Enable and Disable have an id as argument."""
    service = os.path.basename(argv[0])
    path = os.path.join(Paths.from_environment(os.environ).config, FILE)
    try:
        if service == "qubes.repos.List":
            sys.stdout.write("\n".join("\0".join((one.id, one.name, one.state)) for one in load(path)))
        else:
            switch(path, argv[1] if len(argv) > 1 else "", "enabled" if service == "qubes.repos.Enable" else "disabled")
            sys.stdout.write("ok\n")
        sys.stdout.flush()
        return 0
    except (CloisonError, OSError) as error:
        print(f"{service}: {error}", file=sys.stderr)
        return 1


def load(path: str) -> list[Repository]:
    """The host's own if there is no such file. Raises BadRepository."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return [Repository(*one) for one in host_repos.listed()]
    found = []
    for line in lines:
        words = line.split(None, 2)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3 or not _ID.fullmatch(words[0]) or words[1] not in _STATES or not words[2].isprintable():
            raise BadRepository(f"{path}: {line[:60]!r} is not: ID enabled|disabled NAME")
        found.append(Repository(*words))
    return found


def switch(path: str, untrusted_id: str, state: str) -> None:
    """Raises BadRepository for an id that is not listed."""
    all_of_them = load(path)
    if untrusted_id not in [one.id for one in all_of_them]:
        raise BadRepository("no such repository")
    if not os.path.exists(path):
        raise BadRepository("the host's own package manager has its repositories; they can't be switched from here")
    changed = [one._replace(state=state) if one.id == untrusted_id else one for one in all_of_them]
    write_atomic(path, "".join(f"{one.id} {one.state} {one.name}\n" for one in changed).encode())
