"""Programs of the distribution that Cloison runs: found by name, run by argv only."""
from __future__ import annotations

import os
import shutil

from cloison.errors import HostError


class ProgramMissing(HostError):
    """A program that Cloison needs is not installed."""

    hint = "`cloison doctor` names every missing package and how to install it."


def find(program: str) -> str:
    """Full path. An ordinary user's PATH often lacks /usr/sbin, where half of these live. Raises ProgramMissing."""
    path = shutil.which(program, path=os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin")
    if path is None:
        raise ProgramMissing(f"{program} is not installed")
    return path
