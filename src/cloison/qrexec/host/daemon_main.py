"""`qrexec-daemon`: the host's end of one qube's qrexec as a program of its own, over vchan-socket (reference/qrexec.md 4, 11).

For qubes of ours the same code runs in their wardens.
"""
from __future__ import annotations

import argparse
import asyncio
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence

from cloison.errors import CloisonError
from cloison.qrexec.call_log import CallLog
from cloison.qrexec.call_log import path as call_log_path
from cloison.qrexec.host.budget import Budget
from cloison.qrexec.host.daemon import Daemon, Served
from cloison.qrexec.host.outgoing import Host, Outgoing
from cloison.qrexec.lookup import FAILED
from cloison.runtime.paths import Paths
from cloison.runtime.vchan_socket import VchanSocket, folder
from cloison.values import Uuid

SOCKET_FOLDER = "/var/run/qubes"
LOG_FOLDER = "/var/log/qubes"
POLICY_PROGRAM = "/usr/bin/qrexec-policy-exec"
STARTUP_TIME = 60                        # s until the program gives up waiting for the agent; the daemon goes on
TIMED_OUT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    if not all(os.path.exists(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)):
        return FAILED                    # a program of a call would get them for something else
    options = _parser().parse_args(arguments)
    paths = Paths.from_environment()
    if options.direct:
        return asyncio.run(_serve(options, paths, lambda: None))
    return _in_background(options, paths)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qrexec-daemon", description="Serve one qube's qrexec over vchan-socket.")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing while waiting for the agent")
    parser.add_argument("--socket-dir", metavar="DIR", help=f"where callers find it ({SOCKET_FOLDER})")
    parser.add_argument("-p", "--policy-program", metavar="FILE", default=POLICY_PROGRAM, help="asked where no policy daemon is")
    parser.add_argument("-D", "--direct", action="store_true", help="stay in the foreground")
    parser.add_argument("-u", "--uuid", type=Uuid, required=True)
    parser.add_argument("xid", metavar="DOMAIN-ID", type=_xid)
    parser.add_argument("name", metavar="NAME", type=_name)
    parser.add_argument("user", metavar="DEFAULT-USER", nargs="?", default="user")
    return parser


def _xid(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a domain's id")
    return int(text)


def _name(text: str) -> str:
    """A stub domain's name, NAME-dm, is no qube's, so QubeName would refuse it."""
    if not text or "/" in text or "\0" in text or text.startswith("uuid:"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a qube's name")
    return text


async def _serve(options: argparse.Namespace, paths: Paths, on_ready: Callable[[], None]) -> int:
    """Until SIGTERM (0), or until the agent breaks the protocol (1)."""
    end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def stop(reason: str) -> None:
        if not end.done():
            end.set_result(reason)

    def ready() -> None:
        if not started:
            started.append(True)
            daemon.start()
            on_ready()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, "")
    started: list[bool] = []
    channels = VchanSocket(folder(os.environ))
    served = Served(options.xid, options.name, options.uuid, options.user)
    place = options.socket_dir or SOCKET_FOLDER
    daemon = Daemon(channels, served, place, stop, direct=True, on_ready=ready)
    log = CallLog(call_log_path(paths))
    host = Host(os.path.join(place, "policy.sock"), options.policy_program, paths.socket("qubesd.sock"), log)
    outgoing = Outgoing(daemon, host, Budget())
    daemon.connect()
    try:
        reason = await end
    finally:
        daemon.close()
        await outgoing.close()
        channels.end()
    if reason:
        print(f"qrexec-daemon: {options.name}: {reason}", file=sys.stderr)
    return 1 if reason else 0


# -- in the background -----------------------------------------------------------------------------------------------------


def _in_background(options: argparse.Namespace, paths: Paths) -> int:
    """0 when the agent is there, 1 when the daemon ended before, TIMED_OUT when the time is up and the daemon goes on waiting."""
    news, tell = os.pipe()
    if os.fork() == 0:
        os.close(news)
        os._exit(_detached(options, paths, tell))
    os.close(tell)
    if os.environ.get("QREXEC_STARTUP_NOWAIT"):
        return TIMED_OUT
    seconds = os.environ.get("QREXEC_STARTUP_TIMEOUT", "")
    poll = select.poll()
    poll.register(news, select.POLLIN)
    if not poll.poll((int(seconds) if seconds.isdecimal() else STARTUP_TIME) * 1000):
        if not options.quiet:
            print(f"qrexec-daemon: the agent of {options.name} does not answer yet", file=sys.stderr)
        return TIMED_OUT
    return 0 if os.read(news, 1) else 1


def _detached(options: argparse.Namespace, paths: Paths, tell: int) -> int:
    """The daemon's own process."""
    def ready() -> None:
        os.write(tell, b"1")
        os.close(tell)

    os.setsid()
    try:
        _redirect(os.path.join(LOG_FOLDER if os.path.isdir(LOG_FOLDER) else paths.log, f"qrexec.{options.name}.log"))
        return asyncio.run(_serve(options, paths, ready))
    except (CloisonError, OSError) as error:
        print(f"qrexec-daemon: {error}", file=sys.stderr)
        return 1


def _redirect(log: str) -> None:
    """Nothing from the terminal, everything to the log. Raises OSError."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.dup2(null, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(null)
    os.close(target)


if __name__ == "__main__":
    sys.exit(main())
