"""docs/architecture.md is true of the tree: what it names is there, and every package is on it."""
from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "architecture.md").read_text()
PLACES = (ROOT, ROOT / "docs", ROOT / "src/cloison", ROOT / "src/cloison/qrexec", ROOT / "src/cloison/qrexec/policyd")
ELSEWHERE = ("run/", "data/", "config/", "DIR/")          # folders of an installation


def named() -> set[str]:
    """Paths between backquotes, `a/{b,c}.py` as two."""
    found: set[str] = set()
    for path in re.findall(r"`([\w/{},.-]+)`", MAP):
        before, _, rest = path.partition("{")
        inside, _, after = rest.partition("}")
        found.update(f"{before}{each}{after}" for each in inside.split(","))
    return {path for path in found if ("/" in path or path.endswith(".py")) and not path.startswith(ELSEWHERE)}


def test_what_the_map_names_exists() -> None:
    assert len(named()) > 50
    assert [path for path in sorted(named()) if not any((place / path).exists() for place in PLACES)] == []


def test_every_package_is_on_the_map() -> None:
    packages = [path.parent for path in (ROOT / "src/cloison").glob("*/__init__.py")]
    assert len(packages) > 10
    assert [package.name for package in packages if f"`{package.name}/`" not in MAP] == []
