"""Desktop entries of this qube: qubes.GetAppmenus lists them, qubes.StartApp and `qubes-desktop-run` start one (qrexec.md 20.5)."""
from __future__ import annotations

import base64
import hashlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from cloison.errors import CloisonError
from cloison.guest.tools import qubesdb

DATA_DIRS = "/usr/local/share:/usr/share"
DISPOSABLE_DIRS = "/usr/share/qubes/xdg-override"    # entries here open things in disposables
MAX_ENTRY = 1 << 20                                  # bytes of one file
_GROUP = b"[desktop entry]"


def data_dirs(environ: Mapping[str, str]) -> list[str]:
    """Folders that have a sub-folder `applications`, the person's own first."""
    own = environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local/share")
    return [folder for folder in [own, *(environ.get("XDG_DATA_DIRS") or DATA_DIRS).split(":")] if folder.startswith("/")]


def entries(folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Id (`sub-name.desktop` for `sub/name.desktop`) and path of each entry."""
    for folder in folders:
        top = os.path.join(folder, "applications")
        for place, below, names in os.walk(top):
            below.sort()
            for name in sorted(names):
                if name.endswith(".desktop"):
                    path = os.path.join(place, name)
                    yield os.path.relpath(path, top).replace("/", "-"), path


def read(path: str) -> list[tuple[bytes, bytes]]:
    """Keys and values of the group `[Desktop Entry]` in order; nothing of a file that can't be read."""
    try:
        with open(path, "rb") as file:
            lines = file.read(MAX_ENTRY).split(b"\n")
    except OSError:
        return []
    pairs, inside = [], False
    for line in lines:
        if line.startswith(b"["):
            if inside:
                break
            inside = line.strip().lower() == _GROUP
        elif inside and b"=" in line:
            key, _, value = line.partition(b"=")
            pairs.append((key.strip(), value.strip()))
    return pairs


# -- qubes.GetAppmenus ---------------------------------------------------------------------------------------------------


def main_list(argv: Sequence[str]) -> int:
    """qubes.GetAppmenus: entries that survive a restart of this qube."""
    persistence = qubesdb.read("/qubes-vm-persistence") or "full"
    folders = [folder for folder in data_dirs(os.environ) if persistence == "full" or (persistence == "rw-only" and _on_rw(folder))]
    for name, path in entries(folders):
        sys.stdout.buffer.write(listing(name, read(path)))
    sys.stdout.buffer.flush()
    return 0


def _on_rw(folder: str) -> bool:
    try:
        return os.stat(folder).st_dev == os.stat("/rw").st_dev
    except OSError:
        return False


def listing(name: str, pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The lines about one entry; none of one that menus don't show."""
    if (b"NoDisplay", b"true") in pairs or (b"Categories", b"Screensaver;") in pairs:
        return b"\n"
    prefix = os.fsencode(name) + b":"
    run = b"qubes-desktop-run " + os.fsencode(name)
    return b"".join(prefix + key + b"=" + (run if key == b"Exec" else value) + b"\n" for key, value in pairs) + b"\n"


# -- starting ------------------------------------------------------------------------------------------------------------


def main_start(argv: Sequence[str]) -> int:
    """qubes.StartApp: the application of an id without `.desktop`; waits for its end, whose exit status it has."""
    name = argv[1] if len(argv) == 2 else ""
    if not name:
        print("qubes.StartApp needs an argument: the id of a desktop entry", file=sys.stderr)
        return 1
    environ = dict(os.environ)
    if _in_disposable(name):
        environ.pop("XDG_DATA_HOME", None)
        environ.pop("GNOME_DESKTOP_SESSION_ID", None)
        environ["XDG_DATA_DIRS"] = DISPOSABLE_DIRS
        folders = [DISPOSABLE_DIRS]
    else:
        folders = data_dirs(environ)
    for found, path in entries(folders):
        if found == name + ".desktop":
            return launch(path, environ)
    print(f"{name!r} not found in {':'.join(folders)}", file=sys.stderr)
    return 1


def main_run(argv: Sequence[str]) -> int:
    """qubes-desktop-run: the application of an entry's path or id."""
    name = argv[1] if len(argv) == 2 else ""
    path = name if "/" in name else dict(entries(data_dirs(os.environ)[::-1])).get(name, "")
    if not path:
        print("usage: qubes-desktop-run ENTRY.desktop", file=sys.stderr)
        return 1
    return launch(path, os.environ)


def _in_disposable(name: str) -> bool:
    """Whether the host says that what this application opens goes to disposables."""
    key = base64.urlsafe_b64encode(hashlib.sha256(os.fsencode(name)).digest()).decode().rstrip("=")
    if qubesdb.read(f"/hash-app-dispvm/{key}") == name:
        return True
    return len(name) <= 37 and qubesdb.read(f"/qubes-service/app-dispvm.{name}") is not None


def launch(path: str, environ: Mapping[str, str]) -> int:
    """Become the entry's program, without files. Returns 1 if it has none."""
    keys = dict(reversed(read(path)))
    try:
        words = command(os.fsdecode(keys.get(b"Exec", b"")), os.fsdecode(keys.get(b"Name", b"")), path)
        if keys.get(b"Path"):
            os.chdir(keys[b"Path"])
        os.execvpe(words[0], words, environ)  # noqa: S606 a list, no shell
    except (CloisonError, ValueError, OSError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1


def command(text: str, title: str, path: str) -> list[str]:
    """Words of an `Exec` line; codes for files and icons stand for nothing here. Raises ValueError."""
    words = []
    for word in shlex.split(text):
        if len(word) == 2 and word[0] == "%" and word[1] in "fFuUdDnNvmi":
            continue
        words.append(word.replace("%c", title).replace("%k", path).replace("%%", "%"))
    if not words:
        raise ValueError("no program to start")
    return words
