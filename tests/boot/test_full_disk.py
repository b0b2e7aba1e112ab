"""A qube that writes until the host's disk is full: it is told of, waits, goes on when there is space, and has lost nothing."""
from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest
from tests.boot.place import TEMPLATE, Place

pytestmark = [pytest.mark.boot, pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")]
SMALL, LARGE = "24M", "300M"
MIB = 40                   # that the qube writes


@pytest.fixture
def small(cloison: Place) -> Iterator[str]:
    """A pool on a file system of its own, which is small; `work` keeps its private volume there. The folder."""
    folder = os.path.join(cloison.root, "small")
    os.mkdir(folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "small", folder], check=True)
    cloison.ok(["qvm-pool", "add", "small", "qcow2", "-o", f"dir_path={folder}/pool"])
    cloison.create("work", "--template", TEMPLATE, "--pool", "private=small")
    yield folder
    cloison.remove("work")
    cloison.ok(["qvm-pool", "remove", "small"])
    subprocess.run(["umount", folder], check=True)
    os.rmdir(folder)


@contextmanager
def running(cloison: Place, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in `work`, without input, that is waited for by nobody when the test fails."""
    with cloison.popen(["qvm-run", "-p", "work", command]) as writer:
        assert writer.stdin is not None
        writer.stdin.close()
        writer.stdin = None
        try:
            yield writer
        finally:
            writer.kill()


def next_line(stream: IO[bytes] | None) -> bytes:
    """What the stream says next, or nothing if it says nothing for half a minute."""
    assert stream is not None
    return stream.readline() if select.select([stream], [], [], 30)[0] else b""


def test_it_waits_and_goes_on_and_nothing_is_lost(cloison: Place, small: str) -> None:
    cloison.ok(["qvm-start", "work"])
    write = f"head -c {MIB << 20} /dev/zero | tr '\\0' x > data; sync; cksum < data; cksum < /dev/null"
    with cloison.events() as watch, running(cloison, write) as writer:
        watch.event("domain-paused", "work")
        assert dict(watch.event("domain-space-wanted", "work").pairs)["where"].startswith(small)
        waits = f"work waits for disk space: {small}/".encode()
        assert cloison.state("work") == "Paused"
        assert waits.decode() in cloison.log()
        assert waits in cloison.run(["qvm-ls"]).stderr
        for words, status in ((["qvm-shutdown", "--wait", "work"], 1), (["qvm-unpause", "work"], 1),
                              (["qvm-run", "-p", "work", "true"], 255)):
            refused = cloison.run(words, limit=30)
            assert (refused.returncode, waits in refused.stderr) == (status, True), refused
        assert waits in cloison.ok(["cloison", "status"])
        assert waits in next_line(writer.stderr), "who waits for the command is told why nothing moves"
        cloison.kill_qubesd()                   # its warden looks for space, not qubesd
        cloison.up()
        assert cloison.state("work") == "Paused" and waits in cloison.run(["qvm-ls"]).stderr
        with cloison.events() as later:
            subprocess.run(["mount", "-o", f"remount,size={LARGE}", small], check=True)
            later.event("domain-unpaused", "work")
        output, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
    assert cloison.state("work") == "Running" and waits not in cloison.run(["qvm-ls"]).stderr
    wanted = subprocess.run(["sh", "-c", write.replace("> data; sync; cksum < data;", "| cksum;")], capture_output=True, check=True)
    assert output == wanted.stdout
    cloison.halt("work")
    assert cloison.sh("work", "cksum < data; cksum < /dev/null") == wanted.stdout


def test_it_can_be_ended_and_removed_while_the_disk_is_full(cloison: Place, small: str) -> None:
    cloison.ok(["qvm-start", "work"])
    write = "echo kept > kept; sync; cat /dev/zero > data"
    with cloison.events() as watch, running(cloison, write) as writer:
        watch.event("domain-space-wanted", "work")
        cloison.kill("work")
        assert cloison.state("work") == "Halted"
        writer.communicate(timeout=60)
    assert os.statvfs(small).f_bavail * os.statvfs(small).f_frsize < 4 << 20
    assert "the space that was kept back is used now" in cloison.log(), "what was written was committed all the same"
    cloison.ok(["qvm-remove", "--force", "work"])
    assert os.statvfs(small).f_bavail * os.statvfs(small).f_frsize > 12 << 20
