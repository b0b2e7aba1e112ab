"""Which Debian a template is."""
from __future__ import annotations

import pytest

from cloison.templates import suites


@pytest.mark.parametrize(("name", "suite"), [
    ("debian-12", "bookworm"), ("debian-13", "trixie"), ("debian-14", "forky"), ("debian-13-dev", "trixie"), ("debian13", "trixie"),
    ("trixie", "trixie"), ("bookworm-minimal", "bookworm"), ("debian-trixie", "trixie"), ("sid", "sid"),
    ("debian-testing", "testing"),
    ("13", None), ("nonsense", None), ("debian", None), ("debian-11", None), ("debian-130", None), ("d13", None),
    ("fedora-13", None),
    ("work-13", None), ("my-trixie", None), ("", None), ("debian-", None), ("Debian-13", None),
])
def test_names(name: str, suite: str | None) -> None:
    assert suites.of_name(name) == suite


@pytest.mark.parametrize(("name", "option", "version", "suite"), [
    ("debian-13", None, "", "trixie"), ("debian-13", "trixie", "", "trixie"), ("debian-13", "13", "12", "trixie"),
    ("dev", "bookworm", "", "bookworm"), ("dev", "12", "13", "bookworm"), ("dev", "debian-12", "", "bookworm"),
    ("dev", None, "12", "bookworm"),
    ("dev", "kali-rolling", "", "kali-rolling"), ("sid", "sid", "", "sid"), ("debian-12", None, "13", "bookworm"),
])
def test_what_is_chosen(name: str, option: str | None, version: str, suite: str) -> None:
    assert suites.chosen(name, option, version) == suite


@pytest.mark.parametrize(("name", "option", "version", "words"), [
    ("nonsense", None, "", "--suite trixie"), ("debian-11", None, "", "--suite trixie"), ("dev", None, "11", "--suite trixie"),
    ("debian-13", "bookworm", "", "debian-13 says trixie, and --suite says bookworm"), ("debian-12", "13", "", "says bookworm"),
    ("trixie", "sid", "", "says trixie"),
])
def test_nothing_is_guessed(name: str, option: str | None, version: str, words: str) -> None:
    with pytest.raises(suites.WhichDebian, match=words):
        suites.chosen(name, option, version)


def test_the_usual_template_names_its_suite() -> None:
    assert suites.chosen(suites.USUAL, None) == "trixie"


@pytest.mark.parametrize(("suite", "words"), [("trixie", "Debian 13 (trixie)"), ("sid", "Debian's sid")])
def test_in_words(suite: str, words: str) -> None:
    assert suites.described(suite) == words
