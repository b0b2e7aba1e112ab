"""The examples of docs/client.md, for whoever runs them: on fake machines or real ones."""
from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "client.md"
NEEDS_MACHINE = "<!-- needs a machine -->\n"


def examples(*, machine: bool) -> list[str]:
    """Those that need one, or those that don't."""
    found = re.findall(rf"({re.escape(NEEDS_MACHINE)})?```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return [code for needs_machine, code in found if bool(needs_machine) == machine]


def perform(codes: list[str], scope: dict[str, object]) -> None:
    """In their order, as one program."""
    for code in codes:
        exec(compile(code, str(DOCUMENT), "exec"), scope)  # noqa: S102 our own document


def check_output(output: str) -> None:
    """Of the examples with programs."""
    for expected in ("3 ", "it says 42", "b'got one\\n'\n0\n143", "b'echo hello\\n'", "['0\\n', '1\\n', '2\\n']", "b'3\\n'\n0\n"):
        assert expected in output, output
