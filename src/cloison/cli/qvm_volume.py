"""qvm-volume: the disks of qubes, their revisions, sizes and content."""
from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from cloison.begin import FAILED
from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import DOM0, key_values, lines, list_qubes, volume_info, volumes
from cloison.client.importing import import_volume
from cloison.errors import CloisonError, NoSuchProperty, QubeNotFound, StorageError
from cloison.values import QubeName

PROG = "qvm-volume"
SHOWN = ("pool", "vid", "rw", "source", "save_on_stop", "snap_on_start", "size", "usage", "revisions_to_keep", "ephemeral")
SETTABLE = ("rw", "revisions_to_keep", "ephemeral")
_HEADER = ("POOL:VOLUME", "VMNAME", "VOLUME_NAME", "REVERT_POSSIBLE")
_UNITS: dict[str, int] = {"": 1} | {
    f"{letter}{rest}": base**power
    for power, letter in enumerate("KMG", start=1) for rest, base in (("", 1000), ("B", 1000), ("I", 1024), ("IB", 1024))
}
MAX_DIGITS = 19                          # of a number in the Admin API


class NoQubeOfVolume(tool.NoSuchQube):
    """The volume's qube is none; exit status 1, as with Qubes OS's tool."""

    exit_status = FAILED


class Listed(NamedTuple):
    """One volume of one qube."""

    pool: str
    vid: str
    qube: str
    name: str
    revisions: bool


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, description="Show or change the volumes of qubes.", examples=[
        ("qvm-volume list work", "its volumes, and whether they can be reverted"),
        ("qvm-volume info work:private", "one of them, with its revisions"),
        ("qvm-volume revert work:private", "back to what it was before the last run"),
        ("qvm-volume resize work:private 20GiB", "make it larger"),
        ("qvm-volume import work:private home.img", "replace what it holds"),
        ("qvm-volume clone work:private copy:private", "the same with what another volume holds"),
    ])
    verbs = result.add_subparsers(dest="verb", metavar="COMMAND")
    _add(verbs, "info", ("i",), "tell about a volume", _info).add_argument(
        "property", metavar="PROPERTY", nargs="?", help="only this; 'revisions' for the revisions")
    config = _add(verbs, "config", ("c", "set", "s"), "change a setting of a volume", _config)
    config.add_argument("property", metavar="PROPERTY", help=" or ".join(SETTABLE))
    config.add_argument("value", metavar="VALUE")
    resize = _add(verbs, "resize", ("extend",), "change a volume's size", _resize)
    resize.add_argument("size", metavar="SIZE", help="in bytes, or with KiB, MiB, GiB (1024) or KB, MB, GB (1000)")
    resize.add_argument("--force", "-f", action="store_true", help="also to a smaller size")
    listing = verbs.add_parser("list", aliases=("ls", "l"), help="list volumes", qubes="*")
    listing.add_argument("--pool", "-p", dest="pools", metavar="POOL", action="append", default=[], help="of this pool only")
    listing.add_argument("--full", action="store_true", help="repeat a volume's name on the lines of all its qubes")
    listing.set_defaults(act=_list)
    _add(verbs, "revert", ("rv", "r"), "go back to a revision", _revert).add_argument(
        "revision", metavar="REVISION", nargs="?", help="default: the latest")
    filling = _add(verbs, "import", (), "replace a volume's content", _import)
    filling.add_argument("path", metavar="PATH", help="an image; '-' for standard input")
    filling.add_argument("--size", type=_bytes, help="bytes of the image, which become the volume's size")
    filling.add_argument("--no-resize", action="store_true", help="keep the volume's size")
    cloning = verbs.add_parser("clone", help="replace a volume's content by another's")
    cloning.add_argument("source", metavar="SOURCE_VM:VOLUME")
    cloning.add_argument("volume", metavar="VM:VOLUME")
    cloning.set_defaults(act=_clone)
    clearing = _add(verbs, "clear", (), "empty a volume", _clear)
    for verb in (cloning, clearing):
        verb.add_argument("--force", "-f", action="store_true", help="don't ask")
    result.set_defaults(act=_list, names=[], exclude=[], all_qubes=False, pools=[], full=False)
    return result


