"""Every named step of an operation broken in turn, with the real daemons: nothing is lost, nothing stays.

The points that `storage:*` names are walked one by one in tests/storage; here is what a person sees of them.
"""
from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.boot.place import DVM, LIMIT, TEMPLATE, Place, await_ends, is_up

pytestmark = [pytest.mark.boot, pytest.mark.slow]

QUBE, NEW = "walked", "newborn"
WARDEN = ("warden:overlay", "warden:spawn", "warden:spawned")


@pytest.fixture
def qube(cloison: Place) -> str:
    """A halted qube whose private volume holds a file."""
    if QUBE not in cloison.qubes():
        cloison.create(QUBE)
        for _ in range(2):                      # from now on it has as many revisions as it will ever have
            cloison.sh(QUBE, "echo precious > ~/file")
            cloison.halt(QUBE)
    return QUBE


def break_at(cloison: Place, fault: str) -> int:
    """A new qubesd that dies, or whose disk fails, at that point; its process id."""
    cloison.down()
    cloison.up(fault)
    return cloison.qubesd()


def mend(cloison: Place) -> None:
    """A new qubesd without the fault."""
    if is_up(cloison):
        cloison.down()
    cloison.up()


def assert_whole(cloison: Place, files: set[str]) -> None:
    """No process but the daemons', no file but those of before, and the qube works and has what it had."""
    cloison.clear()
    cloison.await_only_daemons()
    assert cloison.files() == files
    assert cloison.mounts() == []
    assert cloison.sh(QUBE, "cat ~/file") == b"precious\n"
    cloison.halt(QUBE)


@pytest.mark.parametrize("point", ["create:after-store", "create:after-volumes"])
def test_a_qube_half_made_is_undone(cloison: Place, qube: str, point: str) -> None:
    before = cloison.files()
    daemon = break_at(cloison, point)
    result = cloison.run(["qvm-create", "--label", "red", NEW])
    assert result.returncode == 1 and result.stderr
    await_ends([daemon])
    mend(cloison)
    assert NEW not in cloison.qubes()
    assert_whole(cloison, before)


@pytest.mark.parametrize("point", ["remove:after-store", "remove:after-volumes"])
def test_a_qube_half_removed_is_gone(cloison: Place, qube: str, point: str) -> None:
    before = cloison.files()
    cloison.create(NEW)
    daemon = break_at(cloison, point)
    cloison.run(["qvm-remove", "--force", NEW])
    await_ends([daemon])
    mend(cloison)
    assert NEW not in cloison.qubes()
    assert_whole(cloison, before)


@pytest.mark.parametrize("point", [
    "start:after-storage", "start:after-machine", "shutdown:after-machine", "shutdown:after-storage"])
def test_qubesd_dies_while_a_qube_starts_or_ends(cloison: Place, qube: str, point: str) -> None:
    before = cloison.files()
    daemon = break_at(cloison, point)
    cloison.run(["qvm-start", qube])
    if point.startswith("shutdown"):
        cloison.run(["qvm-shutdown", "--wait", qube])
    await_ends([daemon])
    mend(cloison)
    assert cloison.state(qube) in ("Halted", "Running")
    assert_whole(cloison, before)


@pytest.mark.parametrize("point", [
    "start:after-storage", "start:after-machine", "shutdown:after-machine", "shutdown:after-storage", "remove:after-volumes"])
def test_qubesd_dies_over_a_disposable(cloison: Place, qube: str, point: str) -> None:
    before = cloison.files()
    daemon = break_at(cloison, point)
    cloison.run(["qvm-run", "-p", "--dispvm", "--", "true"])
    await_ends([daemon])
    mend(cloison)
    cloison.clear()
    assert not [name for name, each in cloison.qubes().items() if each.klass == "DispVM" and name.startswith("disp")]
    assert_whole(cloison, before)


@pytest.mark.parametrize("fault", [*WARDEN, *(f"{point}={word}" for point in WARDEN for word in ("enospc", "eio"))])
def test_a_warden_that_can_not_start_its_machine(cloison: Place, qube: str, fault: str) -> None:
    before = cloison.files()
    break_at(cloison, fault)
    for words, status in ((["qvm-start", qube], 1), (["qvm-run", "-p", "--dispvm", "--", "true"], 255)):
        result = cloison.run(words)
        assert result.returncode == status
        assert len([line for line in result.stderr.splitlines() if b": error: " in line]) == 1, result.stderr
        for word, sentence in (("=enospc", b"No space left on device"), ("=eio", b"Input/output error")):
            assert word not in fault or sentence in result.stderr, result.stderr
        assert b"Traceback" not in result.stderr
    assert cloison.state(qube) == "Halted"
    mend(cloison)
    assert_whole(cloison, before)


