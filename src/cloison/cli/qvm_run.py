"""qvm-run: run a program or a service in qubes, or in a disposable that lasts as long as it.

A shell command goes as a qrexec command line, which the agent hands to the user's shell: one process fewer in the qube than
service qubes.VMShell takes, and its input is the program's alone. That service is used where a window is to be waited for,
and for commands that no message can carry.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cloison import begin
from cloison.cli import progress, tool
from cloison.client import qrexec, words
from cloison.client.connection import Connection, NoDaemon
from cloison.client.disposables import Disposable
from cloison.client.domains import DOM0, Qube, feature, get_property, list_qubes
from cloison.client.local import Local
from cloison.errors import CloisonError
from cloison.values import InvalidValue
from cloison.wire.qrexec import MAX_COMMAND

PROG = "qvm-run"
RED = "31"
NEVER_RAN = 255                          # exit status when the command could not be run; its own may be the same, as with ssh
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+,.-]{0,63}")
_SERVICE = re.compile(r"[A-Za-z0-9_.-]{1,255}(\+[A-Za-z0-9_.+-]*)?")
# Statuses that are qrexec's own; what a service says for itself, it says on its standard error.
_SERVICE_FAILED = {
    125: "the service {} could not be started; the qube's journal has more",
    126: "the call of {} was refused; cloison policy log tells of refusals",
    127: "there is no service {} in it",
}
_PROGRAM_FAILED = {
    125: "{} could not be started, or ended with status 125; the qube's journal has more",
    127: "there is no program {} in it, or it ended with status 127",
}
_COLOUR = re.compile(r"[0-9]{1,3}(;[0-9]{1,3})*")


def parser() -> tool.Parser:
    result = tool.Parser(
        prog=PROG, description="Run a command in a qube; start the qube if it does not run.",
        usage="%(prog)s [options] VMNAME COMMAND [ARG ...]\n"
              "       %(prog)s [options] --dispvm[=BASE] COMMAND [ARG ...]\n"
              "       %(prog)s [options] --all [--exclude VMNAME] COMMAND [ARG ...]",
        examples=[
            ("qvm-run work xterm", "a program with a window"),
            ("qvm-run -p work 'cat ~/notes'", "a shell command, its input and output here"),
            ("qvm-run -p --dispvm -- python3 - < risky.py", "in a fresh disposable, gone afterwards"),
            ("qvm-run -p -u root debian-13 apt-get update", "as root; words after the first mean no shell"),
            ("qvm-run -p --service work qubes.GetDate", "a qrexec service"),
        ])
    add = result.add_argument
    add("--user", "-u", metavar="USER", help="run the command as USER")
    add("--autostart", "--auto", "-a", action="store_true", default=True, help="start and unpause the qube (default)")
    add("--no-autostart", "--no-auto", "-n", action="store_false", dest="autostart", help="do neither")
    add("--pass-io", "-p", action="store_true", dest="passio", help="connect the program's input, output and errors to here")
    add("--localcmd", metavar="COMMAND", help="with --pass-io, connect it to this command of the host instead")
    add("--gui", action="store_true", default=None, help="wait for the qube's windows first (default: if it has any)")
    add("--no-gui", "--nogui", action="store_false", dest="gui", help="do not wait for windows")
    add("--wait", action="store_true", help="ignored: the end of the command is always waited for")
    _add_output(result)
    add("--service", action="store_true", help="COMMAND is the name of a qrexec service")
    add("--no-shell", action="store_true", help="COMMAND is a program, not a shell command")
    target = result.add_mutually_exclusive_group()
    target.add_argument("--dispvm", nargs="?", const=DOM0, metavar="BASE", help="in a new disposable of BASE or the default")
    target.add_argument("--all", action="store_true", dest="all_qubes", help="in all running qubes")
    add("--exclude", metavar="VMNAME", action="append", default=[], help="with --all: leave this one out")
    add("words", nargs=argparse.REMAINDER, metavar="VMNAME COMMAND [ARG ...]", help="where, and what")
    return result


def _add_output(parser: tool.Parser) -> None:
    add = parser.add_argument
    for what, dest in (("output", "color_output"), ("stderr", "color_stderr")):
        add(f"--colour-{what}", f"--color-{what}", metavar="COLOUR", dest=dest, help=f"ANSI colour of its {what}, 31 is red")
        add(f"--no-colour-{what}", f"--no-color-{what}", action="store_const", const="", dest=dest, help=f"plain {what}")
    add("--filter-escape-chars", action="store_true", dest="filter_esc", default=None,
        help="replace terminal escape sequences in the output (default on a terminal)")
    add("--no-filter-escape-chars", action="store_false", dest="filter_esc",
        help="let them through; DANGEROUS on a terminal")


# -- what was asked for --------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What to run, wherever it runs."""

    words: list[str]                     # the command, or the service; then arguments
    user: str
    service: bool
    direct: bool                         # without a shell


