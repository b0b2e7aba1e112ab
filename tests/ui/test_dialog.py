"""The window that asks, on a real display with a window manager, by real clicks and keys."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ui.display import Display, asking, display, missing, question

from cloison.wire import ask as wire

ROW = 30
FIRST_ROW = 160          # below the window's upper edge
HOUR = 3_600_000         # milliseconds: the machine may be slow, the second must not be over


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Display]:
    if lacking := missing():
        pytest.skip(lacking)             # one failure says it, below
    with display(tmp_path_factory.mktemp("display")) as found:
        yield found


def test_the_programs_are_there() -> None:
    if lacking := missing():
        pytest.fail(lacking, pytrace=False)


def test_a_target_is_clicked_and_allowed(shown: Display) -> None:
    with asking(shown, question()) as dialog:
        dialog.click(120, FIRST_ROW + ROW)               # untrusted, vault, work, ...
        dialog.until_allowed()
        dialog.click(-130, -50)
        assert dialog.answer() == b"allow:vault"


def test_by_keyboard_alone(shown: Display) -> None:
    with asking(shown, question()) as dialog:
        shown.do("type", "wor")
        shown.do("key", "Down")
        dialog.until_allowed()
        shown.do("key", "Return")
        assert dialog.answer() == b"allow:work"


def test_a_name_typed_whole_is_chosen(shown: Display) -> None:
    with asking(shown, question()) as dialog:
        shown.do("type", "vault")
        dialog.until_allowed()
        shown.do("key", "Return")
        assert dialog.answer() == b"allow:vault"


def test_a_disposable_is_found_by_what_is_shown_of_it(shown: Display) -> None:
    with asking(shown, question()) as dialog:
        shown.do("type", "NEW disp")
        shown.do("key", "Down")
        dialog.until_allowed()
        shown.do("key", "Tab", "Tab", "Tab", "space")        # the list, Deny, Allow
        assert dialog.answer() == b"allow:@dispvm:dvm"


@pytest.mark.parametrize("keys", [["Escape"], ["alt+F4"], ["alt+d"], ["Tab", "Tab", "space"], ["Tab", "Tab", "Return"]])
def test_ways_to_say_no(shown: Display, keys: list[str]) -> None:
    with asking(shown, question("work", default="work")) as dialog:
        dialog.until_allowed()
        shown.do("key", *keys)
        assert dialog.answer() == b"deny"


def test_nothing_is_chosen_beforehand(shown: Display) -> None:
    """Enter, a click on Allow, a text that no target has: none of them says yes."""
    with asking(shown, question("work")) as dialog:
        shown.do("key", "Return")
        dialog.click(-130, -50)
        shown.do("type", "nothing")
        shown.do("key", "Return", "Down", "Return")
        assert not dialog.can_allow()
        shown.do("key", "ctrl+a", "BackSpace", "Down")       # now it is chosen
        dialog.until_allowed()
        shown.do("key", "Escape")
        assert dialog.answer() == b"deny"


def test_what_the_policy_proposes_is_chosen_after_a_second_of_focus(shown: Display) -> None:
    with asking(shown, question("vault", "work", default="work")) as dialog:
        dialog.until_allowed()
        shown.do("key", "Return")
        assert dialog.answer() == b"allow:work"


def test_keys_meant_for_another_window_say_no_yes(shown: Display) -> None:
    """Somebody types on while the window takes the focus."""
    with asking(shown, question("work", default="work"), arming=HOUR) as dialog:
        for _ in range(5):
            shown.do("key", "--delay", "20", "Return", "Return", "space", "Return", "alt+a", "Return")
        assert not dialog.can_allow()
        assert dialog.process.poll() is None
        shown.do("key", "Escape")
        assert dialog.answer() == b"deny"


def test_each_key_makes_the_second_begin_anew(shown: Display) -> None:
    program = """if True:
        from PySide6.QtCore import Qt
        from PySide6.QtTest import QTest
        from PySide6.QtWidgets import QApplication
        from cloison.ui.dialog import QuestionDialog
        from cloison.wire.ask import Question
        application = QApplication([])
        dialog = QuestionDialog(Question("untrusted", "x", "+", ("work",), "work", {}), {}, 3_600_000)
        dialog.show()
        assert QTest.qWaitForWindowActive(dialog, 30_000)
        dialog._timer.stop()
        QTest.keyClick(dialog._filter, Qt.Key.Key_A)
        assert dialog._timer.isActive()
    """
    subprocess.run([sys.executable, "-P", "-c", program], env=shown.environ, check=True)


def test_a_click_in_the_first_second_says_no_yes(shown: Display) -> None:
    """Somebody clicks where another window was a moment ago."""
    with asking(shown, question("work", default="work"), arming=HOUR) as dialog:
        for _ in range(3):
            dialog.click(-130, -50)
        assert not dialog.can_allow()
        assert dialog.process.poll() is None
        shown.do("key", "Escape")
        assert dialog.answer() == b"deny"


def test_long_names_are_seen_whole_and_move_no_button(shown: Display) -> None:
    """Text that is cut off could hide what tells two qubes apart; it goes on in the next line, in a window of the same width."""
    caller = "u" + "W" * 62
    asked = wire.Question(caller, "x" * 100, "+" + "y" * 400, ("b", "m" * 63, "work"), "", {})
    with asking(shown, question()) as dialog:
        width, height = dialog.size()
        shown.do("key", "Escape")
        dialog.answer()
    with asking(shown, asked) as dialog:
        dialog.until_drawn()
        before = dialog.size()
        assert before[0] == width and before[1] > height
        for _ in asked.targets:
            shown.do("key", "Down")
            dialog.until_allowed()                       # the button is where it was
            assert dialog.size() == before
        shown.do("key", "Escape")
        assert dialog.answer() == b"deny"


def test_without_the_focus_it_can_not_be_allowed(shown: Display) -> None:
    with subprocess.Popen(["xev", "-geometry", "100x60+0+0"], env=shown.environ, stdout=subprocess.DEVNULL) as other:
        window = shown.do("search", "--sync", "--onlyvisible", "--name", "Event Tester").split()[-1]
        with asking(shown, question("work", default="work")) as dialog:
            dialog.until_allowed()
            shown.do("windowfocus", "--sync", window)
            while dialog.can_allow():
                assert dialog.process.poll() is None
            shown.do("key", "Return", "alt+a")
            assert dialog.process.poll() is None
            shown.do("windowfocus", "--sync", dialog.window)
            dialog.until_allowed()
            shown.do("key", "Return")
            assert dialog.answer() == b"allow:work"
        other.terminate()


def test_the_frame_has_the_callers_colour(shown: Display) -> None:
    with asking(shown, question()) as dialog:
        dialog.until_drawn()
        width, height = dialog.size()
        edges = [(1, height // 2), (width - 2, height // 2), (width // 2, 1), (width // 2, height - 2)]
        assert [dialog.pixel(*edge) for edge in edges] == ["#CC0000"] * 4
        shown.do("key", "Escape")
        assert dialog.answer() == b"deny"


def test_targets_have_their_colours_and_the_window_stays_on_top(shown: Display) -> None:
    with asking(shown, question("work", "vault", default="work")) as dialog:
        dialog.until_allowed()
        assert [dialog.pixel(45, FIRST_ROW + row * ROW) for row in (0, 1)] == ["#000000", "#3465A4"]
        state = subprocess.run(["xprop", "-id", dialog.window, "_NET_WM_STATE"], env=shown.environ, capture_output=True,
                               text=True, check=True).stdout
        assert "_NET_WM_STATE_ABOVE" in state
        shown.do("key", "Escape")
        assert dialog.answer() == b"deny"


def test_a_question_that_nobody_waits_for_any_more_goes_away(shown: Display) -> None:
    with asking(shown, question()) as dialog:
        assert dialog.process.stdin is not None
        dialog.process.stdin.close()
        assert dialog.answer() == b"deny"


@pytest.mark.parametrize("order", [b"", b"{}\n", b'{"request": "x", "colours": {}}\n'])
def test_what_is_no_question_fails(shown: Display, order: bytes) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "cloison.ui.dialog"], input=order, env=shown.environ, capture_output=True, check=False)
    assert result.returncode != 0
    assert result.stdout == b""


def test_without_a_display_it_fails(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-P", "-m", "cloison.ui.dialog"], input=b"{}\n", capture_output=True, check=False,
                            env={"PATH": "/usr/bin:/bin"})
    assert result.returncode != 0
