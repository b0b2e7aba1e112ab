"""Which archives a build uses, from apt configurations as hosts have them."""
from __future__ import annotations

from pathlib import Path

import pytest

from cloison.templates import sources
from cloison.templates.sources import Source

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/x.gpg

Types: deb
URIs: https://other.example/tools
Suites: bookworm
Components: extra

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm-security
Components: main
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://lines.example/debian bookworm main non-free # trailing
deb-src http://lines.example/debian bookworm main
deb http://lines.example/debian bookworm-security main
deb cdrom:[Debian]/ bookworm main
"""


def apt(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


@pytest.mark.parametrize(("files", "expected"), [
    ({}, []),
    ({"sources.list.d/debian.sources": DEB822},
     [Source("http://mirror.example/debian", "bookworm"), Source("http://mirror.example/debian", "bookworm-updates")]),
    ({"sources.list": ONE_LINE},
     [Source("http://lines.example/debian", "bookworm"), Source("http://lines.example/debian", "bookworm-security")]),
    ({"sources.list": "deb http://x.example/ubuntu jammy main\n"}, []),
    ({"sources.list": "deb http://x.example/debian bookworm-updates main\n"}, []),
    ({"sources.list": "deb\ndeb [ http://x.example/debian bookworm\n"}, []),
    ({"sources.list.d/off.sources": DEB822.replace("Types: deb\n# a", "Types: deb\nEnabled: no\n# a")}, []),
    ({"sources.list.d/note.txt": ONE_LINE}, []),
])
def test_host_sources(tmp_path: Path, files: dict[str, str], expected: list[Source]) -> None:
    assert sources.host_sources("bookworm", apt(tmp_path, files)) == expected


def test_host_mirror_is_for_the_build_only(tmp_path: Path) -> None:
    folder = apt(tmp_path, {"sources.list": ONE_LINE})
    assert all("lines.example" in line for line in sources.build_lines("bookworm", None, folder))
    assert "lines.example" not in sources.image_text("bookworm", None)


def test_named_mirror_is_for_both(tmp_path: Path) -> None:
    folder = apt(tmp_path, {"sources.list": ONE_LINE})
    lines = sources.build_lines("trixie", "http://named.example/d", folder)
    assert [line.split()[-3:] for line in lines][:2] == [
        ["http://named.example/d", "trixie", "main"], ["http://named.example/d", "trixie-updates", "main"]]
    assert sources.image_text("sid", "http://named.example/d") == "deb http://named.example/d sid main\n"
