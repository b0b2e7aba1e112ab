"""Fixtures of the tools' tests: a fake qubesd, fake wardens, the real qubesd on fake parts (tests/client/tools_fixtures.py)."""
from __future__ import annotations

import sys
from pathlib import Path

from tests.patience import no_endless_wait  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))

from tools_fixtures import qubesd, real, root, warden  # noqa: F401
