"""Nothing that gets into a record of a log can drive a terminal or pass for another record (lesson 15, QSB-087)."""
from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from tests.patience import PATIENCE

from cloison.runtime.say import harmless

PROGRAM = """
import logging
from cloison.runtime.logs import log_to_stderr
log_to_stderr()
logging.getLogger("x").warning("the qube says %s", "\\x1b]52;c;cm0=\\x07 \\x9b2J \\u202e\\r\\nERROR cloison: all is lost")
try:
    raise ValueError("\\x1b[2J\\nERROR cloison: forged")
except ValueError:
    logging.getLogger("x").exception("it failed")
"""


def test_qsb_087_a_record_is_harmless_and_can_not_pass_for_two() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, timeout=PATIENCE).stderr
    records = [line for line in said.split(b"\n") if line and not line.startswith(b" ")]
    assert records == [
        rb"WARNING x: the qube says \x1b]52;c;cm0=\x07 \x9b2J \u202e\x0d", b"ERROR x: it failed"]
    assert b"    ERROR cloison: forged" in said
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in said)


@given(st.text())
def test_qsb_087_any_text_is_printable_lines(text: str) -> None:
    first, *others = harmless(text).split("\n")
    assert all(line.isascii() and (line.isprintable() or not line) for line in (first, *others))
    assert all(line.startswith("    ") for line in others)


def test_plain_text_stays() -> None:
    assert harmless("work is running\n") == "work is running"
