"""What a qube with an ephemeral volatile disk writes can be read by nobody: not in its files, not after its end."""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.place import TEMPLATE, Place

pytestmark = pytest.mark.boot
# A running qube swaps to its volatile disk: it is taken from it as soon as it has it. The kernel says when that changes.
TAKE_DISK = """python3 -c "
import select
with open('/proc/swaps') as swaps:
    changes = select.poll()
    changes.register(swaps, select.POLLPRI)
    while 'vdc' not in swaps.read():
        changes.poll()
        swaps.seek(0)
" && swapoff /dev/vdc"""
# The words are put together in the guest, so that they are in no file but as what it wrote.
WRITE = ("yes attack-at-dawn | tr a-z A-Z | head -c 4M > /dev/vdc && "
         "yes retreat-at-dawn | tr a-z A-Z | head -c 4M > /var/tmp/file && sync")
WRITTEN = (b"ATTACK-AT-DAWN", b"RETREAT-AT-DAWN")


@pytest.fixture
def work(cloison: Place) -> Iterator[Place]:
    """AppVM `work`, off."""
    cloison.create("work", "--template", TEMPLATE)
    yield cloison
    cloison.remove("work")


def overlays(place: Place, folder: Path) -> list[Path]:
    """Copies of the files without a name that any process has open."""
    found = {}
    for pid in place.processes():
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = Path(f"/proc/{pid}/fd/{fd}")
            target = os.readlink(path)
            if target.startswith(place.paths.tmp) and target.endswith("(deleted)"):
                copy = folder / str(path.stat().st_ino)
                found[copy] = shutil.copyfile(path, copy)
    return list(found)


def holds(paths: list[Path]) -> set[bytes]:
    """Which of what was written can be read in these files."""
    return {text for path in paths for text in WRITTEN if text in path.read_bytes()}


def test_what_a_guest_wrote_is_in_no_file_and_no_file_can_be_opened_after_its_end(work: Place, tmp_path: Path) -> None:
    work.ok(["qvm-start", "work"])
    work.sh("work", f"{TAKE_DISK} && {WRITE}", user="root")
    assert holds(overlays(work, tmp_path)) == set(WRITTEN), "without encryption it is there: this test can fail"
    work.kill("work")
    work.ok(["qvm-volume", "set", "work:volatile", "ephemeral", "True"])
    work.ok(["qvm-start", "work"])
    work.sh("work", f"{TAKE_DISK} && {WRITE}", user="root")
    assert work.sh("work", "head -c 14 /dev/vdc; head -c 15 /var/tmp/file", user="root") == b"".join(WRITTEN)
    copies = overlays(work, tmp_path)
    assert len(copies) == 2 and all(copy.stat().st_blocks * 512 > 4 << 20 for copy in copies)
    assert holds(copies) == set()
    secrets = [word for word in command_lines(work) if b'"qom-type":"secret"' in word]
    assert len(secrets) == 2 and all(b'"file":"/proc/self/fd/' in word and b'"data"' not in word for word in secrets)
    work.kill("work")
    assert overlays(work, tmp_path) == []
    for copy in copies:
        opened = subprocess.run([
            "qemu-io", "--object", "secret,id=s,data=" + "0" * 64, "--image-opts",
            f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename={copy}", "-c", "read 0 512",
        ], capture_output=True, check=False)
        assert opened.returncode == 1 and b"Invalid password" in opened.stderr


def command_lines(place: Place) -> set[bytes]:
    """Words of the command lines of all processes."""
    return {word for pid in place.processes() for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")}