def _add(
    verbs: argparse._SubParsersAction[tool.Parser], name: str, aliases: Sequence[str], text: str, act: object,
) -> tool.Parser:
    """A command about one volume."""
    verb: tool.Parser = verbs.add_parser(name, aliases=aliases, help=text)
    verb.add_argument("volume", metavar="VM:VOLUME")
    verb.set_defaults(act=act)
    return verb


def run(args: argparse.Namespace, connection: Connection) -> int:
    return int(args.act(args, connection) or 0)


def _bytes(text: str) -> int:
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of bytes")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes. Raises CloisonError for what is no size."""
    word = text.strip().upper()
    digits = word.rstrip("KMGIB")
    unit: int | None = _UNITS.get(word[len(digits):])
    if unit is None or not digits.strip().isdecimal() or len(digits) > MAX_DIGITS:
        raise CloisonError(f"invalid size: {text[:40]!r}")
    return int(digits) * unit


def _chosen(text: str, connection: Connection) -> tuple[str, str]:
    """Qube and volume, both there."""
    qube, colon, volume = text.partition(":")
    if not colon or ":" in volume:
        tool.quit_usage(PROG, f"expected a qube and a volume such as work:private, not {text!r}")
    dest = qube if qube == DOM0 else QubeName(qube)
    try:
        present = volumes(connection, dest)
    except QubeNotFound:
        raise NoQubeOfVolume(f"there is no qube {qube!r}") from None
    if volume not in present:
        raise CloisonError(f"qube {qube!r} has no volume {volume!r}")
    return dest, volume


def _revisions(connection: Connection, dest: str, volume: str) -> list[str]:
    """Oldest first."""
    return lines(connection.call(dest, "admin.vm.volume.ListSnapshots", volume))


# -- commands ------------------------------------------------------------------------------------------------------------


def _info(args: argparse.Namespace, connection: Connection) -> None:
    dest, volume = _chosen(args.volume, connection)
    wanted = args.property
    if wanted == "revisions":
        return _say(_revisions(connection, dest, volume))
    info = volume_info(connection, dest, volume)
    info["is_outdated"] = str(info.get("is_outdated") == "True")
    names = (*SHOWN, "is_outdated")
    if wanted is not None:
        if wanted not in names:
            raise StorageError(f"no such property: {wanted}")
        return tool.say(info.get(wanted, ""))
    if info.get("revisions_to_keep") == "-1":
        info["revisions_to_keep"] = "-1 (snapshot disabled)"
    tool.say(tool.table([(name, info.get(name, "")) for name in names]))
    revisions = _revisions(connection, dest, volume)
    title = "List of available revisions (for revert):"
    return _say([title, *(f"  {each}" for each in revisions)] if revisions else [f"{title} none"])


def _say(rows: list[str]) -> None:
    if rows:
        tool.say("\n".join(rows))


def _config(args: argparse.Namespace, connection: Connection) -> None:
    dest, volume = _chosen(args.volume, connection)
    if args.property not in SETTABLE:
        raise NoSuchProperty(f"invalid property: {args.property}")
    connection.call(dest, f"admin.vm.volume.Set.{args.property}", volume, args.value.encode())


def _resize(args: argparse.Namespace, connection: Connection) -> None:
    dest, volume = _chosen(args.volume, connection)
    size = parse_size(args.size)
    present = int(volume_info(connection, dest, volume).get("size", "0"))
    if size < present and not args.force:
        raise StorageError(f"{volume} has {present} bytes, and {size} would cut off what lies beyond; "
                           "make its file system smaller first, then use --force")
    connection.call(dest, "admin.vm.volume.Resize", volume, str(size).encode())


def _revert(args: argparse.Namespace, connection: Connection) -> None:
    dest, volume = _chosen(args.volume, connection)
    revision = args.revision
    if revision is None:
        revisions = _revisions(connection, dest, volume)
        if not revisions:
            raise StorageError("no snapshots available")
        revision = revisions[-1]
    connection.call(dest, "admin.vm.volume.Revert", volume, revision.encode())


