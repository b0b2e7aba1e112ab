"""Volumes of real qubes: they grow while the qube runs and while it is off, and what is imported, cloned and reverted is there."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.boot.place import TEMPLATE, Place

pytestmark = pytest.mark.boot
GIB = 1 << 30


@pytest.fixture
def work(cloison: Place) -> Iterator[Place]:
    """AppVM `work`, off."""
    cloison.create("work", "--template", TEMPLATE)
    yield cloison
    cloison.remove("work", "copy")


def file_system(place: Place, path: str) -> int:
    """Bytes of the file system there, as the guest sees it."""
    return int(place.sh("work", f"df -B1 --output=size {path} | tail -1"))


def digest(place: Place, qube: str = "work") -> str:
    return place.sh(qube, "sha256sum < /home/user/data").decode()


def test_private_and_root_grow_under_a_running_qube_and_at_its_next_start(work: Place) -> None:
    """Of a running one by qubes.ResizeDisk, which the host calls."""
    work.ok(["qvm-start", "work"])
    work.sh("work", "head -c 5000000 /dev/urandom > data; sync")
    before = digest(work)
    root = int(work.ok(["qvm-volume", "info", "work:root", "size"]))
    work.ok(["qvm-volume", "resize", "work:private", "3GiB"])
    work.ok(["qvm-volume", "resize", "work:root", str(root + GIB)])
    assert file_system(work, "/rw") > 2.7 * GIB
    assert file_system(work, "/") > 0.9 * (root + GIB)
    assert digest(work) == before
    work.halt("work")
    assert int(work.ok(["qvm-volume", "info", "work:root", "size"])) == root, "a snapshot's growth is gone with it"
    work.ok(["qvm-volume", "resize", "work:private", "4GiB"])
    work.ok(["qvm-start", "work"])
    assert file_system(work, "/rw") > 3.7 * GIB
    assert digest(work) == before


def test_what_a_qube_wrote_is_cloned_reverted_exported_and_imported(work: Place) -> None:
    work.ok(["qvm-start", "work"])
    work.sh("work", "echo first > data; sync")
    work.halt("work")
    work.ok(["qvm-start", "work"])
    work.sh("work", "echo second > data; sync")
    refused = work.run(["qvm-volume", "revert", "work:private"])
    assert refused.returncode == 1 and b"shut it down first" in refused.stderr
    work.halt("work")
    work.create("copy", "--template", TEMPLATE)
    work.ok(["qvm-volume", "clone", "-f", "work:private", "copy:private"])
    work.ok(["qvm-volume", "revert", "work:private"])
    work.ok(["qvm-start", "work"])
    work.ok(["qvm-start", "copy"])
    assert work.sh("work", "cat data") == b"first\n"
    assert work.sh("copy", "cat data") == b"second\n"
    work.halt("work")
    work.halt("copy")
    work.ok(["qvm-volume", "clear", "-f", "copy:private"])
    work.ok(["qvm-start", "copy"])
    assert work.sh("copy", "ls") == b""


def test_a_private_volume_that_may_not_be_written_to_never_changes(work: Place) -> None:
    work.ok(["qvm-start", "work"])
    work.sh("work", "echo kept > data; sync")
    work.kill("work")
    work.ok(["qvm-volume", "set", "work:private", "rw", "False"])
    for _ in range(2):
        work.ok(["qvm-start", "work"])
        assert work.sh("work", "cat data; echo changed > data; ls") == b"kept\ndata\n"
        work.halt("work")
    work.ok(["qvm-volume", "set", "work:private", "rw", "True"])
    work.ok(["qvm-start", "work"])
    assert work.sh("work", "cat data") == b"kept\n"


def test_a_qube_lives_on_whole_raw_files(work: Place) -> None:
    """The reflink driver's disks, copied where the file system shares no blocks."""
    work.ok(["qvm-pool", "add", "raw", "file-reflink", "-o", f"dir_path={work.root}/raw", "-o", "setup_check=False"])
    work.ok(["qvm-create", "--label", "red", "--template", TEMPLATE, "-p", "private=raw", "copy"])
    work.ok(["qvm-start", "copy"])
    work.sh("copy", "head -c 3000000 /dev/urandom > data; sync")
    before = digest(work, "copy")
    work.ok(["qvm-volume", "resize", "copy:private", "3GiB"])
    work.halt("copy")
    work.ok(["qvm-start", "copy"])
    assert digest(work, "copy") == before
    assert int(work.sh("copy", "df -B1 --output=size /rw | tail -1")) > 2.7 * GIB
    work.remove("copy")
    work.ok(["qvm-pool", "remove", "raw"])
    assert not (work.root / "raw").exists()


def test_a_disposable_has_what_its_template_has_grown_to(work: Place) -> None:
    work.create("copy", "--template", TEMPLATE, "--property", "template_for_dispvms=True")
    work.ok(["qvm-volume", "resize", "copy:private", "3GiB"])
    output = work.ok(["qvm-run", "-p", "--dispvm=copy", "df -B1 --output=size /rw | tail -1"])
    assert int(output) > 2.7 * GIB
