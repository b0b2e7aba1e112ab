"""qubes-policy-editor: edit a policy file; it is put in place only when the policy is valid with it, and nobody else changed it."""
from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence

from cloison.cli import tool
from cloison.cli.policy_files import PolicyFile, administration
from cloison.client.connection import Connection
from cloison.errors import CloisonError, HostError
from cloison.policy.parse import MAX_FILE, lint
from cloison.qrexec.policyd.policy_admin import (
    NEW,
    PolicyAdminException,
    PolicyAdminFileNotFoundException,
    PolicyAdminSyntaxException,
)
from cloison.runtime.programs import find

DEFAULT = "30-user"
EDITORS = ("sensible-editor", "vim", "vi", "nano")


class NoEditor(HostError):
    """No editor was found."""

    hint = "Set VISUAL or EDITOR."


class EditorFailed(CloisonError):
    """The editor ended as one does that was given up."""

    hint = "The policy is as it was."


def parser() -> tool.Parser:
    result = tool.Parser(prog="qubes-policy-editor", description="Edit a policy file.", examples=[
        ("qubes-policy-editor", f"your own rules, {DEFAULT}; what has faults is not put in force"),
        ("qubes-policy-editor include/admin-local-ro", "a file that others include"),
    ])
    result.add_argument("file", metavar="[include/]FILE", nargs="?", default=DEFAULT, help=f"default: {DEFAULT}")
    return result


def run(args: argparse.Namespace, _: Connection) -> int:
    """1 if the file was left as it was because of a fault."""
    file = PolicyFile(args.file, administration())
    try:
        token, content = file.get()
    except PolicyAdminFileNotFoundException:
        token, content = NEW, b""
    with tempfile.TemporaryDirectory(prefix="policy-") as folder:
        path = os.path.join(folder, f"{file.name}.policy")
        with open(path, "wb") as copy:
            copy.write(content)
        while True:
            _edit(path)
            with open(path, "rb") as copy:
                edited = copy.read(MAX_FILE + 1)
            if edited == content:
                tool.say("nothing was changed")
                return 0
            fault = _put(file, token, edited, service_format=args.file.startswith("include/"))
            if not fault:
                return 0
            tool.fail("qubes-policy-editor", fault)
            if not tool.confirm("Edit again? (y/n) "):
                return 1


def _put(file: PolicyFile, token: bytes, content: bytes, *, service_format: bool) -> str:
    """What is wrong, or nothing."""
    faults = [] if service_format else lint(content, file.name)
    if faults:
        return "\n".join(map(str, faults))
    try:
        file.replace(token, content)
    except PolicyAdminSyntaxException as error:
        return str(error)
    except PolicyAdminException as error:
        return f"{error}; your text can be copied from the editor"
    return ""


def _edit(path: str) -> None:
    """Until the editor's end. Raises NoEditor, EditorFailed."""
    editor = _editor()
    try:
        status = subprocess.run([*editor, path], check=False).returncode
    except OSError as error:
        raise NoEditor(f"the editor {editor[0]!r} can't be run: {error.strerror}") from error
    if status:
        how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
        raise EditorFailed(f"the editor {editor[0]!r} {how}: nothing was changed")


def _editor() -> list[str]:
    """The person's own, with its options. Raises NoEditor."""
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if chosen and chosen.strip():
        try:
            return shlex.split(chosen)
        except ValueError as error:
            raise NoEditor(f"VISUAL or EDITOR can't be read as a command: {error}") from error
    for name in EDITORS:
        try:
            return [find(name)]
        except HostError:
            continue
    raise NoEditor("there is no editor")


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