def _job(args: argparse.Namespace) -> tuple[str, Job]:
    """VMNAME (empty with --all and --dispvm) and the job. Ends the tool for wrong usage, raises InvalidValue for bad words."""
    words = _without_dashes(args.words)
    name = ""
    if args.dispvm is None and not args.all_qubes:
        if not words:
            tool.quit_usage(PROG, "VMNAME is missing")
        name = words[0]
        if len(words) > 1 and words[1].startswith("-") and words[1] != "--":
            tool.quit_usage(PROG, f"options stand before VMNAME; write -- before a COMMAND that begins with '-': {words[1]!r}")
        words = _without_dashes(words[1:])
    for wrong, sentence in (
        (not words and args.dispvm not in (None, DOM0), "COMMAND is missing; without a BASE write: --dispvm -- COMMAND"),
        (not words, "COMMAND is missing"),
        (args.exclude and not args.all_qubes, "--exclude can only be used with --all"),
        (args.localcmd and not args.passio, "--localcmd has no effect without --pass-io"),
        (args.all_qubes and args.passio and not args.localcmd, "--pass-io of several qubes needs --localcmd"),
        (args.service and args.no_shell, "--no-shell does not apply to --service"),
        (args.service and len(words) > 1, "a service takes no words after its name; its argument follows a '+'"),
    ):
        if wrong:
            tool.quit_usage(PROG, sentence)
    job = Job(words, args.user or "DEFAULT", args.service, args.no_shell or len(words) > 1)
    _check(job)
    return name, job