def test_a_warden_that_dies_once_its_qube_runs(cloison: Place, qube: str) -> None:
    before = cloison.files()
    break_at(cloison, "warden:running")
    with cloison.events() as watch:
        cloison.run(["qvm-start", qube])
        watch.event("domain-shutdown", qube)
    assert cloison.run(["qvm-run", "-p", "--dispvm", "--", "sleep", "1000"]).returncode != 0
    mend(cloison)
    assert_whole(cloison, before)


@pytest.mark.parametrize("point", ["warm:boot", "warm:saved", "warm:synced"])
def test_a_maker_of_warm_images_that_dies(cloison: Place, qube: str, point: str) -> None:
    """The start goes on without: it boots. That takes long, so qubesd is killed as it begins, and the start is undone."""
    before = cloison.files()
    cloison.ok(["qvm-prefs", qube, "memory", "352"])
    break_at(cloison, point)
    uuid = cloison.qubes()[qube].uuid
    with cloison.events() as watch, cloison.popen(["qvm-start", qube]) as tool:
        watch.event("domain-pre-spawn", qube)
        cloison.kill_qubesd()
        tool.communicate()
        assert tool.returncode == 1
    cloison.wait_gone(uuid)
    mend(cloison)
    cloison.ok(["qvm-prefs", "--default", qube, "memory"])
    assert cloison.state(qube) == "Halted"
    assert_whole(cloison, before)


def start(cloison: Place, qube: str) -> None:
    """A start that may boot, or make an image first."""
    with cloison.events() as watch, cloison.popen(["qvm-start", qube]) as tool:
        watch.event("domain-pre-spawn", qube)
        watch.event("domain-start", qube)
        assert tool.wait(LIMIT) == 0


@pytest.mark.parametrize("part", ["ram", "state"])
def test_a_damaged_warm_image_costs_one_cold_start(cloison: Place, qube: str, part: str) -> None:
    """A memory size of its own spares the other tests' image."""
    before, images = cloison.files(), set(Path(cloison.paths.warm).iterdir())
    cloison.ok(["qvm-prefs", qube, "memory", "352"])
    start(cloison, qube)
    cloison.kill(qube)
    cloison.down()
    [image] = set(Path(cloison.paths.warm).iterdir()) - images
    damaged = image / part
    damaged.chmod(0o600)
    with open(damaged, "r+b") as file:
        position = os.lseek(file.fileno(), damaged.stat().st_size // 2, os.SEEK_DATA)
        os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, position)[0] ^ 1]), position)
    cloison.up()
    start(cloison, qube)
    assert f"is damaged: {part}" in cloison.log() and set(Path(cloison.paths.warm).iterdir()) == images
    assert cloison.sh(qube, "cat ~/file") == b"precious\n"
    cloison.kill(qube)
    cloison.ok(["qvm-prefs", "--default", qube, "memory"])
    assert_whole(cloison, before)


# -- a full or broken disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["enospc", "eio"])
@pytest.mark.parametrize("point", ["storage:start:overlay", "storage:record:before"])
def test_a_start_that_the_disk_refuses(cloison: Place, qube: str, point: str, error: str) -> None:
    before = cloison.files()
    break_at(cloison, f"{point}={error}")
    result = cloison.run(["qvm-start", qube])
    assert result.returncode == 1
    assert (b"no space left on device" if error == "enospc" else b"input/output error") in result.stderr.lower()
    assert b"Traceback" not in result.stderr
    assert cloison.state(qube) == "Halted"
    mend(cloison)
    assert_whole(cloison, before)


@pytest.mark.parametrize("error", ["enospc", "eio"])
def test_a_session_that_can_not_be_saved_is_saved_later(cloison: Place, qube: str, error: str) -> None:
    before = cloison.files()
    break_at(cloison, f"storage:stop:sealed={error}")
    cloison.sh(qube, "echo later > ~/later")
    cloison.halt(qube)
    assert cloison.state(qube) == "Halted"
    mend(cloison)
    assert cloison.sh(qube, "cat ~/later; rm ~/later") == b"later\n"
    assert_whole(cloison, before)


def test_nothing_else_was_touched(cloison: Place) -> None:
    """After all of the above: the template and its disposables are as they were."""
    assert cloison.state(TEMPLATE) == cloison.state(DVM) == "Halted"
    assert cloison.ok(["qvm-run", "-p", "--dispvm", "--", "echo", "fine"]) == b"fine\n"
