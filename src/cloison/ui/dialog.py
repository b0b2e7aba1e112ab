"""The window that asks: may this qube call that service, and where? One question, one process: `python -m cloison.ui.dialog`.

The question comes as one line of JSON on standard input, the answer goes to standard output; the end of standard input means
that nobody waits for it any more. Only this process imports Qt.

What was typed or clicked for another window must never say yes here. So "Allow" stays grey until the window has had the
focus for a second in which no key was pressed, anew each time it gets the focus; nothing is chosen beforehand but what the
policy proposes; and Enter that is held down counts for nothing.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from PySide6.QtCore import QEvent, QModelIndex, QObject, QRect, QSize, QSocketNotifier, QSortFilterProxyModel, Qt, QTimer
from PySide6.QtGui import QFont, QKeyEvent, QStandardItem, QStandardItemModel
from PySide6.QtWidgets import (
    QApplication,
    QDialog,
    QFrame,
    QHBoxLayout,
    QLineEdit,
    QListView,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from cloison.errors import PeerError
from cloison.ui.colours import UNKNOWN
from cloison.ui.look import EDGE, breakable, label, square, stack, style
from cloison.ui.targets import order, shown
from cloison.wire import ask as wire

ARMING = 1000             # milliseconds of quiet focus before "Allow" can be pressed
MAX_INPUT = 2 * wire.MAX_REQUEST
WIDTH = 480               # pixels; the height follows from the texts
_MARGIN = 16
_ROWS = 7                 # targets that are seen without scrolling
_ENTER = (Qt.Key.Key_Return, Qt.Key.Key_Enter)
_TARGET = Qt.ItemDataRole.UserRole
_FOUND_BY = Qt.ItemDataRole.UserRole + 1
_PURPOSES = {
    "qubes.ClipboardPaste": "paste the clipboard's text into",
    "qubes.Filecopy": "copy files to",
    "qubes.Filecopy+allow-all-names": "copy files whose names may hold any character to",
    "qubes.OpenInVM": "open a file in",
    "qubes.OpenURL": "open a web address in",
    "qubes.StartApp": "start a program in",
    "qubes.VMExec": "run commands in",
    "qubes.VMShell": "run commands in",
}


class QuestionDialog(QDialog):
    """`answer` is the chosen target once it was accepted, else None."""

    def __init__(self, question: wire.Question, shades: Mapping[str, str], arming: int = ARMING) -> None:
        super().__init__(None, Qt.WindowType.Window | Qt.WindowType.WindowStaysOnTopHint)
        self.answer: str | None = None
        self._question, self._shades = question, shades
        self._armed = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(arming)
        self._timer.timeout.connect(self._arm)
        self._filter, self._list = QLineEdit(), QListView()
        self._allow, self._deny = QPushButton("&Allow"), QPushButton("&Deny")
        self._hint = label("", "hint")
        self._model = QSortFilterProxyModel(self)
        self._fill()
        self._lay_out()
        self._make_room()
        self._connect()
        self._propose()
        self._update()

    # -- making --------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        items = QStandardItemModel(self)
        for target in sorted(self._question.targets, key=order):
            shade = self._shades.get(target, UNKNOWN)
            item = QStandardItem(square(shade, disposable=target.startswith("@dispvm")), shown(target))
            item.setData(target, _TARGET)
            item.setData(f"{shown(target)} {target}", _FOUND_BY)
            item.setEditable(False)
            items.appendRow(item)
        self._model.setSourceModel(items)
        self._model.setFilterRole(_FOUND_BY)
        self._model.setFilterCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        self._list.setModel(self._model)
        self._list.setIconSize(QSize(20, 20))
        self._list.setUniformItemSizes(True)
        self._list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._list.setTextElideMode(Qt.TextElideMode.ElideMiddle)      # the chosen one's whole name is told below
        self._list.setFixedHeight(30 * min(_ROWS, max(2, len(self._question.targets))) + 16)

    def _lay_out(self) -> None:
        question = self._question
        shade = self._shades.get(question.source, UNKNOWN)
        self.setWindowTitle(f"{question.source} asks - Cloison")
        self.setStyleSheet(style(shade))
        self.setFixedWidth(WIDTH)
        edge, body = QFrame(), QWidget()
        edge.setObjectName("edge")
        stack(self, edge)
        stack(edge, label(breakable(question.source), "band"), body)
        column = QVBoxLayout(body)
        column.setSpacing(10)
        column.setContentsMargins(_MARGIN, 14, _MARGIN, _MARGIN)
        column.addWidget(label(f"wants to {_purpose(question)}"))
        column.addWidget(self._filter)
        column.addWidget(self._list)
        column.addWidget(label(breakable(_service(question)), "service"))
        column.addWidget(self._hint)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self._deny)
        buttons.addWidget(self._allow)
        column.addLayout(buttons)
        self._filter.setPlaceholderText("type to find a qube")
        self._filter.setMaxLength(128)
        self._filter.setClearButtonEnabled(True)
        self._allow.setObjectName("allow")
        for button in (self._allow, self._deny):
            button.setAutoDefault(False)

    def _make_room(self) -> None:
        """For the longest advice: buttons that move while somebody aims at them are pressed by accident."""
        longest = max((self._sentence(target) for target in self._question.targets), key=len)
        self._hint.ensurePolished()
        room = QRect(0, 0, WIDTH - 2 * (EDGE + _MARGIN), 1000)
        lines = self._hint.fontMetrics().boundingRect(room, Qt.TextFlag.TextWordWrap, longest)
        self._hint.setMinimumHeight(lines.height())

    def _connect(self) -> None:
        self._filter.textChanged.connect(self._filtered)
        self._filter.installEventFilter(self)
        self._list.installEventFilter(self)
        self._list.selectionModel().selectionChanged.connect(lambda *_: self._update())
        self._allow.clicked.connect(self._accepted)
        self._deny.clicked.connect(self.reject)

    def _propose(self) -> None:
        """Only what the policy proposes is chosen beforehand."""
        for row in range(self._model.rowCount()):
            index = self._model.index(row, 0)
            if index.data(_TARGET) == self._question.default_target:
                self._list.setCurrentIndex(index)
                self._list.scrollTo(index)
        self._filter.setFocus()

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _chosen(self) -> str | None:
        rows = self._list.selectionModel().selectedRows()
        return str(rows[0].data(_TARGET)) if rows else None

    def _filtered(self, text: str) -> None:
        """Typing narrows the list; a name typed whole is chosen, and nothing else is."""
        self._model.setFilterFixedString(text)
        self._list.clearSelection()
        self._list.setCurrentIndex(QModelIndex())
        for row in range(self._model.rowCount()):
            index = self._model.index(row, 0)
            if text and text in (index.data(_TARGET), index.data()):
                self._list.setCurrentIndex(index)
        self._update()

    def _step(self, by: int) -> None:
        """Move the choice in the list from the text field."""
        current = self._list.currentIndex()
        row = current.row() + by if current.isValid() else 0 if by > 0 else self._model.rowCount() - 1
        if 0 <= row < self._model.rowCount():
            self._list.setCurrentIndex(self._model.index(row, 0))

    def _accepted(self) -> None:
        target = self._chosen()
        if self._armed and target is not None:
            self.answer = target
            self.accept()

    # -- not by accident -------------------------------------------------------------------------------------------------

    def changeEvent(self, event: QEvent) -> None:
        """Each time the window gets the focus the second begins anew."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ActivationChange:
            self._armed = False
            if self.isActiveWindow():
                self._timer.start()
            else:
                self._timer.stop()
            self._update()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Keys, before the text field and the list see them."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            return self._key(event, in_filter=watched is self._filter)
        return super().eventFilter(watched, event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Those that neither took, as Escape; Enter on a button presses it."""
        armed = self._armed
        self._wait_for_quiet()
        if event.key() == Qt.Key.Key_Escape:
            self.reject()
        elif event.key() in _ENTER:
            self._entered(event, armed=armed)

    def _key(self, event: QKeyEvent, *, in_filter: bool) -> bool:
        armed = self._armed
        self._wait_for_quiet()
        key = event.key()
        if key in _ENTER:
            self._entered(event, armed=armed)
            return True
        if in_filter and key in (Qt.Key.Key_Down, Qt.Key.Key_Up):
            self._step(1 if key == Qt.Key.Key_Down else -1)
            return True
        return False

    def _entered(self, event: QKeyEvent, *, armed: bool) -> None:
        """`armed`: as it was before this key, which may have begun the second anew."""
        if self._deny.hasFocus():
            self.reject()
        elif armed and not event.isAutoRepeat():
            self._accepted()

    def _wait_for_quiet(self) -> None:
        """Who still types into what was there before this window doesn't read it yet."""
        if not self._armed and self.isActiveWindow():
            self._timer.start()

    def _arm(self) -> None:
        self._armed = self.isActiveWindow()
        self._update()

    def _update(self) -> None:
        target = self._chosen()
        self._allow.setEnabled(self._armed and target is not None)
        self._hint.setText(self._advice(target))

    def _advice(self, target: str | None) -> str:
        if not self._armed:
            return "Allow works once this window has had the focus for a second."
        if target is not None:
            return self._sentence(target)
        return "Choose where." if self._model.rowCount() else "No target has this in its name."

    def _sentence(self, target: str) -> str:
        """What pressing Allow would mean."""
        return f"Enter or Allow: {breakable(self._question.source)} to {breakable(shown(target))}."


def _purpose(question: wire.Question) -> str:
    """What the service is for, in words; one that we don't know is called by its name."""
    found = _PURPOSES.get(f"{question.service}{question.argument}") or _PURPOSES.get(question.service)
    return found or f"call {breakable(question.service)} in"


def _service(question: wire.Question) -> str:
    shown = f"{question.service}{question.argument}".removesuffix("+")
    return shown if len(shown) <= 160 else f"{shown[:157]}..."


def main(arming: int = ARMING) -> int:
    line = sys.stdin.buffer.readline(MAX_INPUT)
    order = json.loads(line)
    question = wire.parse(order["request"].encode("ascii"))
    if not isinstance(question, wire.Question):
        raise PeerError("only questions are shown in a window")
    application = QApplication(["cloison-ask"])
    application.setStyle("Fusion")
    application.setFont(QFont("Sans Serif"))
    dialog = QuestionDialog(question, order["colours"], arming)
    gone = QSocketNotifier(0, QSocketNotifier.Type.Read)
    gone.activated.connect(dialog.reject)
    dialog.show()
    dialog.raise_()
    dialog.activateWindow()
    dialog.exec()
    sys.stdout.buffer.write(wire.encode_answer(dialog.answer))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
