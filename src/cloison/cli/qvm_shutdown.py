"""qvm-shutdown: power qubes off in order."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import Qube, get_property, list_qubes
from cloison.errors import CloisonError, QubeInUse, QubeNotPaused, QubeNotStarted, ShutdownTimeout

PROG = "qvm-shutdown"


def parser() -> tool.Parser:
    result = tool.Parser(prog=PROG, qubes="+", description="Shut qubes down cleanly.", examples=[
        ("qvm-shutdown work", "ask work to power off, and return at once"),
        ("qvm-shutdown --wait work", "return when it has; kill it if it does not in time"),
        ("qvm-shutdown --all --wait", "everything"),
    ])
    result.add_argument("--wait", action="store_true", help="wait for the qubes to shut down")
    result.add_argument("--timeout", metavar="SECONDS", help="deprecated: the same as --wait")
    result.add_argument("--force", action="store_true", help="even if others depend on it, as their netvm for example")
    result.add_argument("--dry-run", action="store_true", help="don't really shut down")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    qubes = tool.chosen(args, connection)
    if args.dry_run:
        return 0
    force = args.force or (args.all_qubes and not args.exclude)
    return shut_down(connection, [qube.name for qube in qubes], wait=args.wait or bool(args.timeout), force=force)


def shut_down(
    connection: Connection, names: Iterable[str], *, wait: bool, force: bool, prog: str = PROG,
    done: Callable[[str], object] = lambda name: None,
    patience: float = 0.0, late: Callable[[list[str], float], object] = lambda _names, _seconds: None,
) -> int:
    """Shut them down, those that others use after their users, and kill those that time out. The number that failed.

    `done` is called with the name of each that is shut down. `patience`: seconds in all before which none is killed, whatever its
    own timeout; `late` is called with those that have timed out and the seconds that they still have, each time that they do.
    """
    end = time.monotonic() + patience
    argument = "+".join(word for word, wanted in (("force", force), ("wait", wait)) if wanted)
    left = list(names)
    failed = _wake(connection, left)
    left = [name for name in left if name not in failed]
    while left:
        outcome = tool.each(prog, connection, left, "admin.vm.Shutdown", argument, done=done)
        for name in [name for name, error in outcome.items() if type(error) is QubeNotStarted]:
            del outcome[name]
            done(name)                   # it is down
        more = end - time.monotonic()
        slow = [name for name, error in outcome.items() if isinstance(error, ShutdownTimeout) and more > 0]
        if slow:                         # each is asked once more, which does not disturb what it does
            late(slow, more)
            outcome = {name: error for name, error in outcome.items() if name not in slow}
        failed.update((name, error) for name, error in outcome.items() if not isinstance(error, QubeInUse))
        in_use = {name: error for name, error in outcome.items() if isinstance(error, QubeInUse)}
        if len(in_use) == len(left):     # none of them will be free by itself
            failed.update(in_use)
            break
        left = [*slow, *in_use]
    timed_out = [name for name, error in failed.items() if isinstance(error, ShutdownTimeout)]
    for name in timed_out:
        tool.fail(prog, f"{name} did not shut down in time: killing it")
        del failed[name]
    failed.update(tool.each(prog, connection, timed_out, "admin.vm.Kill", ignore=(QubeNotStarted,)))
    for name, error in failed.items():
        tool.report(prog, error, f"failed to shut down: {name}")
    return len(failed)


def _wake(connection: Connection, names: list[str]) -> dict[str, CloisonError]:
    """Let those that are paused go on, since one that stands still can't power off. The failures.

    Disposables made ahead stay as they are: they hold nothing, and going on would count as their use.
    """
    known = list_qubes(connection) if names else {}
    failed: dict[str, CloisonError] = {}
    for state, method in (("Paused", "admin.vm.Unpause"), ("Suspended", "admin.vm.Resume")):
        qubes = [known[name] for name in names if name in known and known[name].state == state]
        still = [qube.name for qube in qubes if not _made_ahead(connection, qube)]
        failed |= tool.each(PROG, connection, still, method, ignore=(QubeNotPaused, QubeNotStarted))
    return failed


def _made_ahead(connection: Connection, qube: Qube) -> bool:
    return qube.klass == "DispVM" and get_property(connection, qube.name, "is_preload").value == "True"


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
