"""Mistakes and malice at the tools: one sentence, exit status 1 or 2 (wrong usage, as in Qubes OS), nothing changed."""
from __future__ import annotations

import sqlite3

import pytest
from tests.boot.place import Place

pytestmark = pytest.mark.boot

HOSTILE = (
    "", " ", "a b", "a\nb", "a" * 32, "ü", "1abc", "_x", ".hidden", "../../etc/passwd", "a/b", "/", "$(id)", "`id`", "a;id", "a|b",
    "a'b", 'a"b', "%s%n", "a\x1b[31m", "a\x7f", "\udcff", "@dispvm", "@anyvm", "x-dm", "none", "Domain-0", "uuid:0",
)
UNKNOWN = ("no-such-qube", "uuid:00000000-0000-4000-8000-000000000000")
TOOLS = (["qvm-start"], ["qvm-kill"], ["qvm-shutdown"], ["qvm-pause"], ["qvm-unpause"], ["qvm-remove", "--force"],
         ["qvm-prefs"], ["qvm-features"], ["qvm-tags"], ["qvm-service"])


def dump(place: Place) -> list[str]:
    store = sqlite3.connect(f"file:{place.paths.store}?mode=ro", uri=True)
    try:
        return list(store.iterdump())
    finally:
        store.close()


def assert_refused(place: Place, words: list[str]) -> None:
    result = place.run(words)
    text = result.stderr.decode("utf-8", "replace")
    assert result.returncode in (1, 2), (words, result.returncode, text)
    errors = [line for line in text.splitlines() if not line.startswith("usage:")]
    assert 1 <= len(errors) <= 2, (words, text)                     # the sentence, and perhaps advice
    assert "Traceback" not in text and "\x1b" not in text, (words, text)


@pytest.mark.parametrize("name", [*HOSTILE, "dom0"], ids=ascii)
def test_no_qube_of_a_bad_name_is_made(cloison: Place, name: str) -> None:
    before = (dump(cloison), cloison.files())
    assert_refused(cloison, ["qvm-create", "--label", "red", "--", name])
    assert (dump(cloison), cloison.files()) == before


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool[0])
def test_no_tool_acts_on_what_is_no_qube(cloison: Place, tool: list[str]) -> None:
    before = (dump(cloison), cloison.files())
    for name in (*UNKNOWN, "a\nb", "../../etc/passwd", "\udcff"):
        assert_refused(cloison, [*tool, "--", name])
    assert (dump(cloison), cloison.files()) == before


def test_no_command_runs_in_what_is_no_qube(cloison: Place) -> None:
    for name in (*UNKNOWN, *HOSTILE):
        assert_refused(cloison, ["qvm-run", "--", name, "true"])
    for user in ("", "a b", "root:", "$(id)", "a\nb"):
        assert_refused(cloison, ["qvm-run", f"--user={user}", "no-such-qube", "true"])


def test_bad_values_are_refused_and_named(cloison: Place) -> None:
    cloison.create("victim")
    before = (dump(cloison), cloison.files())
    for prop, value in (("memory", "-1"), ("memory", "a lot"), ("vcpus", "0"), ("label", "octarine"), ("template", "dom0"),
                        ("netvm", "victim"), ("no_such_property", "1"), ("kernel", "../x")):
        assert_refused(cloison, ["qvm-prefs", "victim", prop, value])
    assert (dump(cloison), cloison.files()) == before
    cloison.remove("victim")