def _clone(args: argparse.Namespace, connection: Connection) -> int:
    places = [_chosen(text, connection) for text in (args.source, args.volume)]
    if any(volume_info(connection, *place).get("save_on_stop") != "True" for place in places):
        raise StorageError("only volumes that keep their content (save_on_stop) can be cloned")
    if not args.force and not _agreed(f"This replaces what {args.volume} holds by what {args.source} holds."):
        return 1
    (source, source_volume), (dest, volume) = places
    token = connection.call(source, "admin.vm.volume.CloneFrom", source_volume)
    connection.call(dest, "admin.vm.volume.CloneTo", volume, token)
    return 0


def _clear(args: argparse.Namespace, connection: Connection) -> int:
    dest, volume = _chosen(args.volume, connection)
    if not args.force and not _agreed(f"This empties {args.volume}."):
        return 1
    connection.call(dest, "admin.vm.volume.Clear", volume)
    return 0


def _agreed(question: str) -> bool:
    """Whether the person says yes. Nobody there to ask: no."""
    tool.say(f"{question} What it holds now stays only as a revision, if it keeps any.")
    if tool.confirm("Are you sure? [y/N] ", "y", "yes"):
        return True
    tool.fail(PROG, "nothing was changed")
    return False


def _import(args: argparse.Namespace, connection: Connection) -> None:
    dest, volume = _chosen(args.volume, connection)
    with _opened(args.path) as source:
        size = args.size
        if size is None and not args.no_resize:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CloisonError("the size of what is to be imported is unknown: say it with --size, or use --no-resize")
            size = status.st_size
        import_volume(connection, dest, volume, source, None if args.no_resize else size)


def _opened(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb")


# -- list ----------------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace, connection: Connection) -> None:
    if args.exclude and not args.all_qubes:
        tool.quit_usage(PROG, "--exclude can only be used with --all")
    if args.pools:
        unknown = sorted(set(args.pools) - set(lines(connection.call(DOM0, "admin.pool.List"))))
        if unknown:
            tool.quit_usage(PROG, f"no such pool: {', '.join(unknown)}")
    if args.names or args.all_qubes:
        qubes = [qube.name for qube in tool.chosen(args, connection)]
    else:
        qubes = sorted(list_qubes(connection))
    found = [each for each in _listed(connection, qubes) if not args.pools or each.pool in args.pools]
    tool.say(tool.table([_HEADER, *_rows(found, full=args.full or not tool.is_terminal(sys.stdout))]))


def _listed(connection: Connection, qubes: Sequence[str]) -> Iterator[Listed]:
    """The volumes of these qubes. One that goes away meanwhile is left out."""
    replies = connection.gather((qube, "admin.vm.volume.List", "") for qube in qubes)
    places = [
        (qube, name) for qube, reply in zip(qubes, replies, strict=True) if isinstance(reply, bytes) for name in lines(reply)
    ]
    infos = connection.gather((qube, "admin.vm.volume.Info", name) for qube, name in places)
    snapshots = connection.gather((qube, "admin.vm.volume.ListSnapshots", name) for qube, name in places)
    for (qube, name), reply, revisions in zip(places, infos, snapshots, strict=True):
        if isinstance(reply, bytes):
            info, revertible = key_values(reply), isinstance(revisions, bytes) and bool(revisions)
            yield Listed(info.get("pool", ""), info.get("vid", ""), qube, name, revertible)


def _rows(found: Sequence[Listed], *, full: bool) -> Iterator[tuple[str, str, str, str]]:
    """By pool and vid. Of qubes that share a volume the last one stands first, as in Qubes OS."""
    shared: dict[tuple[str, str], list[Listed]] = {}
    for each in found:
        shared.setdefault((each.pool, each.vid), []).append(each)
    for (pool, vid), users in sorted(shared.items()):
        *others, last = users
        for number, user in enumerate((last, *others)):
            yield f"{pool}:{vid}" if full or not number else "", user.qube, user.name, "Yes" if last.revisions else "No"


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
