"""cloison: what Qubes OS has no tool for. Starts and ends qubesd, tells how it is; more verbs live in modules of their own.

A module of another verb gives `add_parsers(subparsers)` and `run(args) -> int`, and is imported only when its verb is used.
"""
from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from cloison.cli import daemons, tool
from cloison.cli.daemons import AGENT_SOCKET, POLICY_SOCKET
from cloison.cli.qvm_shutdown import shut_down
from cloison.client.connection import Connection, NoDaemon
from cloison.client.domains import DOM0, list_qubes
from cloison.errors import CloisonError
from cloison.runtime.paths import Paths

PROG = "cloison"
DOWN_TIME = 300.0                        # s in which `cloison down` kills none that is late: it may be saving

# Verbs of other modules, with what --help says of them.
OTHERS = {
    "ask-agent": "ask the person where a rule of the policy says so",
    "doctor": "what this machine has and lacks for running qubes",
    "kernel": "add, list and remove kernels of the pool",
    "log": "what happened to a qube, and which logs there are",
    "policy": "why a call is allowed or denied, recent decisions, faults of the policy",
    "template": "build and list templates",
    "qubes-xml": "take over or write a qubes.xml of Qubes OS",
    "bench": "measure starts, calls and streams",
    "dom0": "run a program made for Qubes OS's dom0",
    "demo": "make two qubes and a disposable, and show what keeps them apart",
}


def parser(verb: str = "") -> tool.Parser:
    """`verb`: the other module's verb that will be used, if any; only that module is imported."""
    result = tool.Parser(prog=PROG, description="Run Cloison: qubes on this machine.", examples=[
        ("cloison up", "start qubesd, the daemon that all tools talk to"),
        ("cloison status", "what runs"),
        ("cloison down", "shut all qubes down, then end qubesd"),
        ("cloison completion bash > ~/.local/share/bash-completion/completions/cloison", "complete names and options"),
    ])
    verbs = result.add_subparsers(dest="verb", metavar="VERB", required=True)
    up = verbs.add_parser("up", help="start qubesd", description="Start qubesd; nothing happens if it runs.")
    up.add_argument("--bare", action="store_true", help="with an empty system: dom0, labels and pools, no qube")
    up.add_argument("--foreground", action="store_true", help="stay, and log here")
    down = verbs.add_parser("down", help="end qubesd", description="Shut all qubes down, then end qubesd.")
    down.add_argument("--keep", action="store_true", help="leave the qubes running; the next qubesd takes them over")
    down.add_argument("--all", action="store_true", help="shut all qubes down (default)")
    status = verbs.add_parser("status", help="what runs", description="Tell whether qubesd runs, and which qubes.")
    status.add_argument("--json", action="store_true", help="for programs")
    completion = verbs.add_parser("completion", help="shell completion", description="Print completion code for a shell.")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    known = verb in (*verbs.choices, *OTHERS)
    for name, meaning in OTHERS.items():
        if name == verb:
            _module(name).add_parsers(verbs)
        elif not known:                  # --help, or a verb that there isn't: all are named
            verbs.add_parser(name, help=meaning, add_help=False)
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    if args.verb in OTHERS:
        status: int = _module(args.verb).run(args)
        return status
    if args.verb == "completion":
        from cloison.cli.completion import script

        print(script(args.shell), end="")
        return 0
    return {"up": _up, "down": _down, "status": _status}[args.verb](args, connection)


def _module(verb: str) -> Any:
    return importlib.import_module(f"cloison.cli.{verb.replace('-', '_')}")


# -- up ------------------------------------------------------------------------------------------------------------------


def _up(args: argparse.Namespace, connection: Connection) -> int:
    paths = connection.paths
    paths.ensure()
    if args.foreground:
        _up_helpers(paths)
        command = _command(bare=args.bare)
        os.execv(command[0], command)    # noqa: S606 the daemon takes this process's place
    _up_helpers(paths)                   # before qubesd, which would start a policy daemon if there were none
    started = daemons.ensure(paths, "qubesd", "qubesd.sock", _command(bare=args.bare))
    if started and not args.bare and tool.verbosity(args) > 0:
        tool.tell_without_template(PROG, list_qubes(connection))
    return _say_unless_quiet(args, "qubesd runs" if started else "qubesd runs already")


def _up_helpers(paths: Paths) -> None:
    """Who decides on calls, and, where there is a display, who asks the person."""
    from cloison.cli.ask_agent import has_windows

    daemons.ensure(paths, "policyd", POLICY_SOCKET, [sys.executable, "-P", "-m", "cloison.qrexec.policyd.server"])
    if has_windows():
        daemons.ensure(paths, "ask-agent", AGENT_SOCKET, [sys.executable, "-P", "-m", "cloison.cli.main", "ask-agent"])