def _without_dashes(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["--"] else words


def _check(job: Job) -> None:
    if not _USER.fullmatch(job.user):
        raise InvalidValue(f"user name {job.user[:60]!r} may only hold letters, digits, '_', '+', ',', '.', '-'")
    if job.service and not _SERVICE.fullmatch(job.words[0]):
        raise InvalidValue(f"service {job.words[0][:60]!r} may only hold letters, digits and '_.-', and '+ARGUMENT'")


def command_line(connection: Connection, dest: str, job: Job, *, wait_for_session: bool) -> tuple[str, bytes]:
    """The qrexec command line, and what to send before the real input."""
    if job.service:
        return words.service(job.words[0], user=job.user), b""
    if job.direct:
        if feature(connection, dest, "vmexec", with_template=True):
            name = "qubes.VMExecGUI" if wait_for_session else "qubes.VMExec"
            return words.service(f"{name}+{words.encode_words(job.words)}", user=job.user), b""
        command = "exec " + shlex.join(job.words)
    else:
        command = job.words[0]
    if wait_for_session or len(os.fsencode(f"{job.user}: {command}")) > MAX_COMMAND:
        name = "qubes.VMShell" + ("+WaitForSession" if wait_for_session else "")
        return words.service(name, user=job.user), os.fsencode(command.rstrip("\n") + "; exit\n")
    return f"{job.user}:{words.harmless(command)}", b""


# -- where ---------------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, connection: Connection) -> int:
    name, job = _job(args)
    qube = None if args.dispvm is not None or args.all_qubes else list_qubes(connection, tool.qube_name(name))[name]
    base = args.dispvm if args.dispvm in (None, DOM0) else tool.qube_name(args.dispvm)
    exclude = [tool.qube_name(text) for text in args.exclude]
    if qube is not None and qube.klass == "RemoteVM":
        tool.report(PROG, tool.NoMachine(name))
        return NEVER_RAN
    verbose = tool.verbosity(args) - bool(args.passio) > 0
    with _coloured(args) as output:
        try:
            if base is not None:
                quiet = tool.verbosity(args) < 1
                with Disposable(connection, base, lambda lease: progress.wait(lease, "disposable", quiet=quiet)) as disposable:
                    return _run_in(connection, args, job, output, [disposable.name], verbose=verbose)
            if qube is None:
                return _run_in(connection, args, job, output, _running(connection, exclude), verbose=verbose)
            if not _make_ready(connection, qube, autostart=args.autostart, quiet=tool.verbosity(args) < 1):
                return 1
            return _run_in(connection, args, job, output, [name], verbose=verbose)
        except CloisonError as error:
            status = tool.report(PROG, error)
            return status if isinstance(error, NoDaemon) else NEVER_RAN


def _running(connection: Connection, exclude: Sequence[str]) -> list[str]:
    """Qubes that --all means."""
    return [
        qube.name for qube in list_qubes(connection).values()
        if qube.state == "Running" and qube.klass != "AdminVM" and qube.name not in exclude
        and not feature(connection, qube.name, "internal")
    ]


def _make_ready(connection: Connection, qube: Qube, *, autostart: bool, quiet: bool) -> bool:
    """Start or unpause the qube. False if it does not run and may not be made to."""
    if qube.state == "Running":
        return True
    if not autostart:
        if not quiet:
            tool.fail(PROG, f"qube '{qube.name}' is {'paused' if qube.state == 'Paused' else 'not started'}")
        return False
    call = connection.begin(qube.name, "admin.vm.Unpause" if qube.state == "Paused" else "admin.vm.Start")
    progress.wait(call, f"starting {qube.name}", klass=qube.klass, quiet=quiet)
    call.result()
    if not quiet:
        # It may run without its private volume: what is written is lost.
        tool.tell_problems(PROG, connection, [qube.name], started=True)
    return True


def _run_in(
    connection: Connection, args: argparse.Namespace, job: Job, output: qrexec.Ends, names: Sequence[str], *, verbose: bool
) -> int:
    """Run it in all these running qubes at once; the greatest exit status."""
    with contextlib.ExitStack() as stack:
        calls = []
        local: list[Local] = []
        for name in names:
            gui = args.gui if args.gui is not None else _has_windows(connection, name)
            if verbose:
                print(f"Running '{tool.printable(' '.join(job.words))}' on {name}", file=sys.stderr)
            if gui and args.dispvm is None:
                _wait_for_session(connection, name)
            command, prefix = command_line(connection, name, job, wait_for_session=bool(gui and args.dispvm is not None))
            ends = output
            if args.localcmd:
                local.append(stack.enter_context(Local(args.localcmd, name)))
                ends = output._replace(stdin=local[-1].output, stdout=local[-1].input, clean_stdout=False)
            only_start = job.service and not args.passio and args.dispvm is None
            calls.append(qrexec.start(connection.paths, name, command, ends, prefix, only_start=only_start))
            stack.callback(calls[-1].close)
        told: list[str] = []

        def quiet() -> None:
            """Nothing moves: perhaps a qube waits for disk space."""
            told[:] = tool.tell_problems(PROG, connection, names, told)

        statuses = qrexec.pump(calls, quiet if tool.verbosity(args) > 0 else None)
        for name, call in zip(names, calls, strict=True):
            if call.status and verbose:
                print(f"{name}: command failed with code: {call.status}", file=sys.stderr)
            if tool.verbosity(args) > 0 and (sentence := _failure(job, call)):
                tool.fail(PROG, f"{name}: {sentence}")
        return max([*statuses, *(process.wait() for process in local)], default=0)


def _failure(job: Job, call: qrexec.Call) -> str:
    """Why a call failed, where that is not the command's own to say. Nothing for a command that ended by itself."""
    if call.lost:
        return "the call was lost: the qube has stopped, or its agent has ended"
    if not job.service and not job.direct:
        return ""                            # the shell has said it
    sentences = _SERVICE_FAILED if job.service else _PROGRAM_FAILED
    return sentences.get(call.status or 0, "").format(tool.printable(job.words[0]))


def _has_windows(connection: Connection, name: str) -> bool:
    """Whether programs of this qube show windows here."""
    if not os.environ.get("DISPLAY"):
        return False
    return bool(feature(connection, name, "gui", with_template=True) and get_property(connection, name, "guivm").value)


def _wait_for_session(connection: Connection, name: str) -> None:
    user = get_property(connection, name, "default_user").value
    qrexec.run(connection.paths, name, words.service("qubes.WaitForSession"), prefix=user.encode())


# -- output --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _coloured(args: argparse.Namespace) -> Iterator[qrexec.Ends]:
    """Our ends of the streams. What a qube says is coloured while it does, and can't drive a terminal (QSB-013b)."""
    stdout, stderr = os.isatty(1), os.isatty(2)
    filtered = stdout if args.filter_esc is None else args.filter_esc
    colour = args.color_output if args.color_output is not None else RED if filtered else ""
    if colour and not filtered:
        tool.quit_usage(PROG, "--colour-output must be used with --filter-escape-chars")
    if not args.passio:
        yield qrexec.Ends()
        return
    error_colour = args.color_stderr if args.color_stderr is not None else RED if stderr else ""
    for text in (colour, error_colour):
        if text and not _COLOUR.fullmatch(text):
            raise InvalidValue(f"colour {text[:20]!r} is not a number of ANSI, like 31")
    # Descriptors of our own: a pipe is closed when the qube has ended its stream, and the colour is still to be taken back.
    painted = {os.dup(fd): text for fd, text in ((1, colour), (2, error_colour)) if text}
    try:
        for fd, text in painted.items():
            os.write(fd, f"\033[0;{text}m".encode())
        yield qrexec.Ends(_if_open(0), _if_open(1), _if_open(2), clean_stdout=filtered, clean_stderr=filtered or stderr)
    finally:
        for fd in painted:
            with contextlib.suppress(OSError):
                os.write(fd, b"\033[0m")
            os.close(fd)


def _if_open(fd: int) -> int | None:
    """The descriptor, or None if we were started without it."""
    if fd in begin.closed:
        return None
    try:
        os.fstat(fd)
    except OSError:
        return None
    return fd


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
