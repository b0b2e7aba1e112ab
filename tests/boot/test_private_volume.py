"""A private volume that is no file system, or a broken one, keeps no qube from starting; and what custom-persist keeps."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.boot.place import Place

pytestmark = pytest.mark.boot
SIZE = 2 << 30


def import_private(place: Place, folder: Path, beginning: bytes) -> None:
    image = folder / "private.img"
    with image.open("wb") as file:
        file.write(beginning)
        file.truncate(SIZE)
    place.ok(["qvm-volume", "import", "work:private", str(image)])


def problem(place: Place) -> str:
    return str(json.loads(place.ok(["cloison", "status", "--json"]))["problems"].get("work", ""))


def test_zeros_are_formatted_and_damage_is_done_without_and_said(cloison: Place, tmp_path: Path) -> None:
    cloison.create("work")
    import_private(cloison, tmp_path, b"")
    assert cloison.sh("work", "findmnt -no FSTYPE /rw && echo kept > ~/note && id -un") == b"ext4\nuser\n"
    assert problem(cloison) == ""
    cloison.halt("work")
    assert cloison.sh("work", "cat ~/note") == b"kept\n"
    cloison.halt("work")

    import_private(cloison, tmp_path, b"no file system" * 100000)
    assert cloison.sh("work", "findmnt -no FSTYPE /rw || echo none; id -un") == b"none\nuser\n"
    assert "qvm-volume revert work:private" in problem(cloison)
    cloison.kill("work")
    cloison.ok(["qvm-volume", "revert", "work:private"])
    assert cloison.sh("work", "cat ~/note") == b"kept\n"
    assert problem(cloison) == ""
    cloison.remove("work")


def test_custom_persist_keeps_what_is_listed(cloison: Place) -> None:
    cloison.create("work")
    cloison.ok(["qvm-service", "--enable", "work", "custom-persist"])
    cloison.ok(["qvm-features", "work", "custom-persist.own", "dir:user:user:0750:/var/lib/own"])
    assert cloison.sh("work", "stat -c '%U %a' /var/lib/own; echo x > /var/lib/own/kept; echo x > ~/lost") == b"user 750\n"
    cloison.halt("work")
    assert cloison.sh("work", "ls /var/lib/own; ls ~") == b"kept\n"
    cloison.remove("work")
