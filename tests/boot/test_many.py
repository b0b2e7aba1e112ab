"""Many at once: calls to one qube, and qubes on one machine."""
from __future__ import annotations

import select
import subprocess

import pytest
from tests.boot.place import BOOT_LIMIT, Place

pytestmark = [pytest.mark.boot, pytest.mark.slow]

CALLS, QUBES = 200, 20


def line(tool: subprocess.Popen[bytes]) -> bytes:
    assert tool.stdout is not None and tool.stderr is not None
    ready = select.select([tool.stdout], [], [], BOOT_LIMIT)[0]
    assert ready
    return tool.stdout.readline()


@pytest.mark.slow
def test_two_hundred_calls_at_once_to_one_qube(cloison: Place) -> None:
    cloison.create("busy")
    cloison.ok(["qvm-start", "busy"])
    # Each waits for its input, so that all are under way before the first ends.
    calls = [cloison.popen(["qvm-run", "-p", "busy", f"echo {number}; cat; exit {number % 7}"]) for number in range(CALLS)]
    assert [line(call) for call in calls] == [b"%d\n" % number for number in range(CALLS)]
    for number, call in enumerate(calls):
        output, errors = call.communicate(b"input of %d" % number, BOOT_LIMIT)
        assert (output, errors, call.returncode) == (b"input of %d" % number, b"", number % 7)
    cloison.remove("busy")


def test_twenty_qubes_at_once_all_answer(cloison: Place) -> None:
    before = cloison.files()
    calls = [cloison.popen(["qvm-run", "-p", "--dispvm", "--", "sh", "-c", "hostname; cat"]) for _ in range(QUBES)]
    names = {line(call).strip() for call in calls}
    assert len(names) == QUBES
    assert len([qube for qube in cloison.qubes().values() if qube.klass == "DispVM" and qube.state == "Running"]) == QUBES
    for number, call in enumerate(calls):
        output, errors = call.communicate(b"%d" % number, BOOT_LIMIT)
        assert (output, call.returncode) == (b"%d" % number, 0), errors
    cloison.clear()
    assert cloison.files() == before
    cloison.await_only_daemons()
