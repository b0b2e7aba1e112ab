"""docs/services.md is true: every service of a template is in it, and what it names is there and speaks of the service."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.guest.programs import SOURCE

from cloison.templates.agent_package import LINKS

ROOT = Path(__file__).parents[2]
SERVICES = Path(SOURCE) / "cloison/guest/services"
RPC = "etc/qubes-rpc/"
ROWS = re.findall(r"^\| ([a-z]+\.\w+) \| ([^|]*) \| ([^|]*) \|$", (ROOT / "docs/services.md").read_text(), re.MULTILINE)


def test_every_service_is_in_the_table() -> None:
    shipped = {path.name for path in SERVICES.iterdir()} | {link.removeprefix(RPC) for link in LINKS if link.startswith(RPC)}
    assert [name for name, _, _ in ROWS] == sorted(shipped - {"__pycache__"})


@pytest.mark.parametrize(("name", "where", "test"), ROWS)
def test_what_the_table_names_is_there(name: str, where: str, test: str) -> None:
    for path in re.findall(r"`((?:guest|qrexec)/[^`]+)`", where):
        assert (Path(SOURCE) / "cloison" / path).is_file()
    link = LINKS.get(RPC + name)
    assert (link is not None) == where.startswith("link to") and (link is None or f"`{link}`" in where)
    if test.startswith("`"):
        text = (ROOT / test.strip("`")).read_text()
        spoken_of = {name, name.removeprefix("qubes.")} | set(re.findall(r"rpc/(\w+)\.py", where))
        assert any(word in text for word in spoken_of), f"{test} says nothing of {name}"
