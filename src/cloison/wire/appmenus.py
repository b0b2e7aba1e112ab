"""What qubes.GetAppmenus answers: desktop entries of a qube, which the host shows in its own menus (reference/qrexec.md 20.5).

Lines `FILE.desktop:KEY=VALUE`. All of it is the qube's word: lengths, counts, names and characters are bounded here, and keys that
no menu needs are dropped.
"""
from __future__ import annotations

import re

from cloison.errors import PeerError

FOLDER = "appmenus"                      # of the host's data: a folder a qube
LINE_MAX = 1024                          # bytes
LINES_MAX = 100_000
SIZE_MAX = 4 << 20                       # bytes of a whole answer
ENTRIES_MAX = 4096
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.desktop")
_TEXT = re.compile(r"[/a-zA-Z0-9.,:&()_ +-]*")
_ICON = re.compile(r"[a-zA-Z0-9/_.-]*")
_KEYS = {
    "Name": _TEXT, "GenericName": _TEXT, "Comment": _TEXT, "StartupWMClass": _ICON, "Icon": _ICON,
    "Categories": re.compile(r"[a-zA-Z0-9/.;:'() -]*"), "Exec": re.compile(r"[a-zA-Z0-9()_&>/{}:.= -]*"),
}
# The main and additional categories that the menu specification registers and menus sort by.
CATEGORIES = frozenset((
    "AudioVideo", "Audio", "Video", "Development", "Education", "Game", "Graphics", "Network", "Office", "Science", "Settings",
    "System", "Utility", "Building", "Debugger", "IDE", "GUIDesigner", "Profiling", "RevisionControl", "Translation", "Calendar",
    "ContactManagement", "Database", "Dictionary", "Chart", "Email", "Finance", "FlowChart", "PDA", "ProjectManagement",
    "Presentation", "Spreadsheet", "WordProcessor", "2DGraphics", "VectorGraphics", "RasterGraphics", "3DGraphics", "Scanning",
    "OCR", "Photography", "Publishing", "Viewer", "TextTools", "DesktopSettings", "HardwareSettings", "Printing", "PackageManager",
    "Dialup", "InstantMessaging", "Chat", "IRCClient", "Feed", "FileTransfer", "HamRadio", "News", "P2P", "RemoteAccess",
    "Telephony", "TelephonyTools", "VideoConference", "WebBrowser", "WebDevelopment", "Midi", "Mixer", "Sequencer", "Tuner", "TV",
    "AudioVideoEditing", "Player", "Recorder", "DiscBurning", "ActionGame", "AdventureGame", "ArcadeGame", "BoardGame",
    "BlocksGame", "CardGame", "KidsGame", "LogicGame", "RolePlaying", "Shooter", "Simulation", "SportsGame", "StrategyGame", "Art",
    "Construction", "Music", "Languages", "ArtificialIntelligence", "Astronomy", "Biology", "Chemistry", "ComputerScience",
    "DataVisualization", "Economy", "Electricity", "Geography", "Geology", "Geoscience", "History", "Humanities",
    "ImageProcessing", "Literature", "Maps", "Math", "NumericalAnalysis", "MedicalSoftware", "Physics", "Robotics",
    "Spirituality", "Sports", "ParallelComputing", "Amusement", "Archiving", "Compression", "Electronics", "Emulator",
    "Engineering", "FileTools", "FileManager", "TerminalEmulator", "Filesystem", "Monitor", "Security", "Accessibility",
    "Calculator", "Clock", "TextEditor", "Documentation", "Adult", "Core", "KDE", "GNOME", "XFCE", "GTK", "Qt", "Motif", "Java",
    "ConsoleOnly",
))


def parse(untrusted: bytes) -> dict[str, dict[str, str]]:
    """File name -> key -> value; entries without a name and a program are left out. Raises PeerError beyond the bounds."""
    if len(untrusted) > SIZE_MAX:
        raise PeerError(f"more than {SIZE_MAX} bytes of menu entries")
    lines = untrusted.split(b"\n", LINES_MAX)
    if len(lines) > LINES_MAX:
        raise PeerError(f"more than {LINES_MAX} lines of menu entries")
    entries: dict[str, dict[str, str]] = {}
    for line in lines:
        if len(line) > LINE_MAX:
            raise PeerError(f"a line of more than {LINE_MAX} bytes among the menu entries")
        if line and line.isascii():
            _take(entries, line.decode("ascii"))
    return {name: keys for name, keys in entries.items() if keys.get("Name") and keys.get("Exec")}


def _take(entries: dict[str, dict[str, str]], line: str) -> None:
    """The first value of a key counts; what does not have its form is dropped."""
    name, colon, rest = line.partition(":")
    key, equals, value = rest.partition("=")
    allowed = _KEYS.get(key)
    if not colon or not equals or allowed is None or not _NAME.fullmatch(name) or not allowed.fullmatch(value):
        return
    if name not in entries and len(entries) >= ENTRIES_MAX:
        raise PeerError(f"more than {ENTRIES_MAX} menu entries")
    if key == "Categories":
        value = "".join(f"{word};" for word in value.split(";") if word in CATEGORIES)
    entries.setdefault(name, {}).setdefault(key, value)


def template(keys: dict[str, str]) -> bytes:
    """The entry as a file, from which those of the qubes are made."""
    return "".join(["[Desktop Entry]\nVersion=1.0\nType=Application\n", *(f"{key}={keys[key]}\n" for key in sorted(keys))]).encode()
