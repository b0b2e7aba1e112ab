"""A file system in one qube, attached to another: read, written, taken back, lost; and what survives qubesd."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.boot.place import Place, is_up

pytestmark = pytest.mark.boot
MAKE = """
set -e
truncate -s 32M /var/tmp/disk.img
mkfs.ext4 -q -L GIVEN /var/tmp/disk.img
losetup -f --show /var/tmp/disk.img
"""
MOUNTED = "set -e; udevadm settle; mkdir -p /mnt/x; mount {} /dev/xvdi /mnt/x; {}; umount /mnt/x"
# What a guest does with a disk that has gone under it: an error at last, never a wait without end.
# By what came, not by dd's status: a disk that is gone has no bytes left, and that is an end of file.
READ_ALL = ("size=$(blockdev --getsize64 /dev/xvdi 2>/dev/null); "
            '[ "$(dd if=/dev/xvdi bs=64k 2>/dev/null | wc -c)" = "${size:-unknown}" ] && echo whole || echo failed')


@pytest.fixture
def two(cloison: Place) -> Iterator[Place]:
    """`backend` has loop0, `frontend` runs."""
    for name in ("backend", "frontend"):
        cloison.create(name)
        cloison.ok(["qvm-start", name])
    with cloison.events() as watch:
        assert cloison.sh("backend", MAKE, user="root") == b"/dev/loop0\n"
        watch.until(lambda: "backend:loop0" in exposed(cloison))
    yield cloison
    if not is_up(cloison):
        cloison.up()
    cloison.remove("frontend", "backend")


def exposed(place: Place) -> dict[str, list[str]]:
    """Device -> words of its line in qvm-block ls."""
    lines = place.ok(["qvm-block", "ls"]).decode().splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}


def attached(place: Place) -> bytes:
    return place.connection.call("frontend", "admin.vm.device.block.Attached")


def test_written_read_and_taken_back(two: Place) -> None:
    two.ok(["qvm-block", "attach", "frontend", "backend:loop0"])
    assert b"mode='manual' frontend_domain='frontend' _frontend-dev='xvdi' _read-only='no'" in attached(two)
    assert exposed(two)["backend:loop0"][-4:] == ["frontend", "(attached:", "frontend-dev=xvdi,", "read-only=no)"]
    two.sh("frontend", MOUNTED.format("", "head -c 5000000 /dev/zero | tr '\\0' x > /mnt/x/five; sync"), user="root")
    twice = two.run(["qvm-block", "attach", "frontend", "backend:loop0"])
    assert twice.returncode == 1 and b"attached" in twice.stderr
    busy = two.run(["qvm-run", "-p", "--user", "root", "backend", "mount /dev/loop0 /mnt"])
    assert busy.returncode != 0                  # who serves a device has it for himself
    two.ok(["qvm-block", "detach", "frontend", "backend:loop0"])
    assert attached(two) == b""
    assert two.sh("frontend", "udevadm settle; ls /dev/xvdi 2>&1 || true", user="root").endswith(b"No such file or directory\n")
    assert two.sh("backend", "mount /dev/loop0 /mnt; tr -d x < /mnt/five | wc -c; wc -c < /mnt/five; umount /mnt",
                  user="root") == b"0\n5000000\n"

    two.ok(["qvm-block", "attach", "--ro", "frontend", "backend:loop0"])
    assert b"_read-only='yes'" in attached(two)
    assert two.sh("frontend", MOUNTED.format("-o ro", "wc -c < /mnt/x/five"), user="root") == b"5000000\n"
    assert two.sh("frontend", "dd if=/dev/zero of=/dev/xvdi count=1 2>/dev/null || echo refused", user="root") == b"refused\n"
    two.ok(["qvm-block", "detach", "frontend"])


def test_what_is_mounted_is_not_given(two: Place) -> None:
    with two.events() as watch:
        two.sh("backend", "losetup -f /var/tmp/disk.img; mount /dev/loop0 /mnt", user="root")
        watch.event("device-list-change:block", "backend")
        refused = two.run(["qvm-block", "attach", "frontend", "backend:loop0"])
    assert refused.returncode == 1
    assert b"in use in its qube" in refused.stderr or b"does not expose" in refused.stderr
    assert attached(two) == b""


def test_a_backend_that_is_killed_takes_its_device_along(two: Place) -> None:
    two.ok(["qvm-block", "attach", "frontend", "backend:loop0"])
    two.sh("frontend", "udevadm settle", user="root")
    with two.popen(["qvm-run", "-p", "--user", "root", "frontend", f"echo begun; while true; do {READ_ALL}; done | grep -m1 failed"]
                   ) as reader:
        assert reader.stdout is not None and reader.stdin is not None
        assert reader.stdout.readline() == b"begun\n"
        with two.events() as watch:
            two.kill("backend")
            assert watch.event("device-detach:block", "frontend").pairs == (("port", "backend:loop0"),)
        assert reader.stdout.read() == b"failed\n"
        reader.communicate()
    assert attached(two) == b""
    assert two.sh("frontend", "echo alive") == b"alive\n"


def test_a_frontend_that_is_killed_gives_the_device_back(two: Place) -> None:
    two.ok(["qvm-block", "attach", "frontend", "backend:loop0"])
    with two.events() as watch:
        two.kill("frontend")
        assert watch.event("device-detach:block", "frontend").pairs == (("port", "backend:loop0"),)
    two.ok(["qvm-start", "frontend"])
    two.ok(["qvm-block", "attach", "frontend", "backend:loop0"])
    two.ok(["qvm-block", "detach", "frontend"])


def test_lesson_38_the_next_qubesd_knows_what_is_attached(two: Place) -> None:
    two.ok(["qvm-block", "attach", "frontend", "backend:loop0"])
    before = attached(two)
    with two.popen(["qvm-run", "-p", "--user", "root", "frontend", "echo begun; read go; "
                    + MOUNTED.format("", "echo kept | tee /mnt/x/kept")]) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
        two.kill_qubesd()
        assert writer.communicate(b"go\n")[0] == b"kept\n"
    two.up()
    assert attached(two) == before
    two.ok(["qvm-block", "detach", "frontend", "backend:loop0"])
    assert attached(two) == b""


def test_by_rule_when_the_qube_starts_and_when_the_device_comes(two: Place) -> None:
    two.kill("frontend")
    two.ok(["qvm-block", "assign", "--required", "frontend", "backend:loop0"])
    two.ok(["qvm-start", "frontend"])
    assert b"mode='required'" in attached(two)
    held = two.run(["qvm-block", "detach", "frontend", "backend:loop0"])
    assert held.returncode == 1 and b"requires" in held.stderr
    two.kill("frontend")
    two.kill("backend")
    missing = two.run(["qvm-start", "frontend"])
    assert missing.returncode == 1 and b"requires" in missing.stderr
    two.ok(["qvm-block", "unassign", "frontend"])
    two.ok(["qvm-start", "frontend"])
    two.ok(["qvm-block", "assign", "--port", "frontend", "backend:loop0"])
    two.ok(["qvm-start", "backend"])
    with two.events() as watch:
        two.sh("backend", "truncate -s 8M /var/tmp/other.img; losetup -f /var/tmp/other.img", user="root")
        assert ("device", "backend:loop0::0") in watch.event("device-attach:block", "frontend").pairs




def test_lesson_44_a_backend_that_stops_answering_holds_up_its_own_device_only(two: Place) -> None:
    two.ok(["qvm-block", "attach", "frontend", "backend:loop0"])
    two.sh("frontend", "udevadm settle", user="root")
    two.sh("backend", "pkill -STOP -f cloison.Block", user="root")
    with two.popen(["qvm-run", "-p", "--user", "root", "frontend", f"echo begun; {READ_ALL}"]) as reader:
        assert reader.stdout is not None and reader.stdin is not None
        assert reader.stdout.readline() == b"begun\n"
        assert two.sh("frontend", "echo alive") == b"alive\n"
        with two.events() as watch:
            two.ok(["qvm-pause", "frontend"])        # which first finishes what its disks have under way
            assert watch.event("device-detach:block", "frontend").pairs == (("port", "backend:loop0"),)
        two.ok(["qvm-unpause", "frontend"])
        assert reader.stdout.read() == b"failed\n"
        reader.communicate()
    assert attached(two) == b""
