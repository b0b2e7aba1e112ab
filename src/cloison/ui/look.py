"""How windows look: a frame and a band of the qube's colour, squares for qubes, labels that show text and nothing else."""
from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPen, QPixmap
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

EDGE = 5                  # pixels of the qube's colour around a window
_BREAK = "\u200b"         # no width, but a line may break there
_STYLE = """
QDialog { background: #f6f5f4; }
QWidget { color: #1d1d1f; font-size: 14px; }
QFrame#edge { background: #f6f5f4; border: %(edge)dpx solid %(shade)s; }
QLabel#band { background: %(shade)s; color: %(ink)s; font-size: 20px; font-weight: 600; padding: 12px 16px 14px 16px; }
QLabel#service { font-family: monospace; font-size: 13px; color: #555; }
QLabel#hint { font-size: 12px; color: #666; }
QLineEdit, QListView { background: white; border: 1px solid #b9b6b2; border-radius: 6px; padding: 6px; }
QLineEdit:focus, QListView:focus { border: 2px solid #3584e4; padding: 5px; }
QListView::item { height: 30px; border-radius: 4px; padding-left: 4px; }
QListView::item:selected { background: #d3e3f8; color: #1d1d1f; }
QPushButton { background: #e4e2df; border: 1px solid #b9b6b2; border-radius: 6px; padding: 8px 22px; min-width: 84px; }
QPushButton:hover, QPushButton:focus { border: 2px solid #3584e4; padding: 7px 21px; }
QPushButton#allow:enabled { background: #2c7a3f; color: white; border-color: #1f5c2e; font-weight: 600; }
QPushButton#allow:disabled { color: #9a9996; }
"""


def style(shade: str) -> str:
    """The style sheet of a window of the qube with that colour, `#rrggbb`."""
    return _STYLE % {"shade": shade, "ink": _ink(shade), "edge": EDGE}


def _ink(shade: str) -> str:
    """Black or white, whichever can be read on it."""
    colour = QColor(shade)
    luminance = 0.299 * colour.red() + 0.587 * colour.green() + 0.114 * colour.blue()
    return "#000000" if luminance > 140 else "#ffffff"


def square(shade: str, *, disposable: bool) -> QIcon:
    """A square of the qube's colour; a disposable's is hollow."""
    pixmap = QPixmap(20, 20)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(QPen(QColor(shade) if disposable else QColor(0, 0, 0, 60), 3 if disposable else 1))
    painter.setBrush(Qt.BrushStyle.NoBrush if disposable else QColor(shade))
    painter.drawRoundedRect(2, 2, 16, 16, 4, 4)
    painter.end()
    icon = QIcon()
    for mode in (QIcon.Mode.Normal, QIcon.Mode.Selected):    # or the theme tints the chosen one's colour
        icon.addPixmap(pixmap, mode)
    return icon


def breakable(text: str) -> str:
    """A name without spaces that is longer than a line goes on in the next one: nothing of it is cut off."""
    return _BREAK.join(text)


def label(text: str, name: str = "") -> QLabel:
    """A label that shows its text and nothing else: no markup."""
    made = QLabel(text)
    made.setTextFormat(Qt.TextFormat.PlainText)
    made.setObjectName(name)
    made.setWordWrap(True)
    return made


def stack(parent: QWidget, *children: QWidget) -> None:
    """Children below each other without gaps."""
    layout = QVBoxLayout(parent)
    layout.setSpacing(0)
    layout.setContentsMargins(0, 0, 0, 0)
    for child in children:
        layout.addWidget(child)
