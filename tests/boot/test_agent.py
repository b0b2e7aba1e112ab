"""The agent of a real qube is killed: who waits for it is told, and a new one takes the qube up again."""
from __future__ import annotations

import os
import select
import time

import pytest
from tests.boot.place import LIMIT, Place

from cloison.runtime.inotify import CREATE, MOVED_TO, Watch

pytestmark = pytest.mark.boot

KILL_AGENT = "kill -9 $QREXEC_AGENT_PID"


def kill_agent(place: Place, name: str) -> None:
    """And wait until calls are taken again."""
    watch = Watch(place.paths.qubes, CREATE | MOVED_TO)
    socket = os.path.join(place.paths.qubes, f"qrexec.{name}")
    try:
        assert place.run(["qvm-run", "-p", "--user", "root", name, KILL_AGENT]).returncode != 0
        deadline = time.monotonic() + LIMIT
        while not os.path.lexists(socket):
            assert select.select([watch], [], [], deadline - time.monotonic())[0], place.log()
            watch.clear()
    finally:
        watch.close()


def test_running_calls_end_and_new_ones_go_on(work: Place) -> None:
    calls = [work.popen(["qvm-run", "-p", "work", "echo up; cat; echo more"]) for _ in range(5)]
    for call in calls:
        assert call.stdout is not None and call.stdout.readline() == b"up\n"
    streaming = work.popen(["qvm-run", "-p", "work", "cat /dev/zero"])       # so that the port is cut in the middle of something
    assert streaming.stdout is not None and streaming.stdout.read(1 << 20) == bytes(1 << 20)
    kill_agent(work, "work")
    for call in (*calls, streaming):
        call.communicate(timeout=LIMIT)
        assert call.returncode in (125, 255)
    assert work.sh("work", "hostname; echo $XDG_RUNTIME_DIR; qubesdb-read /name") == b"work\n/run/user/1000\nwork\n"
    data = os.urandom(1 << 20)
    assert work.sh("work", "cat", data) == data


def test_again_and_again_with_new_entries_of_qubesdb_and_an_orderly_end(work: Place) -> None:
    work.ok(["qvm-features", "work", "vm-config.colour", "blue"])
    for number in range(3):
        kill_agent(work, "work")
        assert work.sh("work", f"echo {number}; qubesdb-read /vm-config/colour") == b"%d\nblue\n" % number
    work.halt("work")
    assert work.state("work") == "Halted"
