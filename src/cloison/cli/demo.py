"""cloison demo: the main job on real machines, told step by step, with the commands a person would type.

Safe to run again: it makes what is missing, uses what is there, and touches only its own two qubes and its own notes.
"""
from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import sysconfig
import time
from typing import Any

from cloison.cli import tool
from cloison.client.aio import Connection
from cloison.errors import CloisonError
from cloison.templates import suites

DISPOSABLE_TEMPLATE = "default-dvm"
QUBES = (("work", "blue"), ("untrusted", "red"))
NOTE = "demo-note"
GONE_LIMIT = 60     # seconds


class DemoFailed(CloisonError):
    """A step did not show what it should."""

    hint = "`cloison doctor` looks for causes; the logs are in the data folder's log/."


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser("demo", help="make two qubes and a disposable, and show what keeps them apart",
                                   description="Show the main job on real virtual machines. Safe to run again.")
    parser.add_argument("--no-bench", action="store_true", help="without the table of measurements at the end")


def run(args: argparse.Namespace) -> int:
    begun = time.monotonic()
    _prepare()
    _persistence()
    _disposable()
    if not args.no_bench:
        _title("What it costs here")
        _do("cloison", "bench", "--quick")
    tool.say(f"\nDone in {time.monotonic() - begun:.0f} s. Next: qvm-run -p work bash; qvm-run --dispvm -p bash; cloison status")
    return 0


def _prepare() -> None:
    _title("A template, and two qubes that start from it")
    _do("cloison", "up")
    known = _qubes()
    template = _get("qubes-prefs", "default_template") or suites.USUAL
    if template not in known:
        _do("cloison", "template", "build", template)
    for name, label in (*QUBES, (DISPOSABLE_TEMPLATE, "red")):
        if name not in known:
            _do("qvm-create", "--label", label, "--template", template, name)
    _do("qvm-prefs", DISPOSABLE_TEMPLATE, "template_for_dispvms", "True")
    if not _get("qubes-prefs", "default_dispvm"):
        _do("qubes-prefs", "default_dispvm", DISPOSABLE_TEMPLATE)
    _do("qvm-ls")


def _persistence() -> None:
    _title("What is kept: the home of a qube, and nothing else")
    written = str(time.time_ns())
    _do("qvm-start", "--skip-if-running", "work")
    _do("qvm-run", "-p", "work", f"echo {written} > ~/{NOTE}")
    _do("qvm-run", "-p", "--user", "root", "work", f"echo {written} > /etc/{NOTE}")
    _do("qvm-shutdown", "--wait", "work")
    _do("qvm-start", "work")
    kept = _get("qvm-run", "-p", "work", f"cat ~/{NOTE}")
    _expect(kept == written, f"/home/user/{NOTE} survived the restart")
    _expect(not _works("qvm-run", "-p", "work", f"test -e /etc/{NOTE}"), f"/etc/{NOTE} did not: the root is the template's again")


def _disposable() -> None:
    _title("A disposable: a machine for one command")
    found = _get("qvm-run", "--dispvm", "-p", f"hostname; id -un; cat ~/{NOTE} /etc/{NOTE} 2>/dev/null || echo no note here")
    tool.say(found)
    _expect(found.endswith("no note here"), "it sees neither note")
    disposable = found.split("\n", 1)[0]
    try:
        asyncio.run(_gone(disposable))      # the tool does not wait for the cleaning up
    except TimeoutError:
        raise DemoFailed(f"{disposable} is still there {GONE_LIMIT} s after its program ended") from None
    _expect(disposable not in _qubes(), "and it is gone")


async def _gone(name: str) -> None:
    """Wait until a qube is no more. Raises TimeoutError."""
    async with asyncio.timeout(GONE_LIMIT), Connection().events() as events:
        if name not in _qubes():
            return
        async for event in events:
            if event.event == "domain-delete" and ("vm", name) in event.pairs:
                return


# -- running our own tools -------------------------------------------------------------------------------------------------


def _title(text: str) -> None:
    tool.say(f"\n== {text}")


def _command(words: tuple[str, ...]) -> list[str]:
    """The tool beside this interpreter, wherever PATH leads."""
    return [os.path.join(sysconfig.get_path("scripts"), words[0]), *words[1:]]


def _do(*words: str) -> None:
    """Show a command and run it. Raises DemoFailed."""
    tool.say("$ " + " ".join(f"'{word}'" if " " in word else word for word in words))
    sys.stdout.flush()
    status = subprocess.run(_command(words), check=False).returncode
    if status != 0:
        raise DemoFailed(f"{words[0]} ended with status {status}")


def _get(*words: str) -> str:
    tool.say("$ " + " ".join(f"'{word}'" if " " in word else word for word in words))
    sys.stdout.flush()
    result = subprocess.run(_command(words), check=False, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise DemoFailed(f"{words[0]} ended with status {result.returncode}")
    return result.stdout.strip()


def _works(*words: str) -> bool:
    tool.say("$ " + " ".join(words))
    sys.stdout.flush()
    return subprocess.run(_command(words), check=False).returncode == 0


def _qubes() -> set[str]:
    listed = subprocess.run(_command(("qvm-ls", "--raw-list")), check=False, stdout=subprocess.PIPE, text=True)
    return set(listed.stdout.split())


def _expect(shown: bool, what: str) -> None:
    if not shown:
        raise DemoFailed(f"this should be true and is not: {what}")
    tool.say(f"   ok: {what}")
