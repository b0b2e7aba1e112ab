"""One template, one qubesd and one warm image for all boot tests.

CLOISON_TEST_TEMPLATE_ROOT names the CLOISON_ROOT of another installation whose template is copied instead of building one.
"""
from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.place import SOURCE, Place, await_ends, copy_parts, furnish, is_up

# A shell that runs the suite in the background has it ignore Ctrl-C, and every tool that it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def whole_place() -> Iterator[Place]:
    """A template and a disposable template; at the end nothing of it may be left on the machine."""
    root = Path(tempfile.mkdtemp(prefix="cloison-boot-"))
    place = Place(root)
    try:
        place.up()
        furnish(place, copy_parts(place, Path(os.environ[SOURCE])) if os.environ.get(SOURCE) else None)
        yield place
        if is_up(place):
            place.clear()
        pids = place.processes()
        place.down()
        await_ends(pids)
        assert place.processes() == {}
        assert place.mounts() == []
        assert left_behind(place) == set()
    finally:
        for pid in place.processes():
            os.kill(pid, 9)
        shutil.rmtree(root)


def left_behind(place: Place) -> set[str]:
    """Files that an installation without running qubes does not have."""
    allowed = {"run/qubes", "run/qubesd.lock", "run/policyd.lock", "run/policy.d", "run/qubes-rpc", "run/qubes-rpc-admin",
               "run/qubes-service", "run/vchan"}
    return {path for path in place.files() if path.startswith(("run/", "data/tmp/")) and path not in allowed
            and not path.startswith("run/qubes-rpc-admin/") and not path.endswith(".template-lock")}


@pytest.fixture
def cloison(whole_place: Place) -> Iterator[Place]:
    """qubesd runs, no qube does; afterwards the same, and no process is there but those of qubesd."""
    if not is_up(whole_place):
        whole_place.up()
    yield whole_place
    if not is_up(whole_place):
        whole_place.up()
    whole_place.clear()


@pytest.fixture
def work(cloison: Place) -> Iterator[Place]:
    """Qube `work`, which runs."""
    cloison.create("work")
    cloison.ok(["qvm-start", "work"])
    yield cloison
    cloison.remove("work")
