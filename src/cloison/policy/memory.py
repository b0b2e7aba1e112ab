"""Policy files held in memory: for replays, and for trying a change before it is written."""
from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from cloison.policy.parse import Root


class MappingReader:
    """Policy files from memory: a mapping of path to content for each root. Folders are what paths imply."""

    def __init__(self, roots: Mapping[Root, Mapping[str, bytes]]) -> None:
        self._roots = roots

    def names(self, root: Root, folder: str) -> Sequence[str]:
        prefix = _below(folder)
        prefix = "" if prefix == "." else f"{prefix}/"
        inside = [path[len(prefix):] for path in self._roots[root] if path.startswith(prefix)]
        if prefix and not inside:
            raise NotADirectoryError("no such folder")
        return [name for name in inside if "/" not in name]

    def content(self, root: Root, path: str) -> bytes:
        try:
            return self._roots[root][_below(path)]
        except KeyError:
            raise FileNotFoundError("no such file") from None


def _below(path: str) -> str:
    return posixpath.normpath(path)
