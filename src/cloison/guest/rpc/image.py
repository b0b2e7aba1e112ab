"""qubes.GetImageRGBA: a picture or an icon of this qube as plain pixels: `WIDTH HEIGHT` in a line, then 4 bytes a pixel.

GraphicsMagick reads the picture, rsvg-convert a drawing; both are this qube's own and only as trusted as it is.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from cloison.errors import CloisonError
from cloison.guest.rpc.stdin import copy, read_line

LINE_MAX = 4096
ICON_SIZE = 512
ICON_FOLDERS = ("/usr/share/icons", "/usr/local/share/icons")
PIXMAPS = "/usr/share/pixmaps"
_THEMES = ("hicolor", "Adwaita", "gnome", "Humanity", "oxygen")
_ENDINGS = (".svg", ".png", ".xpm")


class NoImage(CloisonError):
    """Nothing that can be shown."""


def main(argv: Sequence[str]) -> int:
    """The service."""
    try:
        with tempfile.TemporaryDirectory(prefix="qimg-") as folder:
            width, height, pixels = _pixels(folder, os.fsdecode(read_line(LINE_MAX)))
        sys.stdout.buffer.write(f"{width} {height}\n".encode() + pixels)
        sys.stdout.buffer.flush()
        return 0
    except (CloisonError, OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"qubes.GetImageRGBA: {error}", file=sys.stderr)
        return 1


def _pixels(folder: str, wanted: str) -> tuple[int, int, bytes]:
    kind, colon, name = wanted.rpartition(":")
    limit = 0
    if wanted.startswith("xdgicon:"):
        path, limit = find_icon(wanted.removeprefix("xdgicon:")), ICON_SIZE
    elif name == "-":
        path = os.path.join(folder, "image")
        with open(path, "xb") as file:
            copy(0, file.fileno())
        if colon:
            path = f"{kind}:{path}"
    else:
        path = os.path.abspath(wanted)
        if not os.path.isfile(path):
            raise NoImage("no such file")
    if path.endswith(".svg") or kind.lower() == "svg":
        path = _drawn(folder, path.removeprefix(f"{kind}:") if kind.lower() == "svg" else path)
    return _decoded(path, limit)


def _drawn(folder: str, path: str) -> str:
    """A drawing as a picture."""
    made = os.path.join(folder, "drawn.png")
    subprocess.run([_program("rsvg-convert"), "-o", made, path], check=True, stdin=subprocess.DEVNULL)
    return made


def _decoded(path: str, limit: int) -> tuple[int, int, bytes]:
    program = _program("gm")
    scaling = ["-scale", f"{limit}x{limit}>"] if limit else []
    pixels = subprocess.run([program, "convert", path, *scaling, "-depth", "8", "-format", "%w %h", "info:-"],
                            check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout
    width, height = (int(number) for number in pixels.split()[:2])
    pixels = subprocess.run([program, "convert", path, *scaling, "-depth", "8", "rgba:-"],
                            check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout
    if len(pixels) != 4 * width * height:
        raise NoImage("the picture has several parts")
    return width, height, pixels


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NoImage(f"{name} is not installed in this qube")
    return path


def find_icon(name: str) -> str:
    """File of an icon by its name or path: drawings first, then the largest picture. Raises NoImage."""
    if os.path.isabs(name) and os.path.isfile(name):
        return name
    if not name or "/" in name or "\0" in name:
        raise NoImage("not the name of an icon")
    candidates = []
    for folder in ICON_FOLDERS:
        for theme in _THEMES:
            for place, _, files in os.walk(os.path.join(folder, theme)):
                candidates += [os.path.join(place, name + ending) for ending in _ENDINGS if name + ending in files]
    candidates += [path for ending in _ENDINGS if os.path.isfile(path := os.path.join(PIXMAPS, name + ending))]
    if not candidates:
        raise NoImage(f"no icon {name[:60]!r}")
    return max(candidates, key=lambda path: (path.endswith(".svg"), os.stat(path).st_size))
