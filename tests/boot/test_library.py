"""The Python library on real qubes: the document's examples, and who is ended how."""
from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.place import DVM, LIMIT, Place
from tests.examples import check_output, examples, perform

from cloison.client.calls import Domain
from cloison.client.disposables import Disposable
from cloison.client.failures import CallLost, CallTimeout
from cloison.client.program import Program
from cloison.client.run import run

pytestmark = pytest.mark.boot


@pytest.fixture
def work(cloison: Place) -> Iterator[Place]:
    cloison.create("work")
    cloison.ok(["qubes-prefs", "default_dispvm", DVM])
    cloison.ok(["qvm-start", "work"])
    yield cloison
    cloison.remove("work")


def test_examples_with_programs(
    work: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOISON_ROOT", str(work.root))
    monkeypatch.chdir(tmp_path)
    work.halt("work")
    perform(examples(machine=True), {"__name__": "example", "connection": work.connection, "work": Domain("work")})
    check_output(capsys.readouterr().out)


SLEEPERS = "pgrep -c -x sleep || true"


def await_none(place: Place, qube: str = "work") -> None:
    """Until nothing sleeps there."""
    deadline = time.monotonic() + 30
    while run(place.connection, qube, SLEEPERS).untrusted_stdout != b"0\n":
        assert time.monotonic() < deadline, "it sleeps on"


def test_a_program_ends_with_its_caller(work: Place) -> None:
    """Ctrl-C and kill -9 of qvm-run, a time limit, a signal, a handle that is let go: with all its children."""
    for number in (signal.SIGINT, signal.SIGKILL):
        tool = work.popen(["qvm-run", "-p", "work", "sleep 1000 & echo up; trap '' HUP; wait; wait"])
        assert tool.stdout is not None and tool.stdout.readline() == b"up\n"
        tool.send_signal(number)
        tool.communicate(timeout=LIMIT)
        await_none(work)
    with pytest.raises(CallTimeout):
        run(work.connection, "work", "trap '' HUP TERM; sleep 1000; sleep 1000", timeout=1)
    await_none(work)
    with Program(work.connection, "work", ["sleep", "1000"]) as program:
        program.signal(signal.SIGTERM)
        assert program.wait(LIMIT) == 128 + signal.SIGTERM
    with Program(work.connection, "work", "echo up; sleep 1000") as program:
        assert program.stdout.readline(timeout=LIMIT) == b"up\n"
    await_none(work)


def test_a_qube_that_dies_under_a_call(work: Place) -> None:
    with Program(work.connection, "work", "echo up; sleep 1000") as program:
        assert program.stdout.readline(timeout=LIMIT) == b"up\n"
        work.kill("work")
        with pytest.raises(CallLost):
            program.wait(LIMIT)
    work.ok(["qvm-start", "work"])
    assert run(work.connection, "work", "exit 255").status == 255


@pytest.mark.slow
def test_a_disposable_of_a_size_of_its_own(work: Place) -> None:
    """The first one boots for its warm image, the second doesn't."""
    took = []
    for _ in range(2):
        begun = time.monotonic()
        with Disposable(work.connection, DVM, memory=600, vcpus=1) as box:
            took.append(time.monotonic() - begun)
            said = run(work.connection, box.name, "nproc; grep MemTotal /proc/meminfo", check=True).untrusted_text.split()
            assert said[0] == "1" and 500_000 < int(said[2]) < 620_000, said
    print(f"a new size: {took[0]:.1f} s, then {took[1]:.2f} s")
