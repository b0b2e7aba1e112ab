"""kill -9 of each process in turn: who goes on, who ends, what is left."""
from __future__ import annotations

import os
import select
import signal
import subprocess

import pytest
from tests.boot.place import LIMIT, Place, await_ends, kill

pytestmark = [pytest.mark.boot, pytest.mark.slow]


@pytest.fixture
def qube(cloison: Place) -> str:
    """A running qube whose private volume holds a file that has reached the disk."""
    if "held" not in cloison.qubes():
        cloison.create("held")
    cloison.sh("held", "echo precious > ~/file; sync")
    return "held"


def line(tool: subprocess.Popen[bytes]) -> bytes:
    assert tool.stdout is not None
    assert select.select([tool.stdout], [], [], LIMIT)[0]
    return tool.stdout.readline()


def assert_ended_alone(cloison: Place, name: str) -> None:
    """The qube is halted, and of its run nothing is left but what it had saved."""
    assert cloison.state(name) == "Halted"
    cloison.await_only_daemons()
    assert not [path for path in cloison.files() if path.startswith(("run/qubes/", "data/tmp/disk"))]
    assert cloison.sh(name, "cat ~/file") == b"precious\n"


def test_a_call_goes_on_while_qubesd_is_killed_and_the_next_one_takes_over(cloison: Place, qube: str) -> None:
    with cloison.popen(["qvm-run", "-p", qube, "exec cat"]) as tool:
        assert tool.stdin is not None
        tool.stdin.write(b"before\n")
        tool.stdin.flush()
        assert line(tool) == b"before\n"
        cloison.kill_qubesd()
        tool.stdin.write(b"without\n")
        tool.stdin.flush()
        assert line(tool) == b"without\n"
        cloison.up()
        assert cloison.state(qube) == "Running"
        assert cloison.sh(qube, "cat ~/file") == b"precious\n"
        output, _ = tool.communicate(b"after\n", LIMIT)
        assert (output, tool.returncode) == (b"after\n", 0)
    cloison.ok(["qvm-pause", qube])
    cloison.kill_qubesd()
    cloison.up()
    assert cloison.state(qube) == "Paused"
    cloison.ok(["qvm-unpause", qube])
    cloison.halt(qube)
    assert_ended_alone(cloison, qube)


def test_a_killed_zygote_is_replaced(cloison: Place, qube: str) -> None:
    kill(cloison.process("python.*cloison.warden.zygote"))
    assert cloison.sh(qube, "cat ~/file") == b"precious\n"
    assert cloison.ok(["qvm-run", "-p", "--dispvm", "--", "echo", "started"]) == b"started\n"


def test_a_killed_warden_takes_its_machine_along_and_nothing_else(cloison: Place, qube: str) -> None:
    with cloison.events() as watch:
        kill(cloison.process(f"warden {qube}"))
        watch.event("domain-stopped", qube)
        watch.event("domain-shutdown", qube)
    assert_ended_alone(cloison, qube)


def test_a_killed_machine_ends_its_warden(cloison: Place, qube: str) -> None:
    with cloison.events() as watch:
        kill(cloison.process("qemu-system", qube))
        watch.event("domain-stopped", qube)
        watch.event("domain-shutdown", qube)
    assert_ended_alone(cloison, qube)


def test_a_warden_and_qubesd_killed_together(cloison: Place, qube: str) -> None:
    uuid = cloison.qubes()[qube].uuid
    warden = cloison.process(f"warden {qube}")
    cloison.kill_qubesd()
    kill(warden)
    cloison.wait_gone(uuid)
    cloison.up()
    assert_ended_alone(cloison, qube)


@pytest.mark.parametrize("daemon", ["lives", "dies first", "dies after"])
def test_a_killed_caller_takes_its_disposable_along(cloison: Place, daemon: str) -> None:
    before, processes = cloison.files(), set(cloison.processes())
    with cloison.popen(["qvm-run", "-p", "--dispvm", "--", "sh", "-c", "hostname; exec sleep 1000"]) as tool:
        name = line(tool).decode().strip()
        uuid = cloison.qubes()[name].uuid
        machine = set(cloison.processes()) - processes - {tool.pid}
        assert len(machine) >= 2
        if daemon == "dies first":
            cloison.kill_qubesd()
        tool.kill()
        if daemon == "dies after":
            cloison.kill_qubesd()
    cloison.wait_gone(uuid)
    await_ends(machine)
    if daemon == "lives":
        with cloison.events() as watch:
            watch.until(lambda: name not in cloison.qubes())
    else:
        cloison.up()
    assert name not in cloison.qubes()
    assert cloison.files() == before


def test_ending_qubesd_leaves_no_zygote(cloison: Place) -> None:
    pids = set(cloison.processes())
    cloison.down()
    await_ends(pids)
    assert cloison.processes() == {}
    assert not os.path.exists(cloison.paths.socket("qubesd.sock"))


def test_a_silent_warden_is_not_taken_for_gone(cloison: Place, qube: str) -> None:
    warden = cloison.process(f"warden {qube}")
    os.kill(warden, signal.SIGSTOP)
    tries = [cloison.popen(words) for words in (["qvm-pause", qube], ["qvm-shutdown", qube], ["qvm-run", qube, "true"])]
    for tool in tries:                      # side by side, none waits for the others
        _, told = tool.communicate(timeout=LIMIT)
        assert tool.returncode in (1, 255) and b"does not answer" in told, told
    cloison.kill_qubesd()
    cloison.up()
    assert cloison.state(qube) == "Transient"
    for words in (["qvm-clone", qube, "copy"], ["qvm-remove", "-f", qube], ["qvm-start", qube], ["qvm-shutdown", qube]):
        refused = cloison.run(words)
        assert refused.returncode == 1 and f"qvm-kill {qube} ends it".encode() in refused.stderr, words
    assert "copy" not in cloison.qubes()
    with cloison.events() as watch:
        os.kill(warden, signal.SIGCONT)
        watch.event("domain-known", qube)
    assert cloison.state(qube) == "Running" and cloison.sh(qube, "cat ~/file") == b"precious\n"
    os.kill(warden, signal.SIGSTOP)
    cloison.ok(["qvm-kill", qube])
    told = cloison.ok(["cloison", "log", qube]).decode()
    assert told.index("does not answer") < told.index("answers again") < told.index("killed from outside"), told
    assert_ended_alone(cloison, qube)


def test_a_start_that_makes_a_warm_image_ends_with_a_kill_and_with_its_caller(cloison: Place, qube: str) -> None:
    cloison.halt(qube)
    before, processes = cloison.files(), set(cloison.processes())
    cloison.ok(["qvm-prefs", qube, "memory", "401"])          # of another shape: it needs an image of its own
    for end in ("kill", "caller"):
        with cloison.events() as watch, cloison.popen(["qvm-start", qube]) as start:
            watch.event("domain-verify-files", qube)
            cloison.await_process("qemu-system")
            assert cloison.state(qube) == "Transient"
            assert b"Transient" in cloison.run(["qvm-remove", "-f", qube]).stderr
            if end == "kill":
                cloison.ok(["qvm-kill", qube])
            else:
                start.kill()
            watch.event("domain-start-failed", qube)
            assert start.wait(LIMIT) == (1 if end == "kill" else -signal.SIGKILL)
        assert cloison.state(qube) == "Halted"
        await_ends(set(cloison.processes()) - processes)
        assert cloison.files() == before
    cloison.ok(["qvm-prefs", "-D", qube, "memory"])
