"""Fixtures of the tools' tests: a fake qubesd, fake wardens, the real qubesd on fake parts (tests/client/tools_fixtures.py)."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))

from tools_fixtures import paths, qubesd, real, root, warden  # noqa: F401
