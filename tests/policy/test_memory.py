"""Files in memory behave as a folder does."""
from __future__ import annotations

import pytest

from cloison.policy.memory import MappingReader
from cloison.policy.parse import Root

READER = MappingReader({Root.MAIN: {"a": b"1", "d/b": b"2", "d/e/c": b"3"}, Root.RUNTIME: {}, Root.LEGACY: {}})


@pytest.mark.parametrize(("folder", "names"), [(".", ["a"]), ("d", ["b"]), ("d/", ["b"]), ("./d/e/../e", ["c"])])
def test_names(folder: str, names: list[str]) -> None:
    assert list(READER.names(Root.MAIN, folder)) == names


def test_an_empty_root_is_a_folder() -> None:
    assert list(READER.names(Root.RUNTIME, ".")) == []


@pytest.mark.parametrize("folder", ["a", "x", "d/x", "..", "/d"])
def test_what_is_no_folder(folder: str) -> None:
    with pytest.raises(OSError):
        READER.names(Root.MAIN, folder)


@pytest.mark.parametrize("path", ["x", "d", "../a", "/a", ""])
def test_what_is_no_file(path: str) -> None:
    with pytest.raises(OSError):
        READER.content(Root.MAIN, path)


def test_content() -> None:
    assert READER.content(Root.MAIN, "d/../d/e/c") == b"3"
