"""Services of the host: a file in run/qubes-service for each feature `service.X` that dom0 has (reference/admin-api.md 11.2).

Programs of dom0 look there, as those of a qube look into its own folder of that name; `cloison dom0` shows it where they expect it.
"""
from __future__ import annotations

import os
from collections.abc import Mapping

PREFIX = "service."


def sync(folder: str, features: Mapping[str, str]) -> None:
    """Make the files be those of the features: names are checked when a feature is set. Raises OSError."""
    wanted = {name.removeprefix(PREFIX) for name, value in features.items() if name.startswith(PREFIX) and value}
    os.makedirs(folder, mode=0o700, exist_ok=True)
    present = set(os.listdir(folder))
    for name in present - wanted:
        os.unlink(os.path.join(folder, name))
    for name in wanted - present:
        os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
