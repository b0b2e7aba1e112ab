"""docs/services.md is true of the host's services: each is in it, can be run, is in the policy that it names, and has its test."""
from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cloison.qrexec.host.host_service import SHIPPED

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src/cloison"
POLICY = SOURCE / "policy/default"
ROW = r"^\| ([\w.]+) \| ([^|]+) \| ([^|]+) \| `([^|]+)` \|$"
ROWS = re.findall(ROW, (ROOT / "docs/services.md").read_text(), re.MULTILINE)


def test_every_program_is_in_the_table() -> None:
    assert [name for name, _, _, _ in ROWS] == sorted(os.listdir(SHIPPED))


@pytest.mark.parametrize(("name", "where", "policy", "test"), ROWS)
def test_what_the_table_says_is_so(name: str, where: str, policy: str, test: str) -> None:
    program = Path(SHIPPED) / name
    assert os.access(program, os.X_OK), "it could not be started"
    if program.is_symlink():
        assert where == f"link to `{os.readlink(program)}`"
    else:
        module = where.strip("`")
        assert (SOURCE / module).is_file()
        assert f"from cloison.{module.removesuffix('.py').replace('/', '.')} import main" in program.read_text()
    rule = re.compile(rf"^(?:!include-service\s+)?{re.escape(name)}\s", re.MULTILINE)
    named = {path.name for path in POLICY.glob("*.policy") if rule.search(path.read_text())}
    assert set(re.findall(r"`([^`]+)`", policy)) == named
    assert bool(named) != policy.startswith("none: denied")
    assert name in (ROOT / test).read_text(), f"{test} says nothing of {name}"
