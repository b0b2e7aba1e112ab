"""Making qubes: a new one, or one like another (reference/admin-api.md 5.4). The Admin API has no call for a clone.

A clone that fails half way is removed again. If this process dies half way, a halted qube of the new name is left, which
qvm-remove removes.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Container
from typing import NamedTuple

from cloison.client.connection import Connection
from cloison.client.domains import DOM0, features, get_properties, lines, tags, volume_info, volumes
from cloison.errors import BadValue, CloisonError, PeerError
from cloison.values import QubeName

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_OWN = ("name", "qid", "uuid", "template", "label", "installed_by_rpm")   # never copied

Complain = Callable[[CloisonError], None]


class Creation(NamedTuple):
    """A qube to make. `pools`: volume -> pool; `pool`: for all volumes; empty text means the default."""

    name: str
    klass: str
    label: str
    template: str = ""
    pool: str = ""
    pools: dict[str, str] = {}


def create(connection: Connection, wanted: Creation) -> None:
    """Raises InvalidValue or BadValue, before anything is sent, for words that could be read as something else."""
    QubeName(wanted.name)
    if wanted.template:
        QubeName(wanted.template)
    for what, word in [("class", wanted.klass), ("label", wanted.label), *wanted.pools.items()]:
        _check(what, word)
        _check("volume", what)
    payload = f"name={wanted.name} label={wanted.label}"
    method = "admin.vm.CreateInPool" if wanted.pool or wanted.pools else "admin.vm.Create"
    if wanted.pool:
        payload += f" pool={_check('pool', wanted.pool)}"
    payload += "".join(f" pool:{volume}={pool}" for volume, pool in sorted(wanted.pools.items()))
    connection.call(DOM0, f"{method}.{wanted.klass}", wanted.template, payload.encode())


def _check(what: str, word: str) -> str:
    if not _WORD.fullmatch(word):
        raise BadValue(f"{what} {word[:60]!r} may only hold letters, digits, '_', '.', '-'")
    return word


def clone(
    connection: Connection, source: str, wanted: Creation, *,
    skip_volumes: Container[str] = (), complain: Complain | None = None,
) -> None:
    """Make `wanted` with the settings and the kept volumes of `source`.

    `complain` is told what could not be copied, and the clone goes on; without it such a failure undoes the clone.
    """
    create(connection, wanted)
    try:
        _copy_settings(connection, source, wanted.name, complain or _raise)
        _copy_volumes(connection, source, wanted.name, skip_volumes)
    except BaseException:
        connection.call(wanted.name, "admin.vm.Remove")
        raise


def _raise(error: CloisonError) -> None:
    raise error


def _copy_settings(connection: Connection, source: str, target: str, complain: Complain) -> None:
    calls: list[tuple[str, str, str]] = []
    for name, prop in get_properties(connection, source).items():
        if name not in _OWN and not prop.default:
            calls.append(("admin.vm.property.Set", name, prop.value))
    calls += [("admin.vm.tag.Set", tag, "") for tag in tags(connection, source) if not tag.startswith("created-by-")]
    for name, value in features(connection, source).items():
        if not name.startswith("preload-dispvm") or name == "preload-dispvm-max":
            calls.append(("admin.vm.feature.Set", name, value))
    for kind in ("notes", "firewall"):
        try:
            if text := connection.call(source, f"admin.vm.{kind}.Get").decode():
                calls.append((f"admin.vm.{kind}.Set", "", text))
        except CloisonError as error:
            complain(error)
    for method, argument, value in calls:
        try:
            connection.call(target, method, argument, value.encode())
        except CloisonError as error:
            complain(error)


def _copy_volumes(connection: Connection, source: str, target: str, skip: Container[str]) -> None:
    own = volumes(connection, target)
    for volume in volumes(connection, source):
        if volume in own and volume not in skip and volume_info(connection, target, volume).get("save_on_stop") == "True":
            clone_volume(connection, (source, volume), (target, volume))


def clone_volume(connection: Connection, source: tuple[str, str], target: tuple[str, str]) -> None:
    """Content of one volume (qube, volume) replaces that of another."""
    token = lines(connection.call(source[0], "admin.vm.volume.CloneFrom", source[1]))
    if len(token) != 1:
        raise PeerError("not a clone token")
    connection.call(target[0], "admin.vm.volume.CloneTo", target[1], token[0].encode())