def _say_unless_quiet(args: argparse.Namespace, text: str) -> int:
    if tool.verbosity(args) > 0:
        tool.say(text)
    return 0


def _command(*, bare: bool) -> list[str]:
    # -P: a module in the current folder must not take the place of ours.
    return [sys.executable, "-P", "-m", "cloison.daemon", *(["--bare"] if bare else [])]


# -- down ----------------------------------------------------------------------------------------------------------------


def _down(args: argparse.Namespace, connection: Connection) -> int:
    try:
        qubes = list_qubes(connection)
    except NoDaemon:
        _end_helpers(connection.paths)
        return _say_unless_quiet(args, "qubesd does not run")
    status = 0
    if not args.keep:
        names = [qube.name for qube in qubes.values() if qube.running and qube.klass not in ("AdminVM", "RemoteVM")]
        told = sys.stderr if tool.verbosity(args) > 0 else None

        def tell(sentence: str) -> None:
            if told is not None:
                print(f"{PROG}: {sentence}", file=told, flush=True)

        def late(slow: list[str], more: float) -> None:
            tell(f"{', '.join(slow)} {'has' if len(slow) == 1 else 'have'} not shut down yet; "
                 f"what is late is killed in {more:.0f} s, with qvm-kill now; Ctrl-C ends the wait and kills nothing")

        if names:
            tell(f"shutting down {', '.join(names)}")
        status = shut_down(connection, names, wait=True, force=True, prog=PROG,
                           done=lambda name: tell(f"{name} is shut down"),
                           patience=DOWN_TIME, late=late)
    daemons.end(connection.paths, "qubesd.sock")
    _end_helpers(connection.paths)
    return min(status, 1)


def _end_helpers(paths: Paths) -> None:
    for at in (POLICY_SOCKET, AGENT_SOCKET):
        daemons.end(paths, at)


# -- status --------------------------------------------------------------------------------------------------------------


def _status(args: argparse.Namespace, connection: Connection) -> int:
    """Exit status 3 if qubesd does not run, as init scripts have it."""
    try:
        facts = json.loads(connection.call(DOM0, "internal.cloison.Status", internal=True))
        qubes = [qube for qube in list_qubes(connection).values() if qube.klass != "AdminVM"]
    except NoDaemon:
        if args.json:
            print(json.dumps({"running": False}))
        else:
            tool.say("qubesd does not run")
            if tool.verbosity(args) > 0:
                print(f"{PROG}: hint: {NoDaemon.hint}", file=sys.stderr)
        return 3
    except ValueError as error:
        raise CloisonError("qubesd's status could not be read") from error
    facts.pop("qubes", None)             # the listing has more
    problems = facts.pop("problems", None) or {}
    for key, at in (("policy", POLICY_SOCKET), ("questions", AGENT_SOCKET)):
        facts[key] = daemons.answers(connection.paths, at)
    running = [qube for qube in qubes if qube.running]
    if args.json:
        print(json.dumps({"running": True, **facts, "problems": problems, "qubes": {qube.name: qube.state for qube in qubes}}))
        return 0
    troubles = [("disk space", sentence) for sentence in facts.pop("space", ())]
    troubles += [("template", sentence) for sentence in dict.fromkeys((facts.pop("old_agents", None) or {}).values())]
    rows = [("qubesd", "runs"), *troubles, *((key.replace("_", " "), _fact(value)) for key, value in facts.items())]
    rows += [("qubes", f"{len(running)} of {len(qubes)} running")]
    rows += [("", f"{qube.name} ({qube.state}){_problem(problems.get(qube.name))}") for qube in running]
    _show(rows)
    return 0


def _problem(text: object) -> str:
    return f": {text}" if text else ""


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "served" if value else "not served: such calls are denied"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def _show(rows: Sequence[tuple[str, str]]) -> None:
    if not tool.is_terminal(sys.stdout):
        tool.say(tool.table(rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for key, value in rows:
        table.add_row(Text(key, style="bold"), Text(tool.printable(value)))
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["complete"]:        # no verb of a person's: shells ask it at every TAB
        from cloison.cli import complete

        return complete.main(words[1:])
    verb = next((word for word in words if not word.startswith("-")), "")
    if not words:
        parser().print_help(sys.stderr)
        return tool.USAGE
    try:
        chosen = parser(verb)
    except ModuleNotFoundError as error:
        tool.fail(PROG, f"the verb {verb} is not installed: {error}")
        return 1
    return tool.main(chosen, run, words)


if __name__ == "__main__":
    sys.exit(main())
