"""Making qubes: a new one, or one like another (reference/admin-api.md 5.4). The Admin API has no call for a clone.

A qube that takes more than one call to make is marked from its birth (`unfinished=`, which becomes feature prohibit-start), and
the mark goes last. So if this process dies half way, what is left never starts, and qvm-remove removes it. What fails half way is
removed at once. Settings that restrict are made first.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cloison.client.connection import Connection
from cloison.client.domains import DOM0, feature, features, get_properties, lines, tags, volume_info, volumes
from cloison.client.failures import qube_name
from cloison.errors import BadRequest, BadValue, CloisonError, PeerError

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_OWN = ("name", "qid", "uuid", "dispid", "template", "label", "installed_by_rpm")   # never copied
_FIRST = ("netvm", "default_dispvm")            # these say where it may connect to
_MARK = "prohibit-start"

Complain = Callable[[CloisonError], None]


class Creation(NamedTuple):
    """A qube to make. `pools`: volume -> pool; `pool`: for all volumes; empty text means the default."""

    name: str
    klass: str
    label: str
    template: str = ""
    pool: str = ""
    pools: dict[str, str] = {}


def create(connection: Connection, wanted: Creation, *, unfinished: str = "") -> None:
    """Raises BadValue, before anything is sent, for words that could be read as something else.

    `unfinished`: the name of the tool that has more to do; until it takes the mark away the qube does not start.
    """
    qube_name(wanted.name)
    if wanted.template:
        qube_name(wanted.template)
    for what, word in [("class", wanted.klass), ("label", wanted.label), *wanted.pools.items()]:
        _check(what, word)
        _check("volume", what)
    payload = f"name={wanted.name} label={wanted.label}"
    method = "admin.vm.CreateInPool" if wanted.pool or wanted.pools else "admin.vm.Create"
    if wanted.pool:
        payload += f" pool={_check('pool', wanted.pool)}"
    payload += "".join(f" pool:{volume}={pool}" for volume, pool in sorted(wanted.pools.items()))
    if unfinished:
        payload += f" unfinished={_check('tool', unfinished)}"
    connection.call(DOM0, f"{method}.{wanted.klass}", wanted.template, payload.encode())


def _check(what: str, word: str) -> str:
    if not _WORD.fullmatch(word):
        raise BadValue(f"{what} {word[:60]!r} may only hold letters, digits, '_', '.', '-'")
    return word


class Making:
    """A qube in the making. `mark`: why it may not be started when it is made, as its source says; empty: it may."""

    mark = ""


@contextmanager
def making(connection: Connection, wanted: Creation, tool: str) -> Iterator[Making]:
    """A new qube, for the block to finish: then it may start. A block that fails leaves nothing. Raises as `create` does."""
    try:
        create(connection, wanted, unfinished=tool)
    except BadRequest:                  # a qubesd that does not know the mark, or something else is wrong: it says so again
        create(connection, wanted)
        connection.call(wanted.name, "admin.vm.feature.Set", _MARK, f"{tool} has not finished making it".encode())
    try:
        made = Making()
        yield made
        if made.mark:
            connection.call(wanted.name, "admin.vm.feature.Set", _MARK, made.mark.encode())
        else:
            connection.call(wanted.name, "admin.vm.feature.Remove", _MARK)
    except BaseException as error:
        _unmake(connection, wanted.name, error)
        raise


def _unmake(connection: Connection, name: str, error: BaseException) -> None:
    """Raises CloisonError that says both if it can't be removed."""
    try:
        connection.call(name, "admin.vm.Remove")
    except CloisonError as left:
        raise CloisonError(f"{error or 'given up'}; and {name} could not be removed again: {left}. It does not start; "
                           f"qvm-remove removes it") from error


def clone(
    connection: Connection, source: str, wanted: Creation, *,
    skip_volumes: Container[str] = (), complain: Complain | None = None, tool: str = "qvm-clone",
) -> None:
    """Make `wanted` with the settings and the kept volumes of `source`.

    `complain` is told what could not be copied, and the clone goes on; without it such a failure undoes the clone.
    """
    with making(connection, wanted, tool) as made:
        made.mark = copy(connection, source, wanted.name, skip_volumes=skip_volumes, complain=complain)


def copy(
    connection: Connection, source: str, target: str, *, skip_volumes: Container[str] = (), complain: Complain | None = None,
) -> str:
    """All that `clone` copies, to a qube in the making; its source's mark."""
    settings = _settings(connection, source, complain or _raise)
    for method, argument, value in settings:
        try:
            connection.call(target, method, argument, value.encode())
        except CloisonError as error:
            (complain or _raise)(error)
    _copy_volumes(connection, source, target, skip_volumes)
    return feature(connection, source, _MARK) or ""


def _raise(error: CloisonError) -> None:
    raise error


def _settings(connection: Connection, source: str, complain: Complain) -> list[tuple[str, str, str]]:
    """The calls that make another qube like it, those first that restrict it."""
    texts = []
    for kind in ("firewall", "notes"):
        try:
            if text := connection.call(source, f"admin.vm.{kind}.Get").decode():
                texts.append((f"admin.vm.{kind}.Set", "", text))
        except CloisonError as error:
            complain(error)
    properties = {name: prop for name, prop in get_properties(connection, source).items() if name not in _OWN and not prop.default}
    order = sorted(properties, key=lambda name: name not in _FIRST)
    calls = [*texts[:1], *(("admin.vm.property.Set", name, properties[name].value) for name in order), *texts[1:]]
    calls += [("admin.vm.tag.Set", tag, "") for tag in tags(connection, source) if not tag.startswith("created-by-")]
    for name, value in features(connection, source).items():
        if name != _MARK and (not name.startswith("preload-dispvm") or name == "preload-dispvm-max"):
            calls.append(("admin.vm.feature.Set", name, value))
    return calls


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
