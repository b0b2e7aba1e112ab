"""A display of its own with a window manager, hands that click and type on it, and eyes that look at its pixels."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloison.wire import ask as wire

PROGRAMS = ("Xvfb", "openbox", "xdotool", "import")
SIZE = (1000, 800)
SHADES = {"untrusted": "#cc0000", "work": "#3465a4", "vault": "#000000", "@dispvm:dvm": "#f57900", "dom0": "#000000"}
ALLOWED = "#2C7A3F"       # of the button, when it can be pressed
WAITING = "#E4E2DF"       # and when not
ARMING = 1000             # milliseconds of quiet focus before it can be pressed


def missing() -> str:
    """What the tests of windows lack, in a sentence; nothing if they lack nothing."""
    names = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"the tests of windows need {', '.join(names)}: make test-deps installs what is missing" if names else ""


class Display:
    """`environ` is what a program needs to show windows here."""

    def __init__(self, number: str) -> None:
        self.environ = {**os.environ, "DISPLAY": f":{number}", "QT_QPA_PLATFORM": "xcb"}

    def do(self, *words: str) -> str:
        """An xdotool command."""
        return subprocess.run(["xdotool", *words], env=self.environ, capture_output=True, text=True, check=True).stdout

    def pixel(self, window: str, x: int, y: int) -> str:
        """`#RRGGBB` at that place of the window, as it is on the screen."""
        command = ["import", "-silent", "-window", window, "-crop", f"1x1+{x}+{y}", "-depth", "8", "txt:-"]
        text = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=True).stdout
        return next(word for word in text.split() if word.startswith("#") and len(word) == 7)


@contextmanager
def display(folder: Path) -> Iterator[Display]:
    """Xvfb and openbox; ready when it is entered."""
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", f"{SIZE[0]}x{SIZE[1]}x24", "-nolisten", "tcp"],
        pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with open(reader) as told:
            shown = Display(told.readline().strip())
        pipe = folder / "manager-is-up"
        os.mkfifo(pipe)
        config = folder / "xdg"
        config.mkdir()
        manager = subprocess.Popen(
            ["openbox", "--startup", f"sh -c 'echo up > {pipe}'"], stderr=subprocess.DEVNULL,
            env={**shown.environ, "XDG_CONFIG_HOME": str(config), "XDG_CACHE_HOME": str(config)})
        try:
            pipe.read_text()
            yield shown
        finally:
            manager.terminate()
            manager.wait()
    finally:
        server.terminate()
        server.wait()


class Dialog:
    """One question on the display."""

    def __init__(self, shown: Display, process: subprocess.Popen[bytes]) -> None:
        self._display, self.process = shown, process
        self.window = shown.do("search", "--sync", "--onlyvisible", "--name", " asks - Cloison").split()[-1]
        shown.do("windowfocus", "--sync", self.window)

    def size(self) -> tuple[int, int]:
        text = self._display.do("getwindowgeometry", "--shell", self.window)
        values = dict(line.split("=") for line in text.split())
        return int(values["WIDTH"]), int(values["HEIGHT"])

    def _inside(self, x: int, y: int) -> tuple[int, int]:
        """Negative: from the right or the lower edge."""
        width, height = self.size()
        return x % width, y % height

    def click(self, x: int, y: int) -> None:
        left, top = self._inside(x, y)
        self._display.do("mousemove", "--window", self.window, str(left), str(top), "click", "1")

    def pixel(self, x: int, y: int) -> str:
        return self._display.pixel(self.window, *self._inside(x, y))

    def can_allow(self) -> bool:
        """What a person sees: the button is green."""
        return self.pixel(-130, -50) == ALLOWED

    def until_allowed(self) -> None:
        while not self.can_allow():
            assert self.process.poll() is None

    def until_drawn(self) -> None:
        """Its buttons are there."""
        while self.pixel(-130, -50) not in (ALLOWED, WAITING):
            assert self.process.poll() is None

    def answer(self) -> bytes:
        """After the dialog's end."""
        assert self.process.stdout is not None
        answer = self.process.stdout.read()
        assert self.process.wait() == 0
        return answer


def question(*targets: str, default: str = "") -> wire.Question:
    return wire.Question("untrusted", "qubes.Filecopy", "+", targets or tuple(sorted(SHADES)), default, {})


@contextmanager
def asking(shown: Display, asked: wire.Question, arming: int = ARMING) -> Iterator[Dialog]:
    """The dialog's process, with the focus in its window."""
    order = {"request": wire.encode_question(asked).decode(), "colours": SHADES}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from cloison.ui.dialog import main; main({arming})"],
        env=shown.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        try:
            yield Dialog(shown, process)
        finally:
            process.kill()
