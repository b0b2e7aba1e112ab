"""What the code and the documents cite of docs/reference is there: the file, and a section of that number."""
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "docs/reference"
TEXTS = ("src/**/*.py", "tests/**/*.py", "benchmarks/**/*.py", "docs/*.md", "docs/decisions/*.md", "README.md")
FILES = "|".join(path.stem for path in sorted(FACTS.glob("*.md")) if path.stem != "README")
NUMBER = r"\d+(?:\.\d+)*"
CITED = re.compile(rf"(?<![\w/-])(?:reference/)?({FILES})\.md((?:`?(?: |, | and | to |-)(?:{NUMBER}))*)")
ANY = re.compile(r"\breference/([\w-]+)\.md")


def texts() -> Iterator[tuple[str, str]]:
    """Name of each file that may cite, and its text with every line's end and indentation a single space."""
    for pattern in TEXTS:
        for path in sorted(ROOT.glob(pattern)):
            yield str(path.relative_to(ROOT)), re.sub(r"\s*\n\s*#?\s*", " ", path.read_text())


def sections(name: str) -> set[str]:
    return set(re.findall(rf"^#+ ({NUMBER})\.? ", (FACTS / f"{name}.md").read_text(), re.MULTILINE))


def test_every_citation_has_its_section() -> None:
    cited = [(where, found[1], number) for where, text in texts() for found in CITED.finditer(text)
             for number in re.findall(NUMBER, found[2])]
    assert len(cited) > 100, "citations are found at all"
    there = {name: sections(name) for name in FILES.split("|")}
    assert [each for each in cited if each[2] not in there[each[1]]] == []


def test_no_file_is_cited_that_is_not_there() -> None:
    named = {name for _where, text in texts() for name in ANY.findall(text)}
    assert named and [name for name in sorted(named) if not (FACTS / f"{name}.md").exists()] == []


def test_every_file_is_in_the_index() -> None:
    index = (FACTS / "README.md").read_text()
    assert [name for name in FILES.split("|") if f"({name}.md)" not in index] == []
