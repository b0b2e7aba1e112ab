"""qrexec-legacy-convert: rules in the format of Qubes OS 4.0 become files of today's format.

The new files are written before the old ones get out of the way: a crash in between leaves each rule twice, which changes
nothing. Who may call what is compared before and after, and everything can be taken back.
"""
from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence

from cloison.cli import tool
from cloison.cli.policy_files import PolicyFile, administration
from cloison.client.connection import Connection
from cloison.client.domains import DOM0
from cloison.policy.facts import BadFacts, Facts, facts_from_system_info
from cloison.policy.graph import Edge, edges
from cloison.policy.parse import Root, parse
from cloison.policy.rules import Rule
from cloison.policy.syntax import LEGACY_DIRECTIVE
from cloison.qrexec.policyd.policy_admin import NEW, PolicyAdminFileNotFoundException
from cloison.qrexec.policyd.policy_files import FolderReader, Folders, folders
from cloison.runtime.files import rename

SAVED = ".rpmsave"
USER = "30-user"
_PAGES = {
    "qubes.ClipboardPaste": "clipboard", "qubes.Filecopy": "filecopy", "qubes.UpdatesProxy": "updates",
    "qubes.OpenInVM": "openinvm", "qubes.OpenURL": "openurl", "qubes.InputKeyboard": "input", "qubes.InputMouse": "input",
    "qubes.InputTablet": "input", "u2f.Authenticate": "u2f", "u2f.Register": "u2f", "policy.RegisterArgument": "u2f",
}


class LegacyReader(FolderReader):
    """The files of the old format, and nothing but them."""

    def names(self, root: Root, folder: str) -> Sequence[str]:
        if root is Root.LEGACY:
            return super().names(root, folder)
        return ["all.policy"] if root is Root.MAIN else []

    def content(self, root: Root, path: str) -> bytes:
        return LEGACY_DIRECTIVE.encode() if root is Root.MAIN else super().content(root, path)


def parser() -> tool.Parser:
    result = tool.Parser(
        prog="qrexec-legacy-convert", description="Turn policy in the format of Qubes OS 4.0 into today's.",
        examples=[("qrexec-legacy-convert", "convert, show which calls change, and ask whether to keep it")])
    result.add_argument("--yes", "-y", action="store_true", help="keep the result without asking, if nothing changes by it")
    return result


def run(args: argparse.Namespace, connection: Connection) -> int:
    """1 if it was taken back."""
    where = folders(connection.paths)
    facts = _facts(connection)
    before = _calls(where, facts)
    old = parse(LegacyReader(where)).all
    if not old:
        tool.say("there are no files of the old format")
        return 0
    originals = _write(_sorted(_missing(where, old)))
    moved = _put_away(where[Root.LEGACY][0])
    changes = _changes(before, _calls(where, facts))
    for line in changes:
        tool.say(line)
    tool.say(f"{len(old)} rules are in {', '.join(originals) or 'the new files already'}; {len(moved)} old files end in {SAVED}")
    if (args.yes and not changes) or tool.confirm("Keep it? (y/n) "):
        return 0
    _take_back(originals, moved)
    tool.say("all is as it was")
    return 1


def _facts(connection: Connection) -> Facts:
    try:
        return facts_from_system_info(json.loads(connection.call(DOM0, "internal.GetSystemInfo", internal=True)))
    except ValueError as error:
        raise BadFacts("the system's description is not JSON") from error


def _calls(where: Folders, facts: Facts) -> set[Edge]:
    """What is possible, whichever rule it is that says so."""
    return {edge._replace(argument="", action="") for edge in edges(parse(FolderReader(where)), facts)}


def _missing(where: Folders, old: Iterable[Rule]) -> list[Rule]:
    """Those that no file of today's format has word for word."""
    present = {str(rule) for rule in parse(FolderReader(where)).all if not rule.file.startswith(Root.LEGACY.value)}
    return [rule for rule in old if str(rule) not in present]


def _sorted(rules: Iterable[Rule]) -> dict[str, list[Rule]]:
    """By the file they go to, in their order."""
    files: dict[str, list[Rule]] = {}
    for rule in rules:
        page = _PAGES.get(rule.service)
        files.setdefault(f"50-config-{page}" if page else USER, []).append(rule)
    return files


def _write(files: Mapping[str, list[Rule]]) -> dict[str, bytes | None]:
    """Append them; what each file was before, None for none."""
    originals: dict[str, bytes | None] = {}
    for name, rules in files.items():
        file = PolicyFile(name, administration())
        text = "".join(f"{rule}\n" for rule in rules).encode()
        try:
            token, content = file.get()
        except PolicyAdminFileNotFoundException:
            file.replace(NEW, text)
            originals[name] = None
            continue
        file.replace(token, content + (b"" if not content or content.endswith(b"\n") else b"\n") + text)
        originals[name] = content
    return originals


def _put_away(folder: str) -> list[str]:
    moved = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and not name.startswith(".") and not name.endswith((SAVED, ".rpmnew", ".swp")):
            rename(path, path + SAVED)
            moved.append(path)
    return moved


def _changes(before: set[Edge], after: set[Edge]) -> list[str]:
    lost, new = sorted(before - after), sorted(after - before)
    return [*(f"- {_line(edge)}" for edge in lost), *(f"+ {_line(edge)}" for edge in new)]


def _line(edge: Edge) -> str:
    return f"{edge.service} {edge.source} {edge.target} {edge.verb}"


def _take_back(originals: Mapping[str, bytes | None], moved: Iterable[str]) -> None:
    for path in moved:
        rename(path + SAVED, path)
    for name, content in originals.items():
        file = PolicyFile(name, administration())
        token, _ = file.get()
        if content is None:
            file.remove(token)
        else:
            file.replace(token, content)


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
